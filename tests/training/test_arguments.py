import pytest

from layerlock_hf.training import LayerLockTrainingArguments


def test_jit_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="SIGTERM always saves"):
        LayerLockTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, enable_jit_checkpoint=True)
