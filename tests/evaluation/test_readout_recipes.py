"""The recipes of readouts say what the paper does (LayerLock, sec. A.4, Tables 11 and 12)."""

from dataclasses import replace

import pytest
import torch

from layerlock_hf.data.transforms import generator_for
from layerlock_hf.evaluation import arguments, compare, run
from layerlock_hf.evaluation.adapters import DEPTH, LABELLED
from layerlock_hf.evaluation.protocol import sweep_points
from layerlock_hf.evaluation.tasks import Classification, Depth
from layerlock_hf.models import LayerLockViTConfig
from layerlock_hf.recipes import list_recipes


NAMES = [one.name for one in list_recipes() if one.kind == "readouts"]


def parse(name, *flags):
    sources = ["--model", "encoder", "--data", "videos", "--output_dir", "out"]
    return arguments.parse(["--config", name, *sources, *flags])


def test_there_is_a_recipe_per_task_of_the_paper():
    assert NAMES == ["kinetics700", "scannet", "ssv2"]


@pytest.mark.parametrize("name", NAMES)
def test_what_all_tasks_share(name):
    encoder, clips, sweep, _ = parse(name)
    assert (encoder.image_size, encoder.num_frames, clips.frame_stride, clips.frame_rate) == (224, 16, 2, None)
    assert encoder.readout == "attention" and not encoder.random_weights
    assert clips.augment and not clips.is_still and not clips.ignores_aspect
    assert (sweep.num_steps, sweep.batch_size, sweep.num_examples) == (40_000, 32, 1_280_000)
    assert (sweep.warmup_steps, sweep.final_learning_rate) == (1000, 1e-7)
    assert sweep.learning_rates == [1e-4, 3e-4, 1e-3]
    assert sweep.depth_fractions == [0.25, 0.5, 0.75, 0.85, 0.95, 1.0]
    points = sweep_points(sweep, 48)
    assert len(points) == 18
    # "Layer 45" of 48 (sec. 3.6) is what enters it, in the code of 4DS
    assert {point.depth for point in points if point.depth_fraction == 0.95} == {44}


@pytest.mark.parametrize(
    "name, task, width, heads, num_test_clips, flip_probability",
    [
        ("ssv2", "classification", 768, 12, 1, 0.0),
        ("kinetics700", "classification", 1024, 16, 7, 0.5),
        ("scannet", "depth", 1024, 16, 1, 0.5),
    ],
)
def test_what_each_task_has_of_its_own(name, task, width, heads, num_test_clips, flip_probability):
    encoder, clips, *_ = parse(name)
    assert clips.task == task
    assert (encoder.readout_hidden_size, encoder.readout_num_attention_heads) == (width, heads)
    assert (clips.num_test_clips, clips.flip_probability) == (num_test_clips, flip_probability)
    assert clips.dataset in (DEPTH if task == "depth" else LABELLED)
    # Table 1 stands beside results of this name
    assert compare.PAPER_TASKS[run.name_of(clips)] == task


@pytest.mark.parametrize("name, millions", [("ssv2", 7), ("scannet", 18)])
def test_readouts_have_as_many_parameters_as_in_table_11(name, millions):
    """For the features of a ViT-L. For Kinetics the table repeats the number of SSv2, which its widths do not give."""
    encoder, clips, *_ = parse(name)
    config = LayerLockViTConfig(
        hidden_size=1024,
        num_attention_heads=16,
        readout_hidden_size=encoder.readout_hidden_size,
        readout_num_attention_heads=encoder.readout_num_attention_heads,
        image_size=encoder.image_size,
        num_frames=encoder.num_frames,
    )
    with torch.device("meta"):
        readout = (Depth(config) if clips.task == "depth" else Classification(config, 174)).build_readout()
    assert round(sum(parameter.numel() for parameter in readout.parameters()) / 1e6) == millions


@pytest.mark.parametrize("height, width", [(478, 640), (848, 478), (240, 427)])
def test_the_shorter_side_of_ssv2_is_resized_to_239(height, width):
    transform = parse("ssv2")[1].transform(224)
    # Brightness counts the pixels of the shorter side after resizing: neighbours of the clip differ by 1
    count = torch.arange(min(height, width)) * 239 / min(height, width)
    frame = count[:, None].expand(-1, width) if height < width else count.expand(height, -1)
    frames = frame.round().to(torch.uint8).expand(1, 3, height, width)
    along = 1 if height < width else 2
    for drawn in (transform.center(height, width), transform.draw(height, width, generator_for(0))):
        assert 224 * min(height, width) / drawn.box[2] == pytest.approx(239, abs=0.1)
        clip = replace(drawn, color=None).finish(drawn.crop(frames), 224)
        assert clip.shape == (1, 3, 224, 224)
        first, last = clip[0].float().select(along, 0).mean(), clip[0].float().select(along, -1).mean()
        assert last - first == pytest.approx(223, abs=1)


def test_colours_of_ssv2_change_as_in_table_12():
    transform = parse("ssv2")[1].transform(224)
    drawn = [transform.draw(240, 427, generator_for(number)) for number in range(2000)]
    assert not any(one.is_flipped for one in drawn)
    colors = [one.color for one in drawn if one.color is not None]
    grey = [color for color in colors if color.saturation == 0]
    assert len(grey) / len(drawn) == pytest.approx(0.1, abs=0.02)
    changed = [color for color in colors if color.brightness != 0]
    assert len(changed) / len(drawn) == pytest.approx(0.8, abs=0.03)
    turns = [color.hue / (2 * torch.pi) for color in changed]
    coloured = [color.saturation for color in changed if color.saturation]
    for values, lowest, highest in (
        ([color.brightness / 255 for color in changed], -0.125, 0.125),
        ([color.contrast for color in changed], 0.6, 1.4),
        (coloured, 0.6, 1.4),
        (turns, -0.2, 0.2),
    ):
        assert lowest <= min(values) < lowest + 0.02 and highest - 0.02 < max(values) <= highest
    centre = transform.center(240, 427)
    assert centre.color is None and not centre.is_flipped


@pytest.mark.parametrize("name", ["kinetics700", "scannet"])
def test_colours_are_left_alone_elsewhere(name):
    transform = parse(name)[1].transform(224)
    drawn = [transform.draw(240, 427, generator_for(number)) for number in range(200)]
    assert not any(one.color for one in drawn)
    assert sum(one.is_flipped for one in drawn) == pytest.approx(100, abs=25)
