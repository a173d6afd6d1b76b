"""Modules, tensors and numbers of a pickle as plain values, without calling torch or numpy for them.

A tensor's storage is a file inside the pickle, in torch's format before zip: five more pickles, read by the same rules,
followed by the numbers.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raysid.networks.published.pickles import (
    BadPickle,
    Buildable,
    Maker,
    Name,
    PickleStream,
    printable,
    read_pickle,
)

MAX_NAME = 200  # characters in the name of a parameter or module
# Of all tables of all modules, each counted as often as it is read; EDM's have some 5,000.
MAX_ENTRIES = 100_000


def read_modules(stream: PickleStream) -> Any:
    """Read a pickle that holds modules; they and their tensors become `Module` and `TensorView`.

    Raises:
        BadPickle: it cannot be read, or names anything else.
    """
    left = EntriesLeft()
    names: dict[tuple[str, str], Maker | None] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): lambda given: _persistent(given, left),
        ("torch.nn.modules.container", "ModuleDict"): lambda given: _container(given, left),
        ("collections", "OrderedDict"): _empty_dict,
        ("dnnlib.util", "EasyDict"): _empty_dict,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_tensor_v2"): _view,
        ("torch.storage", "_load_from_bytes"): lambda arguments: _storage(arguments, stream),
        ("numpy", "dtype"): _numpy_type,
        ("numpy.core.multiarray", "scalar"): _number,
        ("numpy._core.multiarray", "scalar"): _number,
    }
    return read_pickle(stream, names)


class EntriesLeft:
    """The number of entries of tables that may still be read."""

    def __init__(self) -> None:
        self.count = MAX_ENTRIES

    def take(self, count: int) -> None:
        """Count entries. Raises BadPickle once there are too many."""
        self.count -= count
        if self.count < 0:
            raise BadPickle(f"has modules with over {MAX_ENTRIES:,} entries, more than any such file")


class Module(Buildable):
    """A module of the network, or another object that is pickled in this way: its class's name and its attributes."""

    def __init__(self, class_name: str, state: Any, left: EntriesLeft) -> None:
        self.class_name = class_name
        self.state = state
        self._left = left

    def build(self, state: Any) -> None:
        self.state = state

    def table(self, attribute: str) -> Mapping[str, Any]:
        """An attribute that must be a dict with names as keys. Raises BadPickle if it is not."""
        found = self.state.get(attribute) if type(self.state) is dict else None
        # Modules may share a table: the work is what is read, not what the file holds.
        self._left.take(1 + len(found) if type(found) is dict else 1)
        if type(found) is not dict or not all(type(key) is str and len(key) <= MAX_NAME for key in found):
            raise BadPickle(f"has a module ({printable(self.class_name)}) without its {attribute}")
        return found


@dataclass(frozen=True)
class Storage:
    """A storage: a sequence of numbers, as a view of the file's bytes."""

    dtype: torch.dtype
    content: memoryview

    @property
    def count(self) -> int:
        return len(self.content) // self.dtype.itemsize


