"""Networks for use elsewhere: in our own folder's form, or as a state dict that torch loads."""

from __future__ import annotations

import io
from typing import Literal

import torch
from upath import UPath

from raysid.errors import UserError
from raysid.networks.files import (
    CONFIG,
    WEIGHTS,
    card_json,
    load_card,
    load_network,
    network_files,
    write_network,
)
from raysid.storage import exists, is_local, make_folder, write_whole


def export_network(
    folder: UPath, form: Literal["safetensors", "torch"], out: UPath, factory: str | None = None
) -> list[UPath]:
    """Write the network in `folder` as it is, bit for bit; what was written.

    Args:
        form: safetensors makes the folder `out`; torch makes the file `out` of the state dict, its names those of
            EDM, and beside it a JSON file of what is otherwise `config.json`.
        factory: as in `load_network`.

    Raises:
        UserError: there is no whole network in `folder`, or `out` is there already.
    """
    kind = load_card(folder).kind
    if form == "safetensors":
        check_free(out)
        write_network(out, network_files(*load_network(folder, kind, factory)))
        return [out]
    settings = out.with_suffix(".json")
    if settings == out:
        raise UserError(
            f"{out} is the name of a file of settings: give one for the weights, as in generator.pt"
        )
    for path in (out, settings):
        if exists(path):
            raise UserError(f"{path} is there already: give another --out")
    card, network = load_network(folder, kind, factory)
    content = io.BytesIO()
    torch.save({name: value.contiguous() for name, value in network.state_dict().items()}, content)
    make_folder(out.parent)
    write_whole(out, content.getvalue())
    write_whole(settings, card_json(card))
    return [out, settings]


def check_free(folder: UPath) -> None:
    """Refuse a folder that holds a network already, or is none. Raises UserError."""
    for name in (WEIGHTS, CONFIG):
        if exists(folder / name):
            raise UserError(f"{folder} holds a network already: give another folder")
    if is_local(folder) and folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder")
