"""Settings of the method: SiD (arXiv 2404.04057), SiDA (arXiv 2410.14919), SiD-LSG (arXiv 2406.01561)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysid.config.settings import COMMON, Count, Fraction, Positive, Settings


class AdversarialSettings(Settings):
    """The adversarial term of SiDA."""

    generator_weight: float = Field(0.01, ge=0, description="Weight of the adversarial term in theta's loss.")
    discriminator_weight: float = Field(
        1.0, ge=0, description="Weight of the discriminator's term in psi's loss."
    )
    group_size: Positive = Field(
        32,
        description="Images over which the adversarial losses are averaged (the papers' batch per GPU); divides the "
        "microbatch.",
    )
    generator_start_images: Count = Field(
        100_000, description="Images after which theta is updated; 0: from the start."
    )
    adversarial_start_images: Count = Field(
        200_000, description="Images after which the adversarial term is part of theta's loss; 0: at once."
    )
    clip_gradient: float = Field(
        1.0, gt=0, description="Bound of the absolute value of each element of psi's gradients."
    )


class GuidanceSettings(Settings):
    """Guidance scales of SiD-LSG (arXiv 2406.01561): uncond + k (cond - uncond)."""

    train_fake: float = Field(1.0, ge=0, description="k1: scale of the fake score in its own training.")
    eval_fake: float = Field(1.0, ge=0, description="k2 = k3: scale of the fake score in theta's loss.")
    eval_teacher: float = Field(1.0, ge=0, description="k4: scale of the teacher in theta's loss.")
    condition_drop: Fraction = Field(
        0.1,
        description="Probability of dropping psi's condition in training, if train_fake or eval_fake is not 1.",
    )

    @property
    def drops_conditions(self) -> bool:
        """True if psi must also learn to work without its condition."""
        return (self.train_fake, self.eval_fake) != (1.0, 1.0) and self.condition_drop > 0


class MethodSettings(Settings):
    alpha: Annotated[float, COMMON] = Field(1.0, description="SiD's alpha; the papers use 1.0 and 1.2.")
    sigma_init: float = Field(
        2.5,
        gt=0,
        description="Noise level (sigma) at the generator's input. Unused by networks with discrete levels, such as "
        "those of diffusers: their noise process has its own (step 625).",
    )
    tmax: int | None = Field(
        None,
        gt=0,
        le=1000,
        description="Largest time (0 to 1000) at which theta's noise levels are drawn. Default: the noise "
        "process's own, 800 for EDM's and 980 for diffusers' networks.",
    )
    sid_weight: float = Field(100.0, gt=0, description="Weight of the score-identity loss.")
    adversarial: AdversarialSettings | None = Field(
        None, description="Adversarial term of SiDA, which needs real images; `null`: SiD, without data."
    )
    guidance: GuidanceSettings = GuidanceSettings()
