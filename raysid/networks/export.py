"""Export of networks: as a folder of ours, or as a state dict that torch loads."""

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
        write_network(out, network_files(*load_network(folder, kind, factory)))
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
    write_whole(settings, card_json(card))
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
