"""From a row of `load_videos` to what can be decoded."""

from .decoding import DecodingError


# What a row without a value stands for
NO_VIDEO = {"path": None, "bytes": None}


def is_remote(row: dict) -> bool:
    """Whether `fetch` goes over a network."""
    return False


def fetch(row: dict) -> str | bytes:
    """The path of a local file, or the bytes of the video.

    Raises:
        DecodingError: if it cannot be had.
    """
    video = row["video"] or NO_VIDEO
    source = video["path"] if video["bytes"] is None else video["bytes"]
    if source is None:
        raise DecodingError("the row has no video", "missing")
    return source


def name_of(row: dict, index: int) -> str:
    """The name of a video in reports."""
    video = row["video"] or NO_VIDEO
    # The path of embedded bytes is a mere file name, which several rows may share.
    is_path = video["bytes"] is None and video["path"] is not None
    return video["path"] if is_path else f"row {index} ({video['path']})"