@dataclass(frozen=True)
class TensorView:
    """A tensor: a strided view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """Numbers from its first to its last in the storage, both included; 0 for an empty tensor."""
        if 0 in self.size:
            return 0
        return 1 + sum((length - 1) * step for length, step in zip(self.size, self.stride, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return max(self.span, math.prod(self.size)) * self.storage.dtype.itemsize

    def tensor(self) -> Tensor:
        """Copy it to a torch tensor, float32; it must not be empty."""
        itemsize = self.storage.dtype.itemsize
        content = self.storage.content[self.offset * itemsize :][: self.span * itemsize]
        numbers = torch.frombuffer(bytearray(content), dtype=self.storage.dtype)
        return numbers.as_strided(self.size, self.stride).float().clone(memory_format=torch.contiguous_format)


class _NumpyType(Buildable):
    """The numpy type of a single number."""

    def __init__(self, code: str) -> None:
        self.code = code

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise BadPickle("has numbers whose bytes are not in this machine's order")


def _persistent(arguments: tuple[Any, ...], left: EntriesLeft) -> Module:
    """An object with its class's source beside it; only the class's name and the attributes are used."""
    match arguments:
        case ({"type": "class", "class_name": str() as class_name, "state": state},):
            return Module(class_name, state, left)
    raise BadPickle("has an object without class_name and state")


def _container(arguments: tuple[Any, ...], left: EntriesLeft) -> Module:
    if arguments:
        raise BadPickle("has a container of modules with arguments")
    return Module("ModuleDict", None, left)


def _empty_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise BadPickle("has a dict with arguments")
    return {}


def _parameter(arguments: tuple[Any, ...]) -> TensorView:
    match arguments:
        case (TensorView() as view, bool(), _):
            return view
    raise BadPickle("has a parameter that is not a tensor")


def _view(arguments: tuple[Any, ...]) -> TensorView:
    match arguments:
        # After the hooks, newer files list other properties of the tensor, such as a negated sign.
        case (Storage() as storage, int() as offset, tuple() as size, tuple() as stride, bool(), _, *more):
            if any(more):
                raise BadPickle("has a tensor with properties beyond its numbers")
            numbers = (offset, *size, *stride)
            if len(size) == len(stride) <= 8 and all(type(n) is int and 0 <= n < 2**62 for n in numbers):
                view = TensorView(storage, offset, size, stride)
                if offset + view.span <= storage.count:
                    return view
    raise BadPickle("has a tensor that does not fit its numbers")


_NUMBERS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "u1": "<B", "b1": "<?"}


def _numpy_type(arguments: tuple[Any, ...]) -> _NumpyType:
    match arguments:
        case (str() as code, *_) if code in _NUMBERS:
            return _NumpyType(code)
    raise BadPickle("has a number of an unknown type")


def _number(arguments: tuple[Any, ...]) -> float:
    match arguments:
        case (_NumpyType(code=code), bytes() as content) if len(content) == struct.calcsize(_NUMBERS[code]):
            return struct.unpack(_NUMBERS[code], content)[0]
    raise BadPickle("has a number that does not fit its type")


# Storages: files in torch's format before zip: five pickles, then the numbers.

_MAGIC = 0x1950A86A20F9469CFC6C
_FORMAT = 1001
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_STORAGES: dict[tuple[str, str], Maker | None] = {("torch", name): None for name in _DTYPES}


def _storage(arguments: tuple[Any, ...], outer: PickleStream) -> Storage:
    match arguments:
        case (bytes() as content,):
            pass
        case _:
            raise BadPickle("has a storage that is not bytes")
    stream = PickleStream(io.BytesIO(content), len(content))
    stream.instructions_left = outer.instructions_left
    try:
        magic, version, machine = (read_pickle(stream, {}) for _ in range(3))
        if magic != _MAGIC or version != _FORMAT:
            raise BadPickle("is not a file of torch")
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise BadPickle("has its bytes in another order than this machine")
        match read_pickle(stream, _STORAGES, lambda identity: identity):
            # The location, such as cuda:0, is irrelevant; the last entry would be the bounds of a view.
            case ("storage", Name(label=label), str(), str(), int() as count, None):
                dtype = _DTYPES[label.removeprefix("torch.")]
            case _:
                raise BadPickle("is not a single storage")
        read_pickle(stream, {})  # the keys of all storages, which is one
        header = stream.read(8)
        numbers = memoryview(content)[stream.tell() :]
        if len(header) < 8 or struct.unpack("<q", header)[0] != count:
            raise BadPickle("does not have its length")
        if len(numbers) != count * dtype.itemsize:
            raise BadPickle(f"claims {count:,} numbers and holds {len(numbers):,} bytes")
    except BadPickle as error:
        raise BadPickle(f"holds a storage that {error}") from None
    finally:
        outer.instructions_left = stream.instructions_left
    return Storage(dtype, numbers)
