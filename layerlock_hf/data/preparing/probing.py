"""The facts of one video file: what it holds, whether all of it decodes, and how fast its frames are found."""

from dataclasses import dataclass
from fractions import Fraction

import av

from ...models.video_reading_opening import open_video, read_packets
from ..clips import DecodingError, one_line
from ..decoding import read_clip


NUM_ENDS = 8  # frames at each end that `decode_all=False` decodes


@dataclass(frozen=True)
class VideoFacts:
    """What is known about the best video stream of a file.

    Attributes:
        num_frames: number of frames that decode before the first damage.
        fps: average frames per second.
        duration: seconds that these frames are shown.
        height: pixels of a frame that is turned upright.
        width: as `height`.
        rotation: degrees counterclockwise by which the stored frames are turned: 0, 90, 180 or 270.
        sample_aspect_ratio: width of a stored pixel over its height.
        codec: name of the codec.
        pixel_format: name of the stored frames' format.
        keyframe_interval: the most frames from one keyframe to the next, or to the end.
        has_constant_frame_rate: whether a frame is found by its number alone. The header knows how many frames there
            are, all follow each other at the rate that it states, to the rounding of the timestamps, and none that
            is shown before a keyframe is stored after it. torchcodec's approximate mode is then exact.
    """

    num_frames: int
    fps: float
    duration: float
    height: int
    width: int
    rotation: int
    sample_aspect_ratio: float
    codec: str
    pixel_format: str
    keyframe_interval: int
    has_constant_frame_rate: bool


def probe_video(path: str, decode_all: bool = True) -> tuple[VideoFacts, str | None]:
    """Decode a video file to find its facts, and what is wrong with it.

    Args:
        path: the file.
        decode_all: decode every frame: a file may be damaged anywhere. Otherwise only `NUM_ENDS` frames at each end,
            and the number of frames is that of the stored packets.

    Returns:
        The facts, and what is wrong with a video that decodes in part, or None.

    Raises:
        DecodingError: when nothing can be decoded.
    """
    clip = read_clip(path, _first if decode_all else _both_ends)
    try:
        scan = _scan(path, decode_all)
    except (av.FFmpegError, RuntimeError, ValueError) as error:
        raise DecodingError(one_line(error)) from error
    if decode_all:
        num_frames = scan.num_frames
    else:
        num_frames = clip.num_frames if clip.is_partial else len(scan.timestamps) or clip.num_frames
    if num_frames == 0:
        raise DecodingError("no frame can be decoded")
    damage = scan.damage or (clip.note if clip.is_partial else None)
    return _facts(scan, num_frames, tuple(clip.frames.shape[-2:]), damage is None), damage


def is_on_grid(timestamps: list[int], step: Fraction, tolerance: Fraction = Fraction(1, 2)) -> bool:
    """Whether ascending timestamps follow each other in equal steps, but for their rounding to whole numbers."""
    return all(abs(value - timestamps[0] - index * step) <= tolerance for index, value in enumerate(timestamps))


@dataclass
class _Scan:
    """What one pass over a file finds; `timestamps` ascend, in units of `time_base` seconds, or None are known."""

    timestamps: list[int]
    time_base: Fraction
    rate: Fraction | None
    claimed: int
    num_frames: int
    rotation: int
    sample_aspect_ratio: float
    codec: str
    pixel_format: str
    keyframe_interval: int
    has_leading_frames: bool
    damage: str | None


def _scan(path: str, decode_all: bool) -> _Scan:
    with open_video(path) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"  # so that an error shows where it is
        stored, shown, first = [], [], None
        num_packets = num_corrupt = num_lost = 0
        for packet in read_packets(container, stream):
            if packet is not None:
                num_packets += packet.dts is not None or packet.size > 0
                if packet.size and not packet.is_discard:
                    stored.append((packet.pts, packet.is_keyframe))
            if first is not None and (not decode_all or num_lost):
                continue
            try:
                frames = stream.decode(packet)
            except av.FFmpegError:
                # What precedes the first frame may be the rest of a group of pictures that starts elsewhere
                if shown:
                    num_lost += 1
                    frames = stream.decode(None)
                else:
                    frames = []
            num_corrupt += sum(frame.is_corrupt for frame in frames)
            shown += [frame.pts for frame in frames]
            first = first or next(iter(frames), None)
        if first is None:
            raise DecodingError("no frame can be decoded")
        timestamps = shown if decode_all else [pts for pts, _ in stored]
        # Only this header counts what is stored. That of AVI also counts frames that are repeated
        is_cut = "mp4" in container.format.name and stream.frames > num_packets
        damage = None
        if num_lost or is_cut:
            damage = f"only {len(timestamps)} of {max(stream.frames, len(stored))} frames decode"
        elif num_corrupt:
            damage = f"only {len(shown) - num_corrupt} of {len(shown)} frames decode without damage"
        elif packet is None:
            damage = "cannot be read to its end"
        return _Scan(
            timestamps=[] if None in timestamps else sorted(timestamps),
            time_base=stream.time_base,
            rate=stream.average_rate or stream.guessed_rate,
            claimed=stream.frames,
            num_frames=len(shown),
            rotation=round(first.rotation / 90) * 90 % 360,
            sample_aspect_ratio=float(stream.sample_aspect_ratio or 1),
            codec=stream.codec.canonical_name,
            pixel_format=stream.codec_context.pix_fmt or first.format.name,
            keyframe_interval=_keyframe_interval([is_keyframe for _, is_keyframe in stored]),
            has_leading_frames=_has_leading_frames(stored),
            damage=damage,
        )


def _facts(scan: _Scan, num_frames: int, size: tuple[int, int], is_whole: bool) -> VideoFacts:
    timestamps = scan.timestamps[:num_frames]
    span = (timestamps[-1] - timestamps[0]) * scan.time_base if timestamps else 0
    is_even = bool(timestamps and scan.rate) and is_on_grid(timestamps, 1 / (scan.rate * scan.time_base))
    fps = scan.rate if is_even or not span else (num_frames - 1) / span
    fps = float(fps) if fps else 1.0  # a single frame without a time: one second
    return VideoFacts(
        num_frames=num_frames,
        fps=fps,
        duration=num_frames / fps,
        height=size[0],
        width=size[1],
        rotation=scan.rotation,
        sample_aspect_ratio=scan.sample_aspect_ratio,
        codec=scan.codec,
        pixel_format=scan.pixel_format,
        keyframe_interval=scan.keyframe_interval,
        has_constant_frame_rate=(is_whole and is_even and scan.claimed == num_frames and not scan.has_leading_frames),
    )


def _keyframe_interval(is_keyframe: list[bool]) -> int:
    starts = [index for index, value in enumerate(is_keyframe) if value]
    edges = [0, *starts, len(is_keyframe)]
    return max(end - start for start, end in zip(edges[:-1], edges[1:], strict=True))


def _has_leading_frames(stored: list[tuple[int | None, bool]]) -> bool:
    """Whether a frame is shown before the keyframe that precedes it in the file: a seek to that keyframe misses it."""
    keyframe = None
    for pts, is_keyframe in stored:
        if pts is None:
            return True
        if is_keyframe:
            keyframe = pts
        elif keyframe is not None and pts < keyframe:
            return True
    return False


def _first(num_frames: int) -> list[int]:
    return [0]


def _both_ends(num_frames: int) -> list[int]:
    return sorted({*range(min(NUM_ENDS, num_frames)), *range(max(0, num_frames - NUM_ENDS), num_frames)})
