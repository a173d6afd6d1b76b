"""Networks on disk: a folder with `model.safetensors` (the weights) and `config.json` (the description).

Teachers and generators have the same form. Nothing in such a folder is executed or unpickled. A network that the
user's function builds is built only if the caller names that function, too.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import from_json
from torch import Tensor
from upath import UPath

from raysid.config.networks import DiffusersSettings, FactorySettings, NetworkSettings
from raysid.errors import UserError
from raysid.formats import check_format
from raysid.networks import build_denoiser
from raysid.networks.denoiser import AnySettings, Network
from raysid.storage import exists, file_size, is_local, location, make_folder, read_whole, write_whole

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Bytes; a card has some thousand, the index of a large network's shards a million.
MAX_DESCRIPTION = 10_000_000
_LIBRARIES = ("edm", "diffusers", "factory")
Shapes = dict[str, tuple[int, ...]]


def _library(network: Any) -> str:
    """Return the kind of network settings: diffusers' have a `unet`, the user's own a `factory`."""
    fields = dict(network) if isinstance(network, Mapping | BaseModel) else {}
    return "diffusers" if "unet" in fields else "factory" if "factory" in fields else "edm"


class NetworkCard(BaseModel):
    """The content of `config.json`: the kind of the weights, and the settings that build their network."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["raysid-1"] = "raysid-1"  # as in `raysid.formats`
    kind: Literal["teacher", "generator"]
    network: Annotated[
        Annotated[NetworkSettings, Tag("edm")]
        | Annotated[DiffusersSettings, Tag("diffusers")]
        | Annotated[FactorySettings, Tag("factory")],
        Discriminator(_library),
    ]
    sigma_init: float | None = Field(
        None, description="Noise level at which a generator runs; EDM's is above 0."
    )
    tau: int | None = Field(
        None,
        ge=0,
        description="Step at which a generator runs, instead of `sigma_init` where noise levels are steps.",
    )
    trained: dict[str, Any] = Field({}, description="How it was made: step, images, settings, figures.")
    parts: str | None = Field(
        None, description="Folder of the text encoder, tokenizer and VAE, if they are not in this folder."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        level = "tau" if self.network.discrete_levels else "sigma_init"
        if self.kind == "generator" and getattr(self, level) is None:
            raise ValueError(f"a generator needs {level}, the noise level at which it runs")
        own = isinstance(self.network, FactorySettings)  # its noise levels may have another measure
        if not own and self.sigma_init is not None and self.sigma_init <= 0:
            raise ValueError(f"sigma_init is {self.sigma_init}; allowed: number above 0")
        if isinstance(self.network, DiffusersSettings) and self.tau is not None:
            steps = self.network.scheduler.num_train_timesteps
            if self.tau >= steps:
                raise ValueError(f"tau is {self.tau}; allowed: below {steps}, the steps of the noise process")
        return self

    @property
    def level(self) -> float:
        """The noise level at which a generator runs, in the measure of its noise process."""
        level = self.tau if self.network.discrete_levels else self.sigma_init
        assert level is not None
        return level

    def parts_folder(self, folder: UPath) -> UPath:
        """Return the folder of the text encoder, tokenizer and VAE of the network that is in `folder`."""
        return folder if self.parts is None else location(self.parts)

    @classmethod
    def for_generator(
        cls, network: Network, sigma_init: float, trained: dict[str, Any], parts: str | None = None
    ) -> Self:
        """Return the card of a generator that runs at the noise process's start level for `sigma_init`."""
        settings, level = network.settings, network.noise.start_level(sigma_init)
        at: dict[str, Any] = {"tau" if settings.discrete_levels else "sigma_init": level}
        return cls(kind="generator", network=settings, **at, trained=trained, parts=parts)


def save_network(folder: str | UPath, card: NetworkCard, network: Network) -> None:
    """Write a network's folder, the weights first. Each file is written completely or not at all."""
    write_network(folder, card, network.state_dict())


def network_files(card: NetworkCard, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return the content of the files of a network's folder, by name, the weights first."""
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return {WEIGHTS: safetensors.torch.save(weights), CONFIG: _card_json(card)}


def _card_json(card: NetworkCard) -> bytes:
    left_out = {"parts"} if card.parts is None else None
    return (card.model_dump_json(indent=2, exclude=left_out) + "\n").encode()


def write_network(folder: str | UPath, card: NetworkCard, weights: Mapping[str, Tensor]) -> None:
    """Write the folder of a network with these weights, as `save_network` does."""
    folder = location(folder)
    make_folder(folder)
    for name, content in network_files(card, weights).items():
        write_whole(folder / name, content)


def load_card(folder: str | UPath, kind: Literal["teacher", "generator"] | None = None) -> NetworkCard:
    """Read the card of a network's folder.

    Raises:
        UserError: there is no such folder, or it does not hold a network of this `kind` (None: of any).
    """
    folder = location(folder)
    what = kind or "network"
    try:
        content = from_json(read_description(folder / CONFIG))
    except FileNotFoundError:
        raise UserError(f"no {what} at {folder}: a {what}'s folder holds {WEIGHTS} and {CONFIG}") from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} does not describe a network: it is no JSON: {error}") from None
    if isinstance(content, dict):
        check_format(content.get("format"), folder / CONFIG)
    try:
        card = NetworkCard.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        # After `network` pydantic names the tag of the kind, which may also be the name of a field.
        path = [part for place, part in enumerate(first["loc"]) if place != 1 or part not in _LIBRARIES]
        where = ".".join(map(str, path)) or "the file"
        problem = first["msg"].removeprefix("Value error, ").splitlines()[0]
        raise UserError(f"{folder / CONFIG} does not describe a network: {where}: {problem}") from None
    if kind is not None and card.kind != kind:
        raise UserError(f"{folder} holds a {card.kind}, where a {kind} is needed")
    return card


def read_description(file: UPath) -> bytes:
    """Read a file of settings, which is small.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is too large.
    """
    if (size := file_size(file)) > MAX_DESCRIPTION:
        raise UserError(
            f"{file} has {size:,} bytes; a network's description has at most {MAX_DESCRIPTION:,}: give another file"
        )
    return read_whole(file)


def load_network(
    folder: str | UPath, kind: Literal["teacher", "generator"], factory: str | None = None
) -> tuple[NetworkCard, Network]:
    """Build the network of a folder, with its weights.

    Args:
        factory: as in `build_denoiser`.

    Raises:
        UserError: as `load_card` and `build_denoiser`; or the weights are missing, damaged, or those of another
            network.
    """
    folder = location(folder)
    card = load_card(folder, kind)
    own = build_denoiser(card.network, factory) if isinstance(card.network, FactorySettings) else None
    file = folder / WEIGHTS
    try:
        weights = parse_weights(read_whole(file), file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy the whole folder of the {kind}") from None
    try:
        expected = shapes_of(own.state_dict()) if own else weight_shapes(card.network)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} does not describe a network: {error}") from None
    if odd := misfits(expected, shapes_of(weights)):
        raise UserError(
            f"{file} does not fit the network of {CONFIG}: {odd[0]} and {len(odd) - 1} more differ"
        )
    network = own or build_denoiser(card.network)
    for name, value in network.state_dict().items():
        if value.is_floating_point() != weights[name].is_floating_point():
            raise UserError(
                f"{file} does not fit the network of {CONFIG}: {name} is {weights[name].dtype}, not {value.dtype}"
            )
    network.load_state_dict(weights)
    return card, network


def parse_weights(content: bytes, file: UPath) -> dict[str, Tensor]:
    """Parse the content of a safetensors file.

    Raises:
        UserError: the file is damaged, or has a weight that is NaN or infinite; the message names it.
    """
    try:
        weights = safetensors.torch.load(content)
    except (
        safetensors.SafetensorError,
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:  # KeyError: an unknown dtype
        raise UserError(f"{file} is damaged (truncated or not safetensors): {error}") from None
    for name, value in weights.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(f"{file}: {name} has values that are NaN or infinite: give another file")
    return weights


def weight_shapes(settings: AnySettings) -> Shapes:
    """Return the name and shape of every weight of the network that settings describe, without allocating it.

    Raises:
        ValueError: there is no such network: channels do not divide into groups or heads, or it is too large.
    """
    try:
        with torch.device("meta"):
            return shapes_of(build_denoiser(settings).state_dict())
    except (UserError, RuntimeError, TypeError, OverflowError) as error:
        # UserError comes from diffusers, the others where even the size of a network overflows.
        raise ValueError(str(error).splitlines()[0]) from None


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Return the name and shape of every tensor of a state dict."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def stored_shapes(folder: str | UPath) -> Shapes:
    """Return the name and shape of every weight in a network's folder."""
    return shapes_of(safetensors.torch.load(read_whole(location(folder) / WEIGHTS)))


def misfits(expected: Shapes, found: Shapes) -> list[str]:
    """Return the sorted names of the weights that only one of the two has, or that differ in shape."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def weights_digest(folder: str | UPath) -> str:
    """Return the SHA-256 of a folder's weights: equal if two folders hold the same network."""
    return hashlib.sha256(read_whole(location(folder) / WEIGHTS)).hexdigest()


def export_network(
    folder: UPath, form: Literal["safetensors", "torch"], out: UPath, factory: str | None = None
) -> list[UPath]:
    """Write the network in `folder` unchanged, bit for bit; return the paths written.

    Args:
        form: "safetensors" writes the folder `out`; "torch" writes the state dict to the file `out`, under EDM's
            names, and the content of `config.json` to a JSON file beside it.
        factory: as in `load_network`.

    Raises:
        UserError: `folder` has no complete network, or `out` exists.
    """
    kind = load_card(folder).kind
    if form == "safetensors":
        check_free(out)
        save_network(out, *load_network(folder, kind, factory))
        return [out]
    settings = out.with_suffix(".json")
    if settings == out:
        raise UserError(
            f"{out} is the name of the settings file: give one for the weights, such as generator.pt"
        )
    for path in (out, settings):
        if exists(path):
            raise UserError(f"{path} exists already: give another --out")
    card, network = load_network(folder, kind, factory)
    content = io.BytesIO()
    torch.save({name: value.contiguous() for name, value in network.state_dict().items()}, content)
    make_folder(out.parent)
    write_whole(out, content.getvalue())
    write_whole(settings, _card_json(card))
    return [out, settings]


def check_free(folder: UPath) -> None:
    """Check that a network can be written to `folder`.

    Raises:
        UserError: it holds a network already, or is a file.
    """
    for name in (WEIGHTS, CONFIG):
        if exists(folder / name):
            raise UserError(f"{folder} holds a network already: give another folder")
    if is_local(folder) and folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder")
