"""The steps of a discrete noise process that a run uses: given, recorded by the run, or found by their sigmas."""

from __future__ import annotations

from typing import Any

import torch

from raysid.config import Config, MethodSettings
from raysid.config.method import UNRECORDED_STEPS, NoiseSteps
from raysid.config.networks import DiffusersSettings
from raysid.errors import UserError
from raysid.method.noise import DDPMNoise, NoiseProcess, sigmas_of
from raysid.networks.denoiser import AnySettings
from raysid.networks.diffusers import read_scheduler

MAX_RATIO = 1.25  # between sigma_init and the sigma of its step; neighbouring steps differ by a few percent


def with_noise_steps(config: Config, network: AnySettings, begun: MethodSettings | None) -> Config:
    """Return a config with `method.tmax`, and for a network of diffusers `method.noise_steps`, filled in.

    A run records both, so that a later release resumes it with the same numbers.

    Args:
        begun: the recorded settings of the run that this one resumes or branches from; its steps stay where `config`
            gives none.

    Raises:
        UserError: the teacher's noise process has no such steps, or none whose sigma is near `method.sigma_init`.
    """
    method = config.method
    if not isinstance(network, DiffusersSettings):
        filled = {"tmax": method.tmax or network.default_tmax}
    elif begun is not None and (begun.noise_steps is None or begun.sigma_init == method.sigma_init):
        filled = _filled(method, network, begun.noise_steps or UNRECORDED_STEPS)
    else:
        steps = _by_sigma(method.sigma_init, network)
        if method.noise_steps is None or method.noise_steps.tau is None:
            _check_sigma(method.sigma_init, network, steps.tau)
        filled = _filled(method, network, steps)
    return config.model_copy(update={"method": method.model_copy(update=filled)})


def check_noise_steps(method: MethodSettings, network: DiffusersSettings) -> None:
    """Check the steps that the settings give. Raises UserError if the network's noise process has none such."""
    if method.tmax is not None or method.noise_steps is not None:
        _filled(method, network, _by_sigma(method.sigma_init, network))


def step_warning(noise: NoiseProcess, sigma_init: float) -> str | None:
    """Return a warning if the generator of a user's `DDPMNoise` runs far from `sigma_init`, otherwise None."""
    if not isinstance(noise, DDPMNoise):
        return None
    sigma = float(sigmas_of(noise.alphas_cumprod)[noise.tau])
    if 1 / MAX_RATIO < sigma / sigma_init < MAX_RATIO:
        return None
    return (
        f"its DDPMNoise runs the generator at step {noise.tau}, where sigma is {sigma:.3g}, and method.sigma_init is "
        f"{sigma_init:g}: raysid.DDPMNoise.nearest(alphas_cumprod) finds the steps of a schedule by their sigmas"
    )


def _filled(method: MethodSettings, network: DiffusersSettings, default: NoiseSteps) -> dict[str, Any]:
    """Return `tmax` and `noise_steps`, with `default` where the settings give none. Raises UserError."""
    given = method.noise_steps.model_dump(exclude_none=True) if method.noise_steps else {}
    steps = NoiseSteps.model_validate(default.model_dump() | given)
    assert steps.tau is not None and steps.tmin is not None and steps.tmax is not None
    tmax, count = method.tmax or steps.tmax, network.scheduler.num_train_timesteps
    if steps.tau >= count:
        raise UserError(f"method.noise_steps.tau is {steps.tau}; allowed for this teacher: below {count}")
    for name, value in (("noise_steps.tmax", steps.tmax), ("tmax", tmax)):
        if not steps.tmin < value <= count:
            raise UserError(
                f"method.{name} is {value}; allowed for this teacher: integer above {steps.tmin} "
                f"(method.noise_steps.tmin), at most {count}"
            )
    return {"tmax": tmax, "noise_steps": steps}


def _by_sigma(sigma_init: float, network: DiffusersSettings) -> NoiseSteps:
    noise = DDPMNoise.nearest(_schedule(network), sigma_init)
    return NoiseSteps(tau=noise.tau, tmin=noise.tmin, tmax=noise.tmax)


def _check_sigma(sigma_init: float, network: DiffusersSettings, tau: int | None) -> None:
    """Refuse a `sigma_init` that is far from the sigma of the step nearest it."""
    sigmas = sigmas_of(_schedule(network))
    nearest = float(sigmas[tau])
    if not 1 / MAX_RATIO < nearest / sigma_init < MAX_RATIO:
        raise UserError(
            f"method.sigma_init is {sigma_init:g}, but the teacher's noise process (num_train_timesteps {len(sigmas)}) "
            f"has sigmas from {sigmas[0]:.3g} to {sigmas[-1]:.3g}, of which {nearest:.3g} is the nearest: give another "
            "sigma_init, or method.noise_steps.tau"
        )


def _schedule(network: DiffusersSettings) -> torch.Tensor:
    with torch.device("cpu"):
        return read_scheduler(network.scheduler.model_dump())[0].alphas_cumprod
