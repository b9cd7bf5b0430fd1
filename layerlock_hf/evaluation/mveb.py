"""Frozen encoders as the package `mteb` evaluates them, on MVEB, its benchmark of video embeddings.

Nothing else imports this module, so that `mteb` need not be there. T frames, C channels, H and W pixels.
"""

from collections.abc import Iterable

import numpy as np
import torch

from ..models import LayerLockVideoProcessor
from ..utils.packages import importing
from ..utils.weight_hash import hash_weights
from .encoders import load_encoder


with importing("mteb", "MVEB", "mteb"):
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.modality_collators import FramesCollator
    from mteb.models.model_meta import ScoringFunction


class MvebEncoder(AbsEncoder):
    """An encoder whose embedding of a video is the mean of its tokens at a depth.

    >>> mteb.evaluate(MvebEncoder("runs/mine"), mteb.get_tasks(["HMDB51Classification"]))  # doctest: +SKIP

    A video is seen as the benchmark's own encoders see it: as `num_frames` frames spread over all of it, whatever the
    frame stride of pretraining. Their middle square is resized to the size of the encoder's clips.

    Args:
        name_or_path: a folder or a repository, as of `load_encoder`.
        depth: layers that have passed; by default those below the readout, if the checkpoint names them, else all.
        image_size: height and width of the clips, in pixels; by default what the checkpoint was made for.
        num_frames: frames per video; likewise.
        device: to run on; by default the GPU if there is one.
        training_datasets: names of tasks of `mteb` whose videos the encoder was trained on, labels or not. Results
            tell them.

    Attributes:
        mteb_model_meta: what results are kept under. It differs with the weights, the depth and the clips: `mteb` does
            not compute again what it finds under the same name and revision.

    Raises:
        ValueError: if it cannot be loaded, or has no such depth.
    """

    def __init__(
        self,
        name_or_path: str,
        depth: int | None = None,
        image_size: int | None = None,
        num_frames: int | None = None,
        device: str | None = None,
        training_datasets: Iterable[str] = (),
    ):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_encoder(name_or_path, image_size=image_size, num_frames=num_frames).to(device)
        config = self.model.config
        if depth is None:
            depth = config.num_hidden_layers if config.readout_depth is None else config.readout_depth
        if not 0 <= depth <= config.num_hidden_layers:
            raise ValueError(f"depth must be between 0 and the {config.num_hidden_layers} layers, got {depth}")
        self.depth, self.device = depth, device
        self.processor = LayerLockVideoProcessor.from_config(config)
        last = str(name_or_path).rstrip("/").rpartition("/")[2]
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"layerlock_hf/{last}-layer{depth}-{config.num_frames}x{config.image_size}",
                "revision": hash_weights(self.model),
                "modalities": ["video"],
                "embed_dim": config.hidden_size,
                "n_parameters": self.model.num_parameters(),
                "framework": ["PyTorch", "Transformers"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "training_datasets": set(training_datasets),
            }
        )

    @torch.inference_mode()
    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs) -> np.ndarray:
        """The embeddings (n, width) of the videos of a loader, whose batches are read as frames.

        The other arguments are what `mteb` tells every encoder: about texts, and about the loader that it has made.
        """
        inputs.collate_fn = FramesCollator(num_frames=self.model.config.num_frames)
        return torch.cat([self.embed(batch["video"]) for batch in inputs]).numpy()

    def embed(self, videos: list[torch.Tensor]) -> torch.Tensor:
        """The embeddings (n, width) of clips, each uint8 (T, C, H, W) of a size of its own."""
        clips = self.processor(videos).pixel_values_videos.to(self.device)
        (tokens,) = self.model.tap(clips, [self.depth])
        return tokens.mean(dim=1).cpu()
