"""Models of Transformers as teachers: their pixels, depths, tokens and grids."""

import json

import pytest
import torch
from toy_methods import make_vjepa
from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from vjepa_by_hand import vjepa_by_hand

from layerlock_hf.models import (
    TransformersEncoder,
)
from layerlock_hf.training import (
    as_teacher,
    load_teacher,
    teacher_latents,
)


FOREIGN = {
    "videomae": lambda **kwargs: VideoMAEModel(
        VideoMAEConfig(
            **{
                "hidden_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "intermediate_size": 96,
                "image_size": 16,
                "patch_size": 4,
                "num_frames": 4,
                "tubelet_size": 2,
                "use_mean_pooling": False,
                **kwargs,
            }
        )
    ),
    "vjepa2": lambda **kwargs: VJEPA2Model(
        VJEPA2Config(
            **{
                "hidden_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "mlp_ratio": 2,
                "crop_size": 16,
                "patch_size": 4,
                "frames_per_clip": 4,
                "tubelet_size": 2,
                "pred_hidden_size": 24,
                "pred_num_attention_heads": 2,
                "pred_num_hidden_layers": 1,
                **kwargs,
            }
        )
    ),
}


@pytest.fixture(params=FOREIGN)
def foreign(request, tmp_path):
    """A saved model, itself and its folder."""
    model = FOREIGN[request.param]().eval()
    with torch.no_grad():  # norms that do something
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(tmp_path / "teacher")
    return model, tmp_path / "teacher"


def normalized(video):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (video - mean) / std


def test_a_foreign_teacher_is_normalised_once(foreign):
    model, folder = foreign
    teacher, num_layers, width = load_teacher(str(folder))
    assert isinstance(teacher, TransformersEncoder) and (num_layers, width) == (3, 48)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    video = torch.rand(2, 4, 3, 16, 16)
    kwargs = {"skip_predictor": True} if isinstance(model, VJEPA2Model) else {}
    with torch.no_grad():
        expected = model(normalized(video), **kwargs).last_hidden_state
        (found,) = teacher.tap(video, [3])
    assert torch.equal(found, expected)


def test_depths_of_a_foreign_teacher(foreign):
    model, folder = foreign
    teacher = load_teacher(str(folder))[0]
    video, outputs = torch.rand(2, 4, 3, 16, 16), []

    def keep(module, args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    for layer in model.encoder.layer:
        layer.register_forward_hook(keep)
    with torch.no_grad():
        model(normalized(video), **({"skip_predictor": True} if isinstance(model, VJEPA2Model) else {}))
        taps = teacher.tap(video, [1, 2, 3, 1])
    assert torch.equal(taps[0], outputs[0])
    assert torch.equal(taps[1], outputs[1])
    assert not torch.allclose(taps[2], outputs[2])  # behind the final norm
    assert torch.equal(taps[3], taps[0])


def test_tokens_of_a_foreign_teacher_are_in_our_order(foreign):
    teacher = load_teacher(str(foreign[1]))[0]
    video = torch.rand(1, 4, 3, 16, 16)
    before = teacher.tap(video, [0])[0]
    assert before.shape == (1, 32, 48)
    for token in (0, 1, 4, 16, 27):
        changed = video.clone()
        t, h, w = token // 16, token // 4 % 4, token % 4
        changed[0, 2 * t : 2 * t + 2, :, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4] += 0.5
        moved = (teacher.tap(changed, [0])[0] != before).any(-1)[0]
        assert moved.nonzero().flatten().tolist() == [token]
    ids = torch.tensor([[5, 31, 0]])
    assert torch.equal(teacher.tap(video, [2], ids)[0], teacher.tap(video, [2])[0][:, ids[0]])


def test_loss_under_a_foreign_teacher(foreign, batch):
    teacher = load_teacher(str(foreign[1]))[0]
    model = make_vjepa(teacher_hidden_size=48)
    (stage,) = teacher_latents(6, 3)
    outputs = model(**batch, stage=stage, teacher=teacher)
    torch.testing.assert_close(outputs.loss, vjepa_by_hand(model, teacher, batch, 3)[0])


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_teacher_stored_in_bf16(kind, tmp_path):
    FOREIGN[kind]().to(torch.bfloat16).save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))[0]
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert teacher.tap(torch.rand(1, 4, 3, 16, 16), [3])[0].dtype == torch.float32


# A finer grid would be gathered from without an error
GRIDS = {"patch_size": [2, 8], "tubelet_size": [1, 4]}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in GRIDS.items() for value in values])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_grid_is_refused(batch, kind, name, value):
    teacher = as_teacher(FOREIGN[kind](**{name: value}))
    model = make_vjepa(teacher_hidden_size=48)
    (stage,) = teacher_latents(6, 3)
    with pytest.raises(ValueError, match="must have .* tokens.*give the teacher the grid of the encoder"):
        model(**batch, stage=stage, teacher=teacher)


@pytest.mark.parametrize(
    "settings, mean, std",
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}, [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]),
        ({"do_normalize": False}, [0, 0, 0], [1, 1, 1]),
        # ViViT, whose processor brings bytes to [-1, 1] before it normalises
        ({"rescale_factor": 1 / 127.5, "offset": True, "do_normalize": False}, [0.5] * 3, [0.5] * 3),
        (None, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_pixels_are_normalised_as_the_teacher_wants_them(tmp_path, name, settings, mean, std):
    FOREIGN["videomae"]().save_pretrained(tmp_path)
    if settings is not None:
        (tmp_path / name).write_text(json.dumps(settings))
    teacher, *_ = load_teacher(str(tmp_path))
    assert teacher.config.pixel_mean == pytest.approx(mean)
    assert teacher.config.pixel_std == pytest.approx(std)
