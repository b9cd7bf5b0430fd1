"""The random masks of pretraining."""

import torch


def random_mask(
    num_tokens: int, mask_ratio: float, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the patches of one clip that the encoder sees and the order in which patches are predicted.

    Masking is uniform over space-time patches (LayerLock, sec. 3.1). The targets are ordered independently of the
    context, so that an objective which predicts a fraction of the patches takes the first ones.

    Args:
        num_tokens: number N of patches of the clip.
        mask_ratio: fraction of patches hidden from the encoder, between 0 and 1.
        generator: source of randomness.

    Returns:
        context_ids: shape (K,), K = max(1, round(N * (1 - mask_ratio))), distinct patches in random order.
        target_ids: shape (N,), all patches in random order.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; give a fraction between 0 and 1, both excluded")
    num_context = max(1, round(num_tokens * (1 - mask_ratio)))
    context_ids = torch.randperm(num_tokens, generator=generator)[:num_context].clone()
    target_ids = torch.randperm(num_tokens, generator=generator)
    return context_ids, target_ids
