import pytest

from layerlock_hf.utils import cores


@pytest.mark.parametrize(
    ("num_cores", "quota", "expected"),
    [(8, None, 8), (8, "max 100000", 8), (8, "400000 100000", 4), (8, "50000 100000", 1), (2, "400000 100000", 2)],
)
def test_a_container_may_use_its_share(tmp_path, monkeypatch, num_cores, quota, expected):
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(cores, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: set(range(num_cores)))
    assert cores.count_cores() == expected
