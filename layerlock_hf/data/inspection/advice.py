"""Advice from the measured times of the steps of data loading."""

import math
from dataclasses import dataclass

import numpy as np

from .steps import MAIN_STEPS, MAX_PACKETS, WORKER_STEPS, Look


# Frames between keyframes that `layerlock prepare` is advised to write
GOP = 16
# Share of N times the rate of one worker from which on N workers count as independent of each other
GOOD_SCALING = 0.7
# Times that a worker may take over the sum of the steps before it is told
SURPRISE = 1.5
# Load average per core from which on other programs count
BUSY = 0.25


@dataclass
class Measured:
    """Everything that the advice is based on.

    Attributes:
        looks: the clips whose steps were timed.
        per_clip: seconds per clip of the steps that concern a batch.
        rates: clips per second by number of workers.
        num_workers: of the recipe.
        num_cores: that this process may use.
        load: processes that ran or waited for a core in the minute before.
        has_gpu: whether batches go to one.
        image_size: side of the model's frames in pixels.
        span: frames of a video from the first to the last one of a clip.
        shortest_side: pixels of the shortest side of a video below which clips would be enlarged.
        clips_per_video: for which a video is decoded once.
        clips_per_step: of one process.
        step_seconds: that the model takes for a step, None if unknown.
    """

    looks: list[Look]
    per_clip: dict[str, float]
    rates: dict[int, float]
    num_workers: int
    num_cores: int
    load: float
    has_gpu: bool
    image_size: int
    span: int
    shortest_side: int
    clips_per_video: int
    clips_per_step: int
    step_seconds: float | None = None

    def seconds(self) -> dict[str, list[float]]:
        """Per clip, by step, in the order of the steps: of every clip, or one value for those of a batch."""
        found = {}
        for step in (*WORKER_STEPS, *MAIN_STEPS):
            times = [self.per_clip[step]] if step in self.per_clip else []
            times += [look.seconds[step] for look in self.looks if step in look.seconds]
            if times:
                found[step] = times
        return found

    def means(self) -> dict[str, float]:
        """Mean seconds per clip of the steps of a worker: the rate depends on them, not on medians."""
        return {step: float(np.mean(times)) for step, times in self.seconds().items() if step in WORKER_STEPS}


def advice(measured: Measured) -> list[str]:
    """Where the time goes, and what to change; the first sentence is the verdict."""
    means = measured.means()
    whole = sum(means.values())
    slowest = max(means, key=means.get)
    share = means[slowest] / whole
    sentences = [f"{slowest}: {share:.0%} of the {1000 * whole:.1f} ms that a worker spends on a clip on average."]
    sentences += ADVICE[slowest](measured)
    sentences += _about_workers(measured, slowest)
    sentences += _about_main_process(measured)
    if 1 / measured.rates[1] > SURPRISE * whole:
        sentences.append(
            f"In use, one worker took {1000 / measured.rates[1]:.1f} ms per clip: either its videos differ from the "
            f"{len(measured.looks)} timed above (--num_clips), or it got too little of the cores."
        )
    if measured.load > BUSY * measured.num_cores:
        sentences.append(
            f"The {measured.num_cores} cores were busy before this began (load average {measured.load:.1f}): "
            "alone, all this goes faster."
        )
    return sentences + _about_model(measured)


def _about_fetching(measured: Measured) -> list[str]:
    return [
        "Fetching waits rather than computes, and was timed one video at a time: a worker fetches several remote ones "
        "at once. More workers help even beyond the number of cores, a copy of the videos on a local disk helps more."
    ]


def _about_decoding(measured: Measured) -> list[str]:
    facts = _typical(measured)
    size = f"The typical video is {facts.width}x{facts.height} ({facts.codec})"
    short, needed = min(facts.height, facts.width), measured.shortest_side
    options, sentences = [], []
    if short > 1.25 * needed:
        options.append(f"--short_side {needed}")
        pixels = (short / needed) ** 2
        sentences.append(
            f"{size}, while clips need {needed} pixels of its shortest side: that is {pixels:.1f} times the pixels."
        )
    interval = float(np.median([look.facts.keyframe_interval for look in measured.looks]))
    if interval > max(GOP, measured.span):
        options.append(f"--gop {GOP}")
        often = f"{interval:.0f} frames" + (" or more" if interval >= MAX_PACKETS else "")
        sentences.append(
            f"A keyframe comes every {often}: about {interval / 2:.0f} frames are decoded on the way to the "
            f"{measured.span} that a clip spans; with one every {GOP} it would be {GOP // 2}."
        )
    if options:
        sentences.append(f"layerlock prepare VIDEOS OUT {' '.join(options)} writes such videos once and for all.")
    else:
        sentences.append(
            f"{size} with a keyframe every {interval:.0f} frames: preparing the videos again would gain little."
        )
    if measured.clips_per_video == 1:
        sentences.append("clips_per_video 4 would decode a video once for 4 clips.")
    return sentences


