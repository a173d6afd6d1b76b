"""The files of a checkpoint: each learner's training state, written where the learner lives."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeVar

import torch
from torch import Tensor
from upath import UPath

from raysid.errors import UserError
from raysid.roles.torch_internals import FakeTensorMode
from raysid.storage import make_folder, open_file, read_whole, storage_errors, writing_whole
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


def state_file(name: str) -> str:
    """Return the name of a learner's file in a checkpoint."""
    return f"{name}.pt"


def copied_state(state: Any) -> Any:
    """Copy the tensors of a state to host memory. Training may change the originals while the copy is written."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # of a module's state_dict with the versions of its modules
        copied.update((name, copied_state(value)) for name, value in state.items())
        return copied
    if isinstance(state, list | tuple):
        return type(state)(map(copied_state, state))
    return state


def write_state(folder: str | UPath, name: str, state: dict[str, Any]) -> StateFile:
    """Write one learner's state, tensors and plain values, as `<folder>/<name>.pt`."""
    folder = UPath(folder)
    make_folder(folder)
    with writing_whole(folder / state_file(name)) as file:
        digested: Any = _Digested(file)  # torch calls its `write` and `flush` only
        torch.save(state, digested)
        if digested.error is not None:
            raise digested.error
    return StateFile(state_file(name), digested.size, digested.sha256.hexdigest())


class _Digested:
    """A file that is being written, and the size and digest of its content so far.

    An error of the file is kept in `error`: torch's writer replaces exceptions by its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        size = memoryview(content).nbytes
        if self.error is None:
            try:
                self._file.write(content)
            except OSError as error:
                self.error = error
            self.size += size
            self.sha256.update(content)
        return size

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is whole."""


def read_state(folder: str | UPath, name: str, expected: StateFile | None = None) -> dict[str, Any]:
    """Read a state that `write_state` wrote, onto the CPU. Loads tensors and plain values only.

    Args:
        expected: the size and digest that the file must have; None checks neither.

    Raises:
        UserError: the file is another than expected, or holds no such state.
    """
    file = UPath(folder) / state_file(name)
    content = read_whole(file)
    if expected is not None and not matches(content, expected):
        raise UserError(f"{file} is damaged: it does not match its checkpoint's manifest")
    return _load(file, io.BytesIO(content))


def matches(content: bytes, expected: StateFile) -> bool:
    """True if a file's content has the expected size and digest."""
    return len(content) == expected.size and hashlib.sha256(content).hexdigest() == expected.sha256


def read_outline(folder: str | UPath, name: str) -> dict[str, Any]:
    """Read a state without the content of its tensors, which have shapes and types only. Raises as `read_state`."""
    file = UPath(folder) / state_file(name)
    with storage_errors(file, "read"), open_file(file) as opened, FakeTensorMode():
        return _load(file, opened)


def _load(file: UPath, content: Any) -> dict[str, Any]:
    """Load a state from an open file."""
    try:
        state = torch.load(content, weights_only=True, map_location="cpu")
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
