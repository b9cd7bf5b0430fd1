"""How other people's checkpoints want their pixels."""

from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.models.auto.video_processing_auto import get_video_processor_config


def pixel_statistics(name_or_path: str) -> dict[str, list[float]] | None:
    """How a checkpoint wants its pixels, by the file of its processor: `pixel_mean` and `pixel_std`, one value per
    colour, such that (pixel - mean) / std of pixels in [0, 1] is what the processor makes of them in bytes.

    None without such a file.

    Raises:
        ValueError: if the file does not tell.
    """
    settings = get_video_processor_config(name_or_path) or get_image_processor_config(name_or_path)
    if not settings:
        return None
    scale, offset = 1.0, 0.0
    if settings.get("do_rescale", True):
        scale = settings.get("rescale_factor", 1 / 255)
        # ViViT brings bytes to [0, 2] and subtracts 1: its processor of images where the file says so, that of videos
        # always, without a word in the file. EfficientNet has another word
        offset = float(settings.get("offset", settings.get("rescale_offset", 255 * scale > 1.5)))
    mean, std = [0.0], [1.0]
    if settings.get("do_normalize", True):
        if "image_mean" not in settings or "image_std" not in settings:
            raise ValueError("its processor's file normalises pixels but has no image_mean and image_std")
        mean, std = (
            values if isinstance(values, list) else [values]
            for values in (settings["image_mean"], settings["image_std"])
        )
    return {
        "pixel_mean": [(value + offset) / (255 * scale) for value in mean] * (3 // len(mean)),
        "pixel_std": [value / (255 * scale) for value in std] * (3 // len(std)),
    }
