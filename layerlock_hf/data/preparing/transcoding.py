"""Re-encoding videos for fast reading: smaller, and with a keyframe close to every frame."""

from collections.abc import Iterator
from fractions import Fraction

import av

from ...models.video_reading_opening import open_video, read_packets
from ...models.video_reading_pyav import Decoding
from ...models.video_reading_rgb import orientation_of
from .probing import VideoFacts, is_on_grid


# x264's macroblock tree reads memory that it never wrote: the same frames, if narrow, would give different bytes
ENCODER_OPTIONS = {"preset": "medium", "mbtree": "0"}
RGB, UNSPECIFIED = 0, 2  # colour matrices, as ISO/IEC 23091-2 numbers them


def needs_transcoding(facts: VideoFacts, damage: str | None, short_side: int | None, gop: int | None) -> bool:
    """Whether a video is not yet what `transcode` would make of it.

    That is undamaged, H.264, 4:2:0, upright, with square pixels, no larger than `short_side` and with keyframes no
    further apart than `gop`. Without both limits none is re-encoded.
    """
    if short_side is None and gop is None:
        return False
    return (
        damage is not None
        or (facts.codec, facts.rotation, facts.sample_aspect_ratio) != ("h264", 0, 1)
        or facts.pixel_format not in ("yuv420p", "yuvj420p")
        or short_side is not None
        and min(facts.height, facts.width) > short_side
        or gop is not None
        and facts.keyframe_interval > gop
    )


def target_size(facts: VideoFacts, short_side: int | None) -> tuple[int, int]:
    """Height and width of the re-encoded video: even, of square pixels, and nowhere larger than the video is."""
    ratio = facts.sample_aspect_ratio if facts.rotation % 180 == 0 else 1 / facts.sample_aspect_ratio
    height, width = facts.height / max(1, ratio), facts.width * min(1, ratio)
    scale = 1 if short_side is None else min(1, short_side / min(height, width))
    return max(2, round(height * scale) // 2 * 2), max(2, round(width * scale) // 2 * 2)


def transcode(
    source: str, target: str, facts: VideoFacts, short_side: int | None = None, gop: int | None = None, crf: int = 23
) -> None:
    """Write a video as H.264 in an mp4 file whose header comes first, without sound.

    Frames keep their times, from 0 on, so a variable frame rate stays one; where the container could only round a
    constant rate (Matroska: to milliseconds), it is written exactly. Colours keep their tags; nothing is tone-mapped
    or deinterlaced. The same source and versions of the libraries give the same bytes.

    Args:
        source: the file.
        target: the file to write.
        facts: of `probe_video`; frames after the damage are left out.
        short_side: pixels of the shorter side, if it is longer.
        gop: the most frames from one keyframe to the next; x264's 250 by default.
        crf: quality of x264, 0 (lossless) to 51.

    Raises:
        av.FFmpegError: when a frame cannot be decoded or the target not be written.
    """
    height, width = target_size(facts, short_side)
    with (
        open_video(source) as container,
        av.open(target, "w", format="mp4", options={"movflags": "faststart"}) as output,
    ):
        stream = container.streams.best("video")
        rate = _constant_rate(source)
        encoder = output.add_stream("libx264", rate=rate or Fraction(facts.fps).limit_denominator(1001))
        context = encoder.codec_context
        context.time_base = 1 / rate if rate else stream.time_base
        context.thread_count = 1  # with more, the bytes depend on their number
        context.height, context.width, context.pix_fmt = height, width, "yuv420p"
        context.options = {"crf": str(crf), **ENCODER_OPTIONS}
        if gop is not None:
            context.gop_size = gop
        start = None
        for index, frame in enumerate(_filtered(source, stream, facts, height, width)):
            if start is None:
                start = frame.pts
                for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
                    setattr(context, name, getattr(frame, name))
            frame.pts = index if rate else frame.pts - start
            frame.time_base = context.time_base
            frame.pict_type = av.video.frame.PictureType.NONE  # else every keyframe of the source stays one
            output.mux(encoder.encode(frame))
        output.mux(encoder.encode(None))


def _filtered(
    source: str, stream: av.VideoStream, facts: VideoFacts, height: int, width: int
) -> Iterator[av.VideoFrame]:
    """The frames before the damage, turned upright and scaled."""
    graph = None
    for index, frame in enumerate(Decoding(source)):
        if index == facts.num_frames:
            return
        if graph is None:
            graph = _graph(stream, orientation_of(frame), height, width)
        # Unless hidden from it, the graph converts the colours to another matrix
        colorspace, frame.colorspace = frame.colorspace, UNSPECIFIED
        graph.vpush(frame)
        frame = graph.vpull()
        frame.colorspace = colorspace if colorspace != RGB else UNSPECIFIED
        yield frame


def _graph(stream: av.VideoStream, orientation: tuple[bool, int, int], height: int, width: int) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    lies_on_side, row_step, column_step = orientation
    turns = [("transpose", "cclock_flip")] * lies_on_side  # swaps rows and columns
    turns += [("vflip", "")] * (row_step < 0) + [("hflip", "")] * (column_step < 0)
    chain = [
        graph.add_buffer(template=stream),
        *(graph.add(name, arguments) for name, arguments in turns),
        graph.add("scale", f"{width}:{height}:flags=bicubic:out_range=tv"),
        graph.add("format", "yuv420p"),
        graph.add("setsar", "1"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*chain).configure()
    return graph


def _constant_rate(source: str) -> Fraction | None:
    """The frame rate that the header states, if the frames keep to it."""
    with open_video(source) as container:
        stream = container.streams.best("video")
        rate = stream.average_rate or stream.guessed_rate
        packets = (packet for packet in read_packets(container, stream) if packet is not None)
        timestamps = [packet.pts for packet in packets if packet.size and not packet.is_discard]
    if rate is None or not timestamps or None in timestamps:
        return None
    # A tick more than rounding: the first timestamp is rounded too
    return rate if is_on_grid(sorted(timestamps), 1 / (rate * stream.time_base), tolerance=Fraction(1)) else None
