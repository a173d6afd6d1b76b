"""Which settings make a teacher, and the folder in which a storage keeps it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from upath import UPath

from raysid.config import PretrainConfig
from raysid.storage import storage_folder

# These settings do not change the teacher: its folder, how the work is divided, the description of its data.
NOT_ITS_IDENTITY: Any = dict.fromkeys(
    ("storage", "num_workers", "worker_resources", "torch_threads", "failure", "checkpoint"), True
) | {"data": {"origin", "max_bad_fraction"}}


def teacher_folder(config: PretrainConfig) -> UPath:
    """Return `<storage>/teachers/<digest>`, where the teacher of a recipe is kept."""
    return storage_folder(config.storage) / "teachers" / teacher_digest(config)


def teacher_identity(config: PretrainConfig) -> dict[str, Any]:
    """Return the settings that make this teacher. The card of a teacher trained by recipe holds them."""
    return config.model_dump(mode="json", exclude=NOT_ITS_IDENTITY)


def teacher_digest(config: PretrainConfig) -> str:
    """Return a short hash of `teacher_identity`."""
    identity = json.dumps(teacher_identity(config), sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def converted_folder(storage: str, kind: Literal["teachers", "generators"], stem: str, digest: str) -> UPath:
    """Return `<storage>/<kind>/<stem>-<digest>`, where a network converted from another format is kept."""
    return storage_folder(storage) / kind / f"{stem}-{digest[:16]}"