def _about_transforming(measured: Measured) -> list[str]:
    box = np.median([look.augmentation.box[2:] for look in measured.looks], axis=0)
    side, is_crop = measured.image_size, measured.looks[0].is_crop
    done = "copied as they are" if is_crop else f"resized to {side}x{side}"
    sentences = [f"Crops of {box[1]:.0f}x{box[0]:.0f} pixels (median) are {done}."]
    if min(box) > 1.25 * side:
        sentences.append(
            f"layerlock prepare VIDEOS OUT --short_side {measured.shortest_side} makes them smaller for good."
        )
    if measured.has_gpu and not is_crop:
        sentences.append("augment_on_device true does it on the GPU.")
    return sentences


def _about_handing_over(measured: Measured) -> list[str]:
    return [
        "Clips come from a child process, which a bad video may crash without harm. With videos known to be good "
        "(layerlock prepare makes them), decode_timeout 0 makes clips in the worker itself."
    ]


def _about_collating(measured: Measured) -> list[str]:
    return ["That is drawing masks and copying clips into a batch: the rest of the pipeline has little left to gain."]


ADVICE = {
    "fetch": _about_fetching,
    "decode": _about_decoding,
    "transform": _about_transforming,
    "hand over": _about_handing_over,
    "collate": _about_collating,
}


def _about_workers(measured: Measured, slowest: str) -> list[str]:
    num_workers, num_cores, rates = measured.num_workers, measured.num_cores, measured.rates
    if num_workers == 0:
        return [
            f"Without workers (dataloader_num_workers 0) the model waits while clips are made, {rates[0]:.1f} per "
            f"second; a worker makes {rates[1]:.1f} per second meanwhile."
        ]
    told = f"{num_workers} worker{'s' * (num_workers > 1)} on {num_cores} cores: {rates[num_workers]:.1f} clips/s"
    if num_workers > 1:
        told += f", {rates[num_workers] / rates[1]:.1f} times one worker's {rates[1]:.1f}"
    used = min(num_workers, num_cores)
    is_scaling = rates[num_workers] >= GOOD_SCALING * used * rates[1]
    if num_workers < num_cores and is_scaling:
        possible = rates[num_workers] * num_cores / num_workers
        return [
            f"{told}. With dataloader_num_workers {num_cores} it might be {possible:.0f}, if they scale as so far."
        ]
    if is_scaling:
        more = " More workers than cores help only where they wait." if slowest != "fetch" else ""
        return [f"{told}: all cores are in use.{more}"]
    return [
        f"{told}: less than independent workers would make. They share cores, disk and memory, so that more of them "
        "will not help much; or they had slower videos by chance, which a longer measurement (--seconds) evens out."
    ]


def _about_main_process(measured: Measured) -> list[str]:
    steps = [step for step in MAIN_STEPS if step in measured.per_clip]
    if not steps:
        return []
    seconds, rate = sum(measured.per_clip[step] for step in steps), max(measured.rates.values())
    told = (
        f"{' and '.join(steps)}, beside the model: {1000 * seconds:.2f} ms per clip, at most {1 / seconds:.0f} clips/s"
    )
    return [f"{told}, {'less' if 1 / seconds < rate else 'more'} than the workers make."]


def _about_model(measured: Measured) -> list[str]:
    if measured.step_seconds is None:
        return []
    wanted = measured.clips_per_step / measured.step_seconds
    rate = measured.rates[measured.num_workers]
    told = f"The model takes {wanted:.1f} clips/s ({measured.clips_per_step} per step of {measured.step_seconds:g} s)"
    if measured.num_workers and rate >= wanted:
        return [f"{told}: the workers keep up."]
    # Workers make clips while the model computes; without them one waits for the other
    waiting = 1 - rate / wanted if measured.num_workers else wanted / (wanted + rate)
    enough = math.ceil(wanted / measured.rates[1])
    return [
        f"{told}, the data come at {rate:.1f}: it waits {waiting:.0%} of the time. {enough} workers would do, if each "
        "makes as much as one alone."
    ]


def _typical(measured: Measured):
    """The facts of the video of median size."""
    facts = sorted((look.facts for look in measured.looks), key=lambda facts: facts.height * facts.width)
    return facts[len(facts) // 2]
