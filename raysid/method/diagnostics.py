"""Figures that show whether a run is healthy: tensors in, tensors out, without gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from raysid.method.losses import LOGIT_LIMIT, image_sum


@torch.no_grad()
def relative_error(x_hat: Tensor, x: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
    """A denoiser's squared error on each sample, relative to that of the better of two that need no network: (B,).

    These return the noised sample itself, x_t / a_t, whose expected error is d (s_t / a_t)^2 (d: numbers in a sample),
    and zero, whose error is |x|^2. A trained denoiser stays below 1 on samples like its training data. One with
    another data range, another noise process or another prediction type does not.

    Args:
        x_hat: predictions of the clean samples (B, ...).
        x: the clean samples (B, ...).
        scales: a_t and s_t of their noise levels, each (B,).
    """
    a_t, s_t = scales
    trivial = torch.minimum(x[0].numel() * (s_t / a_t) ** 2, image_sum(x**2))
    return image_sum((x_hat - x) ** 2) / trivial


@torch.no_grad()
def batch_spread(x: Tensor) -> Tensor:
    """Mean over a sample's numbers of their standard deviation over the batch: (B, ...) -> scalar; B at least 2.

    It falls towards 0 where a generator makes the same sample from every noise.
    """
    return x.flatten(1).std(0).mean()


@torch.no_grad()
def clamped_share(logits: Tensor) -> Tensor:
    """Share of each sample's logits (B, 1, h, w) at the clamp of the adversarial loss, beyond which it has no gradient.

    Returns:
        (B,), between 0 and 1.
    """
    return (logits.abs() >= LOGIT_LIMIT).flatten(1).float().mean(1)
