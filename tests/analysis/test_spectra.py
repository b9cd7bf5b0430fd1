import math

import pytest
import torch

from layerlock_hf.analysis.spectra import alpha_req, eigenvalues, participation_ratio
from layerlock_hf.training.diagnostics import effective_rank


def test_ranks_of_white_noise_and_of_a_line():
    noise, line = torch.randn(5000, 32), torch.randn(5000, 1) * torch.randn(1, 32)
    assert effective_rank(noise) == pytest.approx(32, rel=0.01)
    assert participation_ratio(eigenvalues(noise)) == pytest.approx(32, rel=0.02)
    assert effective_rank(line) == pytest.approx(1, abs=0.01)
    assert participation_ratio(eigenvalues(line)) == pytest.approx(1, abs=1e-6)


def test_ranks_of_known_spectra():
    rows = torch.diag(torch.tensor([3.0, 1.0, 0.0]))  # singular values 3 and 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(rows) == pytest.approx(math.exp(entropy))
    assert participation_ratio(torch.tensor([3.0, 1.0])) == pytest.approx(16 / 10)


def test_eigenvalues_are_those_of_the_covariance():
    features = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 5
    expected = torch.linalg.eigvalsh(features.T.cov(correction=0)).flip(0)
    torch.testing.assert_close(eigenvalues(features), expected)
    assert len(eigenvalues(torch.randn(4, 50))) == 3  # centring takes one of the four


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(exponent):
    spectrum = torch.arange(1, 201, dtype=torch.float64) ** -exponent
    assert alpha_req(7 * spectrum) == pytest.approx(exponent)
    bent = spectrum.clone()
    bent[:5], bent[120:] = 100, 1e-8  # few strong directions, and the noise floor
    assert alpha_req(bent) == pytest.approx(exponent)


def test_the_exponent_of_features_with_such_a_spectrum():
    basis = torch.linalg.qr(torch.randn(2000, 100, dtype=torch.float64)).Q
    features = basis * torch.arange(1, 101, dtype=torch.float64) ** -0.5  # variances i^-1
    assert alpha_req(eigenvalues(features)) == pytest.approx(1, abs=0.05)


def test_too_few_eigenvalues_have_no_exponent():
    assert math.isnan(alpha_req(torch.tensor([2.0, 1.0, 0.5])))
    assert math.isnan(participation_ratio(eigenvalues(torch.ones(5, 3))))
