"""Settings of the method: SiD (arXiv 2404.04057), SiDA (arXiv 2410.14919), SiD-LSG (arXiv 2406.01561)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysid.config.networks import MAX_STEPS
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


class NoiseSteps(Settings):
    """Steps of the discrete noise process of a network of diffusers."""

    tau: Count | None = Field(
        None,
        description="Step at the generator's input. Default: that whose sigma is nearest `method.sigma_init`.",
    )
    tmin: Count | None = Field(
        None, description="First step that both learners draw. Default: that whose sigma is nearest 0.138."
    )
    tmax: Positive | None = Field(
        None,
        description="One more than the last step that psi draws. Default: after that whose sigma is nearest 12.97.",
    )


UNRECORDED_STEPS = NoiseSteps(tau=625, tmin=20, tmax=980)
"""The steps of every run of release 0.1.0 with a network of diffusers, whatever its schedule."""


class MethodSettings(Settings):
    alpha: Annotated[float, COMMON] = Field(1.0, description="SiD's alpha; the papers use 1.0 and 1.2.")
    sigma_init: float = Field(
        2.5,
        gt=0,
        description="Noise level (sigma) at the generator's input; for networks of diffusers that of the step at which "
        "the generator runs.",
    )
    tmax: int | None = Field(
        None,
        gt=0,
        le=MAX_STEPS,
        description="Largest time at which theta's noise levels are drawn: 1 to 1000, or the step after the last where "
        "noise levels are steps. Default: 800 for EDM's noise process, `noise_steps.tmax` for networks of diffusers.",
    )
    noise_steps: NoiseSteps | None = Field(
        None,
        description="Steps of the noise process of a network of diffusers. Default: by their sigmas; a run records "
        "them.",
    )
    sid_weight: float = Field(100.0, gt=0, description="Weight of the score-identity loss.")
    adversarial: AdversarialSettings | None = Field(
        None, description="Adversarial term of SiDA, which needs real images; `null`: SiD, without data."
    )
    guidance: GuidanceSettings = GuidanceSettings()
