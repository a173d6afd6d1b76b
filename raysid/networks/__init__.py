"""Denoisers: EDM's U-Nets (DDPM++, NCSN++, ADM) under its own parameter names, diffusers', and one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from raysid.config.networks import DiffusersSettings, FactorySettings, NetworkSettings
from raysid.errors import UserError

if TYPE_CHECKING:
    from raysid.networks.denoiser import Network
    from raysid.networks.diffusers import DiffusersDenoiser
    from raysid.networks.edm import EDMDenoiser

__all__ = ["DiffusersSettings", "EDMDenoiser", "FactorySettings", "NetworkSettings", "build_denoiser"]


@overload
def build_denoiser(settings: NetworkSettings) -> EDMDenoiser: ...


@overload
def build_denoiser(settings: DiffusersSettings) -> DiffusersDenoiser: ...


@overload
def build_denoiser(
    settings: NetworkSettings | DiffusersSettings | FactorySettings, factory: str | None = ...
) -> Network: ...


def build_denoiser(
    settings: NetworkSettings | DiffusersSettings | FactorySettings, factory: str | None = None
) -> Network:
    """A denoiser with EDM's initial weights, or diffusers', in train mode, on torch's default device.

    Args:
        factory: the function, as `package.module:function`, that may be imported and called to make a network of the
            user's own, which is then as it makes it. Settings alone, which may come from anywhere, never have
            anything imported.

    Raises:
        UserError: diffusers is not installed, or has no such U-Net; the settings ask for another function than
            `factory`, or it does not make what they say.
    """
    if isinstance(settings, FactorySettings):
        if factory != settings.factory:
            raise UserError(
                f"this network is built by {settings.factory}, a function that is not in its folder: give --factory "
                f"{settings.factory} if you trust it (in a recipe teacher.factory, in Python factory=)"
            )
        from raysid.networks.factory import build_factory

        network = build_factory(factory)
        if network.settings != settings:
            raise UserError(
                f"factory {factory} makes {_in_words(network.settings)}, where the folder's network is "
                f"{_in_words(settings)}: give the function as it was then"
            )
        return network
    if isinstance(settings, DiffusersSettings):
        from raysid.networks.diffusers import build_diffusers

        return build_diffusers(settings)
    from raysid.networks.edm import EDMDenoiser

    return EDMDenoiser(settings)


def _in_words(settings: FactorySettings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.model_dump(exclude={"factory"}).items())


def __getattr__(name: str) -> Any:
    # The networks need torch, the settings do not: `raysid config` reads those, and must answer at once.
    if name == "EDMDenoiser":
        from raysid.networks.edm import EDMDenoiser

        return EDMDenoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
