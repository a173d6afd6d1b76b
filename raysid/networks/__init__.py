"""Denoisers: networks that predict the clean sample, each behind the protocol of `raysid.method.denoiser`.

    denoiser.py   the base class of all
    edm.py        EDM's preconditioning; unets.py (DDPM++, NCSN++, ADM), of blocks.py and layers.py
    diffusers.py  U-Nets of diffusers; diffusers_folder.py reads their folders, hub.py takes them from the Hub
    text.py       text encoders and tokenizers of pipelines; known_texts.py keeps embeddings of few prompts
    factory.py    modules that a user's function makes; factory_check.py tries them before a run
    files.py      raysid's folders: model.safetensors and config.json; export as such a folder or a torch file
    published/    the .pkl files of EDM's, SiD's and SiDA's authors

To add a kind of network, write its settings (`raysid/config/networks.py`) and its class with the methods of
`Denoiser` (a subclass of `Network`), build it in `build_denoiser`, add the settings to `denoiser.AnySettings` and
extend the check that recognises them in `files.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysid.config.networks import DiffusersSettings, FactorySettings, NetworkSettings
from raysid.errors import UserError

if TYPE_CHECKING:
    from raysid.networks.denoiser import AnySettings, Network
    from raysid.networks.edm import EDMDenoiser

__all__ = ["DiffusersSettings", "EDMDenoiser", "FactorySettings", "NetworkSettings", "build_denoiser"]


def build_denoiser(settings: AnySettings, factory: str | None = None) -> Network:
    """Build the network that settings describe, with initial weights, in train mode, on torch's default device.

    Args:
        factory: the only function that may be called, as `package.module:function`; the settings must name the same
            one. It also makes the weights. Settings, which may come from anywhere, never import anything by themselves.

    Raises:
        UserError: diffusers is not installed or has no such U-Net; the settings name a function other than `factory`,
            or it makes another network than they describe.
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
                f"{_in_words(settings)}: use the version of the function that made the folder"
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
    # Networks need torch, settings do not: `raysid config` reads settings and must answer at once.
    if name == "EDMDenoiser":
        from raysid.networks.edm import EDMDenoiser

        return EDMDenoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
