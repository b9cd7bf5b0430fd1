"""The loss of V-JEPA, step by step."""

import torch


def gather(tokens, ids):
    return torch.stack([clip[i] for clip, i in zip(tokens, ids, strict=True)])


def vjepa_by_hand(model, teacher, batch, depth=6):
    """Loss, and one loss per type of mask, in the words of facebookresearch/jepa."""
    with torch.no_grad():
        (whole,) = teacher.tap(batch["pixel_values_videos"], [depth])
        mean, variance = whole.mean(-1, keepdim=True), whole.var(-1, unbiased=False, keepdim=True)
        whole = (whole - mean) / (variance + 1e-5).sqrt()
    losses = []
    for mask_type, (seen, wanted) in enumerate(zip(batch["context_ids"], batch["target_ids"], strict=True)):
        (context,) = model.encoder.tap(batch["pixel_values_videos"], [6], seen)
        decoder = model.decoders["6"]
        decoded = decoder(model.encoder, context, seen, wanted, (2, 4, 4), mask_type)
        losses.append((decoder.heads["latents"](decoded) - gather(whole, wanted)).abs().mean())
    return sum(losses) / len(losses), losses
