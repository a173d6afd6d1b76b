"""Guided prediction and condition dropping (SiD-LSG, arXiv 2406.01561).

Guidance at scale k predicts uncond + k (cond - uncond). For EDM's denoisers the space of prediction is the
clean image; their unconditional call is an all-zero label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raysid.networks import EDMDenoiser


def guided(
    network: EDMDenoiser,
    x_t: Tensor,
    t: Tensor,
    cond: Tensor | None,
    scale: float,
    with_logits: bool = False,
    augment_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Predict the clean image with guidance.

    Args:
        x_t: noised images (B, C, H, W); t: noise levels (B,); cond: one-hot labels (B, label_dim) or None.
        scale: guidance scale k; at 1, or without conditions, the network runs once.
        with_logits: also return the conditional pass's encoder logits (B, 1, h, w).
        augment_labels: how the images were transformed, (B, augment_dim), for both passes; None: they were not.

    Returns:
        (x_hat (B, C, H, W), logits or None).
    """
    logits = None
    if with_logits:
        x_hat, logits = network(x_t, t, cond, augment_labels=augment_labels, return_logits=True)
    else:
        x_hat = network(x_t, t, cond, augment_labels=augment_labels)
    if scale == 1.0 or cond is None:
        return x_hat, logits
    unconditional = network(x_t, t, torch.zeros_like(cond), augment_labels=augment_labels)
    return unconditional + scale * (x_hat - unconditional), logits


def drop_conditions(cond: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """Zero the conditions (B, label_dim) of the samples whose `uniform` number (B,) is under `probability`."""
    return torch.where((uniform < probability)[:, None], 0.0, cond)
