"""The files of a checkpoint: each learner's training state, written where the learner lives."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from upath import UPath

from raysid.errors import UserError
from raysid.storage import make_folder, read_whole, write_whole
from raysid.storage.failures import explain

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class StateFile:
    """One learner's file of a checkpoint."""

    name: str
    size: int
    sha256: str


class Write(Protocol[T_co]):
    """A write that has begun, beside the training. `concurrent.futures.Future` is one."""

    def done(self) -> bool:
        """True once the write has succeeded or failed. Never waits."""

    def result(self) -> T_co:
        """Wait for the write and return its result.

        Raises:
            StorageError: the files could not be written.
            LearnerLost: the process that wrote them has died.
        """


def state_bytes(state: dict[str, Any]) -> bytes:
    """Serialize a learner's state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def write_state(folder: str | UPath, name: str, content: bytes) -> StateFile:
    """Write one learner's serialized state as `<folder>/<name>.pt`."""
    folder = UPath(folder)
    make_folder(folder)
    write_whole(folder / f"{name}.pt", content)
    return StateFile(f"{name}.pt", len(content), hashlib.sha256(content).hexdigest())


def read_state(folder: str | UPath, name: str) -> dict[str, Any]:
    """Read a state that `write_state` wrote, onto the CPU. Loads tensors and plain values only.

    Raises:
        UserError: the file holds no such state.
    """
    file = UPath(folder) / f"{name}.pt"
    content = read_whole(file)
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:  # as torch.load raises
        raise UserError(f"{file} is not a training state: {explain(error)}") from None
    if not isinstance(state, dict):
        raise UserError(f"{file} is not a training state: it holds a {type(state).__name__}")
    return state
