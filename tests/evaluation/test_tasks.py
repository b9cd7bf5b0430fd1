import pytest
import torch
import torch.nn.functional as F

from layerlock_hf.evaluation.tasks import TASK_CLASSES, Classification, Depth
from layerlock_hf.models import LayerLockViTForDepthEstimation, LayerLockViTForVideoClassification


@pytest.fixture
def config(tiny_config):
    tiny_config.update({"readout_hidden_size": 24, "readout_num_attention_heads": 3, "decoding_patch_size": [2, 4, 4]})
    return tiny_config


def items(num_clips, labels):
    """Test items of which the second cannot be read."""
    made = [
        {
            "pixel_values_videos": torch.full((num_clips, 4, 3, 16, 16), index, dtype=torch.uint8),
            "labels": label,
            "index": index,
            "note": None,
        }
        for index, label in enumerate(labels)
    ]
    made[1] = {"index": 1, "name": "one", "error": "damaged", "kind": "damaged"}
    return made


def test_readouts_are_those_of_the_models(config):
    config.num_labels = 5
    for task, model in (
        (Classification(config, 5), LayerLockViTForVideoClassification(config).classification_readout),
        (Depth(config), LayerLockViTForDepthEstimation(config).depth_readout),
    ):
        shapes = {name: tensor.shape for name, tensor in task.build_readout().state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert TASK_CLASSES[task.name] is type(task)


def test_clips_of_an_item_follow_each_other(config):
    batch = Classification(config, 3, num_test_clips=2).collate_test(items(2, [2, 0, 1]))
    assert batch["pixel_values_videos"].shape == (4, 4, 3, 16, 16)
    assert batch["pixel_values_videos"][:, 0, 0, 0, 0].tolist() == [0, 0, 2, 2]
    assert batch["labels"].tolist() == [2, 1] and batch["index"].tolist() == [0, 2]
    assert [item["name"] for item in batch["failed"]] == ["one"]
    stored = [{"features": {3: torch.full((2, 2, 4, 8), i)}, "labels": i, "index": i} for i in range(3)]
    batch = Classification(config, 3, num_test_clips=2).collate_test(stored)
    assert batch["features"][3][:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2] and batch["failed"] == []


def test_a_batch_of_failures_only(config):
    batch = Depth(config).collate_test(items(1, [0, 0])[1:])
    assert len(batch["index"]) == 0 and len(batch["failed"]) == 1


def test_answers_of_clips_are_averaged_as_probabilities(config):
    """And not as logits, of which the first clip's would win."""
    task = Classification(config, 3, num_test_clips=2)
    outputs = torch.tensor([[9.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0], [0, 0, 1.0]]).unsqueeze(1)
    samples = task.test(outputs, {"labels": torch.tensor([0, 2]), "index": torch.tensor([4, 7])})
    assert samples["index"].tolist() == [4, 7] and samples["predicted"].tolist() == [0, 2]
    expected = outputs[:2, 0].double().softmax(-1).mean(0)[0]
    torch.testing.assert_close(samples["probability"][0], expected)


def test_losses_are_sums_over_what_counts(config):
    task, batch = Classification(config, 3), {"labels": torch.tensor([0, 2])}
    outputs = torch.randn(2, 1, 3)
    assert task.count(batch) == 2
    expected = F.cross_entropy(outputs[:, 0], batch["labels"])
    torch.testing.assert_close(task.loss(outputs, batch) / task.count(batch), expected)

    task, metres = Depth(config), torch.rand(2, 4, 16, 16) + 1
    metres[0, :, :10] = 0
    metres[1, 0, 0, 0], metres[1, 0, 0, 1] = torch.nan, 11
    outputs = torch.randn(2, 32, 32, requires_grad=True)
    model = LayerLockViTForDepthEstimation(config)
    model.depth_readout.forward = lambda features: outputs
    expected = model(torch.rand(2, 4, 3, 16, 16), labels=metres).loss
    batch = {"labels": metres, "index": torch.tensor([0, 1])}
    assert task.count(batch) == 4 * 6 * 16 + 4 * 16 * 16 - 2
    loss = task.loss(outputs, batch) / task.count(batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert outputs.grad.isfinite().all()
    assert task.test(outputs.detach(), batch)["num"].sum() == task.count(batch)


def test_depth_that_is_known_nowhere_has_no_loss(config):
    task, batch = Depth(config), {"labels": torch.zeros(1, 4, 16, 16)}
    outputs = torch.randn(1, 32, 32, requires_grad=True)
    loss = task.loss(outputs, batch)
    loss.backward()
    assert task.count(batch) == 0 and loss == 0 and not outputs.grad.any()
