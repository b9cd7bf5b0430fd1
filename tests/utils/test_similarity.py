import pytest
import torch

from layerlock_hf.utils.similarity import KERNELS, alignment, cka, linear_kernel, rbf_kernel, similarities


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q.float()


@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_rotations_scales_and_offsets_are_not_seen(kernel, is_biased):
    x = torch.randn(60, 10)
    assert cka(x, 7 * x @ rotation(10) + 100, kernel, is_biased) == pytest.approx(1, abs=1e-4)
    assert cka(x, x * torch.linspace(0.1, 3, 10), kernel, is_biased) < 0.99  # other stretches of each axis are


def test_the_unbiased_estimate_is_zero_for_strangers_and_the_biased_one_is_not():
    x, y = torch.randn(40, 200), torch.randn(40, 300)
    assert abs(cka(x, y)) < 0.1
    assert cka(x, y, is_biased=True) > 0.8


def test_the_biased_estimate_is_the_formula_of_centred_features():
    x, y = torch.randn(30, 5, dtype=torch.float64) + 2, torch.randn(30, 7, dtype=torch.float64) + 3
    x, y = x + y[:, :5], y
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    expected = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert cka(x, y, is_biased=True) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kernel", [linear_kernel, rbf_kernel])
def test_the_unbiased_estimate_is_the_formula_of_song(kernel):
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    y[:, 0] += x[:, 0]

    def hsic(first, second):
        first, second = kernel(first).fill_diagonal_(0), kernel(second).fill_diagonal_(0)
        n, ones = len(first), torch.ones(len(first), dtype=torch.float64)
        trace = (first @ second).trace()
        sums = (ones @ first @ ones) * (ones @ second @ ones) / ((n - 1) * (n - 2))
        return (trace + sums - 2 / (n - 2) * (ones @ first @ second @ ones)) / (n * (n - 3))

    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    name = next(name for name, one in KERNELS.items() if one is kernel)
    assert cka(x, y, name) == pytest.approx(expected.item(), rel=1e-5)


def test_the_width_of_the_gaussian_is_the_median_distance():
    points = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert rbf_kernel(points)[0, 2] == pytest.approx(torch.tensor(-0.5 * (3 / 2) ** 2).exp().item())


def test_a_table_of_all_pairs():
    x, y = torch.randn(30, 4), torch.randn(30, 6)
    z = torch.cat([x, y], dim=1)
    table = similarities([alignment(x), alignment(z)], [alignment(x), alignment(y), alignment(z)])
    assert table.shape == (2, 3)
    assert table[0, 0].item() == pytest.approx(1, abs=1e-5) and table[1, 2].item() == pytest.approx(1, abs=1e-5)
    assert table[1, 1].item() == pytest.approx(cka(z, y), abs=1e-6)


def test_features_that_are_all_the_same_have_none():
    assert torch.tensor(cka(torch.ones(10, 3), torch.randn(10, 3))).isnan()
