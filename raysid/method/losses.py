"""The losses of SiD and SiDA as pure functions of tensors.

They take images (B, C, H, W), or samples of another shape, and return one number per sample; the caller sums, masks
and divides. Symbols are those of docs/method.md: x_g is a generated image, x_teacher and x_fake the two predictions of
the clean image from x_t.

Sources: SiD = arXiv 2404.04057, SiDA = arXiv 2410.14919, EDM = arXiv 2206.00364.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_WEIGHT = 1e-5
LOGIT_LIMIT = 10.0


def image_sum(value: Tensor) -> Tensor:
    """Sum over all dimensions but the batch: (B, ...) -> (B,)."""
    return value.flatten(1).sum(1)


def finite_samples(*tensors: Tensor) -> Tensor:
    """Return the mask of the samples that are finite in all of `tensors` (B, ...): bool (B,).

    A sample that is not finite is left out of the loss while the divisor stays B, so one bad sample does not spoil the
    update of the others.
    """
    good = torch.ones(tensors[0].shape[0], dtype=torch.bool, device=tensors[0].device)
    for tensor in tensors:
        good &= tensor.flatten(1).isfinite().all(1)
    return good


def sid_weight(x_g: Tensor, x_teacher: Tensor) -> Tensor:
    """Return w = mean over pixels of |x_g - x_teacher|, at least 1e-5, without gradient: (B,).

    1 for a sample that is not finite: 0 / NaN would put a NaN into the gradient of its whole group.
    """
    with torch.no_grad():
        weight = (x_g - x_teacher).abs().flatten(1).mean(1).clamp(min=MIN_WEIGHT)
        return torch.where(weight.isfinite(), weight, 1.0)


def sid_loss(x_g: Tensor, x_teacher: Tensor, x_fake: Tensor, alpha: float) -> Tensor:
    """Return the score-identity loss of each sample (SiD), shape (B,).

    sum over pixels of (x_teacher - x_fake) * ((x_teacher - x_g) - alpha (x_teacher - x_fake)) / w.
    The gradient must reach the generator through all three arguments: x_teacher and x_fake depend on x_t, which depends
    on x_g.
    """
    gap = x_teacher - x_fake
    return image_sum(gap * ((x_teacher - x_g) - alpha * gap)) / sid_weight(x_g, x_teacher)


def adversarial_loss(logits: Tensor, x_g: Tensor, x_teacher: Tensor, group_size: int) -> Tensor:
    """Return the generator's adversarial term of each sample (SiDA), shape (B,).

    C*H*W * BCE(clamp(logits, -10, 10), 1) / w, the BCE averaged over the logit map and over the sample's
    group of `group_size` images (the paper's "fakeness per GPU batch").

    Args:
        logits: the fake score's encoder map at x_t, (B, 1, h, w).
        group_size: images per group; divides B.
    """
    fakeness = grouped_mean(_bce(logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), 1.0), group_size)
    return x_g[0].numel() * fakeness / sid_weight(x_g, x_teacher)


def generator_loss(
    x_g: Tensor,
    x_teacher: Tensor,
    x_fake: Tensor,
    alpha: float,
    sid_scale: float,
    logits: Tensor | None = None,
    adversarial_scale: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the generator's loss, summed over the good samples of a batch.

    Without logits: sid_scale * L_SiD. With them, half of each term: (sid_scale * L_SiD +
    adversarial_scale * L_adv) / 2 (SiDA). A sample that is not finite in x_g, x_teacher or x_fake
    contributes nothing, and its logits are left out of its group's average.

    Returns:
        (loss, sid_scale * L_SiD, adversarial_scale * L_adv), scalars; the last is zero without logits.
    """
    good = finite_samples(x_g, x_teacher, x_fake)
    sid = sid_scale * torch.where(good, sid_loss(x_g, x_teacher, x_fake, alpha), 0.0).sum()
    if logits is None:
        return sid, sid.detach(), torch.zeros_like(sid)
    logits = torch.where(good[:, None, None, None], logits, torch.nan)
    adversarial = adversarial_loss(logits, x_g, x_teacher, group_size)
    adversarial = adversarial_scale * torch.where(good, adversarial, 0.0).sum()
    return (sid + adversarial) / 2, sid.detach(), adversarial.detach()


def denoising_loss(x_hat: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted denoising error of each sample, sum over pixels of weight (x_hat - x)^2: (B,).

    `weight` (B,) comes from the noise process. With lambda(sigma) of EDM's table 1 this is EDM's training loss; with
    DDPM's signal-to-noise ratio it is the squared error in epsilon, and with snr / (snr + 1) that in v.
    """
    return weight * image_sum((x_hat - x) ** 2)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, weight: Tensor, group_size: int) -> Tensor:
    """Return the discriminator's loss of each sample (SiDA), shape (B,).

    lambda(sigma) * (BCE(real, 1) + BCE(fake, 0)) / 2, each BCE averaged over its map and its group.

    Args:
        real_logits, fake_logits: encoder maps at the same sigma and the same eps, (B, 1, h, w).
        weight: lambda(sigma), (B,).
    """
    real = grouped_mean(_bce(real_logits, 1.0), group_size)
    fake = grouped_mean(_bce(fake_logits, 0.0), group_size)
    return weight * (real + fake) / 2


def grouped_mean(value: Tensor, group_size: int) -> Tensor:
    """Average over the map and over each group of `group_size` consecutive samples: (B, 1, h, w) -> (B,).

    Every sample gets the mean of its group. A sample whose map has a NaN is left out of its group's mean.
    """
    per_image = value.flatten(1).mean(1)
    good = ~per_image.isnan()
    groups = torch.where(good, per_image, 0.0).reshape(-1, group_size)
    counted = good.reshape(-1, group_size).sum(1).clamp(min=1)
    return (groups.sum(1) / counted).repeat_interleave(group_size)


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")
