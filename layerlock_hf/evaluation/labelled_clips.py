"""Clips of labelled videos, to train a readout and to test it."""

import itertools
from collections.abc import Sequence

import torch

from ..data import (
    DECODE_TIMEOUT,
    ClipTransform,
    Crop,
    DecodingError,
    PretrainingClips,
    check_window,
    fetch,
    is_remote,
    isolated,
    name_of,
    read_clip,
    repeat_last_frame,
)


class TrainingClips(torch.utils.data.Dataset):
    """The clips of a run with the labels of the videos that they show: those of a replacement where one is shown.

    Args:
        clips: of the videos, as functions of seed and position only.
        labels: class of every video of `clips`, counted from 0.
        is_still: show the middle frame only, see `still`.

    Raises:
        ValueError: if the labels do not fit the videos, or the clips are not finished.
    """

    def __init__(self, clips: PretrainingClips, labels: Sequence[int], is_still: bool = False):
        _check_labels(labels, len(clips.videos))
        if clips.augment_on_device:
            raise ValueError("augment_on_device of the clips must be False, got True: the clips would be unfinished")
        self.clips, self.labels, self.is_still = clips, labels, is_still

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> dict:
        """Clip `position` of the run.

        Returns:
            pixel_values_videos: uint8, shape (T, C, S, S).
            labels: the class.
            position: the position.
        """
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict]:
        """The clips of several positions, at less cost than one by one."""
        return [
            {
                "pixel_values_videos": _shown(sample["pixel_values_videos"], self.is_still),
                "labels": self.labels[sample["video_index"]],
                "position": sample["position"],
            }
            for sample in self.clips.__getitems__(positions)
        ]


class TestClips(torch.utils.data.Dataset):
    """Equally spaced clips of every video, in order: the first begins with it and the last ends with it.

    Nothing is random. A single clip shows the middle of the video; a video that is too short repeats its last frame.

    Args:
        videos: the dataset of `load_videos`.
        labels: class of every video, counted from 0.
        num_frames: frames T of a clip.
        frame_stride: distance between consecutive frames of a clip.
        transform: that of the training clips, at whose scale the centre is seen.
        num_windows: clips K per video (LayerLock, sec. A.4.2: 7 for Kinetics).
        frame_rate: frames per second at which `frame_stride` counts; by default each video's own.
        is_still: show the middle frame of every clip only, see `still`.
        decode_timeout: seconds before giving up on a video that hangs; 0 decodes in this process, without a limit.

    Raises:
        ValueError: if the labels do not fit the videos, or a value is out of its bounds.
    """

    def __init__(
        self,
        videos,
        labels: Sequence[int],
        num_frames: int = 16,
        frame_stride: int = 2,
        transform: ClipTransform | None = None,
        num_windows: int = 1,
        frame_rate: float | None = None,
        is_still: bool = False,
        decode_timeout: float = DECODE_TIMEOUT,
    ):
        _check_labels(labels, len(videos))
        check_window(num_frames, frame_stride, frame_rate)
        if num_windows < 1:
            raise ValueError(f"num_windows must be at least 1, got {num_windows}")
        self.videos, self.labels = videos, labels
        self.num_frames, self.frame_stride, self.num_windows = num_frames, frame_stride, num_windows
        self.transform = ClipTransform() if transform is None else transform
        self.frame_rate = frame_rate
        self.is_still = is_still
        self._read = isolated(self._read_video, decode_timeout)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict:
        """The clips of video `index`.

        Returns:
            pixel_values_videos: uint8, shape (K, T, C, S, S).
            labels: the class.
            index: the index.
            size: height and width of the video's frames in pixels, as a player shows them.
            note: None, or what is wrong with a video that decodes only in part.

            Of a video that cannot be decoded instead:
            index: the index.
            name: path of the video.
            error: the reason.
            kind: a word or two by which reasons are counted.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be at least 0 and less than {len(self)}, the number of videos, got {index}")
        row = self.videos[index]
        try:
            # A network has limits of time of its own
            frames, size, note = self._read(row, fetch(row) if is_remote(row) else None)
        except DecodingError as error:
            return {"index": index, "name": name_of(row, index), "error": str(error), "kind": error.kind}
        return {
            "pixel_values_videos": _shown(torch.from_numpy(frames), self.is_still),
            "labels": self.labels[index],
            "index": index,
            "size": torch.tensor(size),
            "note": note,
        }

    def windows(self, available: int) -> list[list[int]]:
        """The frames of a video of `num_frames` frames that each clip shows."""
        last = max(0, available - (self.num_frames - 1) * self.frame_stride - 1)
        gaps = self.num_windows - 1
        starts = [last // 2] if gaps == 0 else [round(last * number / gaps) for number in range(self.num_windows)]
        return [list(range(start, available, self.frame_stride))[: self.num_frames] for start in starts]

    def _read_video(self, row: dict, source: bytes | None):
        """The clips as an array, the size of the frames, and the note of the decoder."""
        size = None

        def box(height: int, width: int, pixel_aspect: float) -> tuple[int, int, int, int]:
            nonlocal size
            size = height, max(1, round(width * pixel_aspect))
            return self.transform.center(height, width, pixel_aspect).box

        def wanted(available: int) -> list[int]:
            return sorted(set(itertools.chain(*self.windows(available))))

        source = fetch(row) if source is None else source
        clip = read_clip(source, wanted, Crop(box, self.transform.image_size), self.frame_rate)
        # Of a damaged video fewer frames decode than were chosen from first
        places = {frame: place for place, frame in enumerate(wanted(clip.num_frames))}
        clips = [
            repeat_last_frame(clip.frames[[places[frame] for frame in window]], self.num_frames)
            for window in self.windows(clip.num_frames)
        ]
        return torch.stack(clips).numpy(), size, clip.note


def still(frames: torch.Tensor) -> torch.Tensor:
    """Show the middle frame all the time, (..., T, C, H, W): what is known then is known without any motion."""
    middle = frames.shape[-4] // 2
    return frames[..., middle : middle + 1, :, :, :].expand_as(frames).contiguous()


def _shown(frames: torch.Tensor, is_still: bool) -> torch.Tensor:
    return still(frames) if is_still else frames


def _check_labels(labels: Sequence[int], num_videos: int):
    if len(labels) != num_videos:
        raise ValueError(f"labels must be one per video, got {len(labels)} for {num_videos} videos")
