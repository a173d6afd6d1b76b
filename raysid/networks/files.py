"""Networks on disk: a folder of `model.safetensors` (the weights) and `config.json` (what they are).

Teachers and generators are both kept so. Nothing in such a folder is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, Self

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from upath import UPath

from raysid.errors import UserError
from raysid.networks.edm import EDMDenoiser
from raysid.networks.settings import NetworkSettings
from raysid.storage import is_local, read_whole, write_whole

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class NetworkCard(BaseModel):
    """What `config.json` says: what the weights are, and how to build the network they belong to."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["raysid-1"] = "raysid-1"
    kind: Literal["teacher", "generator"]
    network: NetworkSettings
    sigma_init: float | None = Field(None, gt=0, description="Noise level at which a generator runs.")
    trained: dict[str, Any] = Field({}, description="How it came to be: step, images, settings, figures.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "generator" and self.sigma_init is None:
            raise ValueError("a generator needs sigma_init, the noise level at which it runs")
        return self


def save_network(folder: str | UPath, card: NetworkCard, network: EDMDenoiser) -> None:
    """Write a network's folder. Each file appears whole or not at all, the weights first."""
    write_network(folder, network_files(card, network))


def network_files(card: NetworkCard, network: EDMDenoiser) -> dict[str, bytes]:
    """The files of a network's folder as they are now, by name, the weights first."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return {
        WEIGHTS: safetensors.torch.save(weights),
        CONFIG: card_json(card),
    }


def card_json(card: NetworkCard) -> bytes:
    """A card as `config.json` has it."""
    return (card.model_dump_json(indent=2) + "\n").encode()


def write_network(folder: str | UPath, files: dict[str, bytes]) -> None:
    """Write what `network_files` gave."""
    folder = UPath(folder)
    if is_local(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)


def load_card(folder: str | UPath, kind: Literal["teacher", "generator"] | None = None) -> NetworkCard:
    """Read what a folder holds.

    Raises:
        UserError: there is no such folder, or it does not hold a network of this `kind` (None: of any).
    """
    folder = UPath(folder)
    what = kind or "network"
    try:
        text = read_whole(folder / CONFIG).decode()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {what} at {folder}: a {what}'s folder holds {WEIGHTS} and {CONFIG}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {folder / CONFIG}: {error}") from None
    try:
        card = NetworkCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{folder / CONFIG} does not describe a network: {where}: {first['msg']}") from None
    if kind is not None and card.kind != kind:
        raise UserError(f"{folder} holds a {card.kind}, where a {kind} is needed")
    return card


def load_network(
    folder: str | UPath, kind: Literal["teacher", "generator"]
) -> tuple[NetworkCard, EDMDenoiser]:
    """Build the network a folder describes, with its weights.

    Raises:
        UserError: as `load_card`; or the weights are missing, damaged, or belong to another network.
    """
    folder = UPath(folder)
    card = load_card(folder, kind)
    file = folder / WEIGHTS
    try:
        weights = safetensors.torch.load(read_whole(file))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy the whole folder of the {kind}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is damaged (truncated or not safetensors): {error}") from None
    try:
        expected = weight_shapes(card.network)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} does not describe a network: {error}") from None
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UserError(
            f"{file} does not fit the network of {CONFIG}: {odd[0]} and {len(odd) - 1} more differ"
        )
    network = EDMDenoiser(card.network)
    network.load_state_dict(weights)
    return card, network


def weight_shapes(settings: NetworkSettings) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a network, without making it.

    Raises:
        ValueError: there is no such network: channels that do not divide into groups or heads, too large.
    """
    try:
        with torch.device("meta"):
            return {name: tuple(value.shape) for name, value in EDMDenoiser(settings).state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:  # not even its size can be written down
        raise ValueError(str(error).splitlines()[0]) from None


def weights_digest(folder: str | UPath) -> str:
    """SHA-256 of a folder's weights, to tell whether two folders hold the same network."""
    return hashlib.sha256(read_whole(UPath(folder) / WEIGHTS)).hexdigest()
