"""Folders that diffusers wrote, as tests read and spoil them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from upath import UPath

from raysid.networks.diffusers_folder import DiffusersNetwork, find_unet, read_diffusers


def read_folder(folder: Path) -> DiffusersNetwork:
    """Read the network in a folder, for images without classes."""
    found = find_unet(UPath(folder))
    assert found is not None
    return read_diffusers(found, 0)


def change_json(file: Path, **changes: Any) -> None:
    """Change some values of a file of settings."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
