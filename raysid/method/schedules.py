"""Quantities that depend on the number of images seen: learning rate, decay of the average, phases."""

from __future__ import annotations

import math

from raysid.config import AdversarialSettings, EMASettings, LearningRateSchedule


def learning_rate(base: float, schedule: LearningRateSchedule, images: int, total_images: int) -> float:
    """Return the learning rate of a step that begins after `images` of `total_images`.

    Warm-up counts the step itself, so the rate of the first step is above zero.
    """
    if images < schedule.warmup_images:
        return base * (images + 1) / (schedule.warmup_images + 1)
    if schedule.decay == "constant":
        return base
    span = max(total_images - schedule.warmup_images, 1)
    progress = min((images - schedule.warmup_images) / span, 1.0)
    if schedule.decay == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return base * (1 - progress * (1 - schedule.final_fraction))


def ema_beta(settings: EMASettings, images: int, batch_size: int) -> float:
    """Return the decay of the moving average for a step of `batch_size` that begins after `images` (EDM's ramp-up).

    beta = 0.5^(batch / half-life), half-life = min(H, ratio * images); 0 at 0 images.
    """
    halflife = float(settings.halflife_images)
    if settings.rampup_ratio > 0:
        halflife = min(halflife, settings.rampup_ratio * images)
    return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0


def generator_learns(adversarial: AdversarialSettings | None, images: int) -> bool:
    """True if theta is updated after `images`: SiDA's first start-up phase is over (strictly greater)."""
    return adversarial is None or _passed(adversarial.generator_start_images, images)


def adversary_acts(adversarial: AdversarialSettings | None, images: int) -> bool:
    """True if theta's loss has the adversarial term after `images`: SiDA's second start-up phase is over."""
    return adversarial is not None and _passed(adversarial.adversarial_start_images, images)


def _passed(start_images: int, images: int) -> bool:
    return start_images == 0 or images > start_images
