import torch

from layerlock_hf.utils import memory


def test_what_a_container_may_use(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(f"{3 * 10**6}\n")
    (tmp_path / "memory.current").write_text(f"{2 * 10**6}\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 500000\n")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    assert memory.free_memory(torch.device("cpu")) == 1_500_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert memory.free_memory(torch.device("cpu")) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) > 10**8
    assert memory.free_memory(torch.device("meta")) is None
