"""Denoisers: EDM's U-Nets (DDPM++, NCSN++, ADM) under its own parameter names and settings, and diffusers'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysid.networks.settings import NetworkSettings

if TYPE_CHECKING:
    from raysid.networks.edm import EDMDenoiser

__all__ = ["EDMDenoiser", "NetworkSettings", "build_denoiser"]


def build_denoiser(settings: NetworkSettings) -> EDMDenoiser:
    """A denoiser with EDM's initial weights, in train mode, on torch's default device."""
    from raysid.networks.edm import EDMDenoiser

    return EDMDenoiser(settings)


def __getattr__(name: str) -> Any:
    # The networks need torch, the settings do not: `raysid config` reads those, and must answer at once.
    if name == "EDMDenoiser":
        from raysid.networks.edm import EDMDenoiser

        return EDMDenoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
