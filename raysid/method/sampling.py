"""Sampling: the generator's one step, and the teacher's samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from raysid.method.denoiser import Cond, Denoiser
from raysid.method.guidance import guided
from raysid.method.noise import KARRAS_RHO, DDPMNoise, NoiseProcess, per_sample
from raysid.method.predictions import to_prediction


def one_step_from(
    network: Denoiser[Cond], noise: NoiseProcess, level: float, z: Tensor, cond: Cond | None
) -> Tensor:
    """Return x_g = D(s z, level, c), with s the noise process's scale at that level (SiD, arXiv 2404.04057).

    Args:
        level: the generator's noise level, as `NoiseProcess.start_level` returns it.
        z: standard normal noise (B, *sample_shape).
        cond: conditions of the B samples, or None.

    Returns:
        Samples like z: images, latents, points.
    """
    t = torch.full(z.shape[:1], level, device=z.device)
    return network(per_sample(noise.scales(t)[1], z) * z, t, cond)


@torch.no_grad()
def heun(
    network: Denoiser[Cond],
    z: Tensor,
    cond: Cond | None,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    scale: float = 1.0,
) -> Tensor:
    """Sample with EDM's deterministic second-order method (arXiv 2206.00364, algorithm 1): 2 steps - 1 evaluations.

    Args:
        z: standard normal noise (B, C, H, W).
        cond: conditions of the B samples, or None.
        sigma_min, sigma_max: the last and the first noise level, in the images' units.
        scale: guidance scale k; other than 1, each evaluation is two passes.

    Returns:
        Images (B, C, H, W), about [-1, 1].
    """
    high, low = sigma_max ** (1 / KARRAS_RHO), sigma_min ** (1 / KARRAS_RHO)
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    sigmas = [*((high + ramp * (low - high)) ** KARRAS_RHO).tolist(), 0.0]
    # The state is float64, as in the authors' code: the sampler makes 35 small updates to values as large as 80.
    x = z.double() * sigmas[0]
    for here, there in zip(sigmas, sigmas[1:], strict=False):
        slope = (x - _denoise(network, x, here, cond, scale)) / here
        x_next = x + (there - here) * slope
        if there > 0:
            corrected = (x_next - _denoise(network, x_next, there, cond, scale)) / there
            x_next = x + (there - here) * (slope + corrected) / 2
        x = x_next
    return x.float()


@torch.no_grad()
def ddim(
    network: Denoiser[Cond],
    noise: DDPMNoise,
    z: Tensor,
    cond: Cond | None,
    steps: int = 50,
    scale: float = 1.0,
) -> Tensor:
    """Sample with DDIM's deterministic method (arXiv 2010.02502, equation 12 at sigma 0): `steps` network evaluations.

    The steps are spread evenly over the schedule, from the last to step 0; the result is the prediction at step 0.

    Args:
        z: standard normal noise (B, C, H, W).
        cond: conditions of the B samples, or None.
        scale: guidance scale k; other than 1, each evaluation is two passes.

    Returns:
        Images (B, C, H, W), about [-1, 1].
    """
    levels = torch.linspace(len(noise.alphas_cumprod) - 1, 0, steps).round().long().tolist()
    x_t, x_hat = z, z
    for here, there in zip(levels, [*levels[1:], None], strict=True):
        t = torch.full(z.shape[:1], here, device=z.device)
        x_hat = _predict(network, x_t, t, cond, scale)
        if there is not None:
            eps_hat = to_prediction("epsilon", x_hat, x_t, *noise.scales(t))
            x_t = noise.add_noise(x_hat, torch.full_like(t, there), eps_hat)
    return x_hat


def _denoise(network: Denoiser[Cond], x: Tensor, sigma: float, cond: Cond | None, scale: float) -> Tensor:
    t = torch.full(x.shape[:1], sigma, device=x.device, dtype=torch.float32)
    return _predict(network, x.float(), t, cond, scale).double()


def _predict(network: Denoiser[Cond], x_t: Tensor, t: Tensor, cond: Cond | None, scale: float) -> Tensor:
    return network(x_t, t, cond) if scale == 1.0 else guided(network, x_t, t, cond, scale)[0]
