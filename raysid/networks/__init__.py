"""EDM's U-Nets as denoisers: DDPM++, NCSN++ and ADM under EDM's own parameter names and settings."""

from __future__ import annotations

from raysid.networks.edm import EDMDenoiser
from raysid.networks.settings import NetworkSettings

__all__ = ["EDMDenoiser", "NetworkSettings", "build_denoiser"]


def build_denoiser(settings: NetworkSettings) -> EDMDenoiser:
    """A denoiser with EDM's initial weights, in train mode, on torch's default device."""
    return EDMDenoiser(settings)
