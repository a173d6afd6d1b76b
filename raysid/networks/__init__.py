"""Denoisers: EDM's U-Nets (DDPM++, NCSN++, ADM) under its own parameter names and settings, and diffusers'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from raysid.networks.settings import DiffusersSettings, NetworkSettings

if TYPE_CHECKING:
    from raysid.networks.diffusers import DiffusersDenoiser
    from raysid.networks.edm import EDMDenoiser

__all__ = ["DiffusersSettings", "EDMDenoiser", "NetworkSettings", "build_denoiser"]


@overload
def build_denoiser(settings: NetworkSettings) -> EDMDenoiser: ...


@overload
def build_denoiser(settings: DiffusersSettings) -> DiffusersDenoiser: ...


def build_denoiser(settings: NetworkSettings | DiffusersSettings) -> EDMDenoiser | DiffusersDenoiser:
    """A denoiser with EDM's initial weights, or diffusers', in train mode, on torch's default device.

    Raises:
        UserError: diffusers is not installed, or has no such U-Net.
    """
    if isinstance(settings, DiffusersSettings):
        from raysid.networks.diffusers import build_diffusers

        return build_diffusers(settings)
    from raysid.networks.edm import EDMDenoiser

    return EDMDenoiser(settings)


def __getattr__(name: str) -> Any:
    # The networks need torch, the settings do not: `raysid config` reads those, and must answer at once.
    if name == "EDMDenoiser":
        from raysid.networks.edm import EDMDenoiser

        return EDMDenoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
