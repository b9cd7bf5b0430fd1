"""The pipeline "video-classification" of Transformers, which heeds `frame_sampling_rate`."""

from transformers.feature_extraction_utils import BatchFeature
from transformers.pipelines.video_classification import VideoClassificationPipeline

from .video_processing_layerlock import LayerLockVideoProcessor


class HeedingVideoClassificationPipeline(VideoClassificationPipeline):
    """As in Transformers, whose 5.23 hands only `num_frames` to a video processor and drops `frame_sampling_rate`."""

    def preprocess(self, video, num_frames: int | None = None, frame_sampling_rate: int | None = None) -> BatchFeature:
        """A clip of frames that lie `frame_sampling_rate` apart; by default as far apart as the processor has it."""
        if frame_sampling_rate is None:
            return super().preprocess(video, num_frames=num_frames)
        if not isinstance(self.video_processor, LayerLockVideoProcessor):
            return super().preprocess(video, num_frames=num_frames, frame_sampling_rate=frame_sampling_rate)
        clip = self.video_processor(
            video,
            num_frames=self.model.config.num_frames if num_frames is None else num_frames,
            frame_stride=frame_sampling_rate,
            do_sample_frames=True,
            return_tensors="pt",
        )
        return clip.to(self.dtype)
