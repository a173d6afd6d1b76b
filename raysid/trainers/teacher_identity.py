"""The identity of a teacher, and the folder in which a storage keeps it."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from upath import UPath

from raysid.config import PretrainConfig, fixed_settings
from raysid.storage import storage_folder


def teacher_folder(config: PretrainConfig) -> UPath:
    """Return `<storage>/teachers/<digest>`, where the teacher of a recipe is kept."""
    return storage_folder(config.storage) / "teachers" / teacher_digest(config)


def teacher_digest(config: PretrainConfig) -> str:
    """Return a short hash of the settings that make this teacher."""
    identity = json.dumps(fixed_settings(config), sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def converted_folder(storage: str, kind: Literal["teachers", "generators"], stem: str, digest: str) -> UPath:
    """Return `<storage>/<kind>/<stem>-<digest>`, where a network converted from another format is kept."""
    return storage_folder(storage) / kind / f"{stem}-{digest[:16]}"
