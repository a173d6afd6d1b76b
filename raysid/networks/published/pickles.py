"""A reader of pickles that runs nothing: a stack machine that can only make plain values.

A pickle is a program: it names callables, which Python's own reader imports and calls. This reader never imports. It
looks names up in a fixed table of our own functions, which only store their arguments. Any other name, and any
instruction that the published files do not need, ends the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MAX_INSTRUCTIONS = 500_000  # EDM's largest published network takes about 50,000
MAX_LINE = 1_000  # bytes of an instruction's argument that is a line of text

Maker = Callable[[tuple[Any, ...]], Any]
"""Makes a plain value of a call's arguments; raises BadPickle if they are invalid."""
Names = Mapping[tuple[str, str], Maker | None]
"""The names that a pickle may use: (module, name) to the maker of its calls; None if it may not be called."""


class BadPickle(Exception):
    """A pickle that cannot be read or asks for more than values; the text is one line with the byte position."""


class Buildable:
    """A value whose state a pickle may set (its instruction BUILD)."""

    def build(self, state: Any) -> None:
        """Set the state. Raises BadPickle if it is invalid."""
        raise NotImplementedError


class Name:
    """A name from the table, as a value; the Python object behind it is never looked up."""

    __slots__ = ("label", "make")

    def __init__(self, label: str, make: Maker | None) -> None:
        self.label = label
        self.make = make


class PickleStream:
    """A stream of one or more pickles in a row. It never allocates what a pickle merely claims to hold.

    Args:
        file: open for reading, at its start.
        size: bytes of the file.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.instructions_left = MAX_INSTRUCTIONS  # nested pickles included

    def tell(self) -> int:
        """Return the number of bytes read so far."""
        return self._file.tell()

    def read(self, count: int) -> bytes:
        """Read the next `count` bytes, or the remaining ones."""
        return self._file.read(min(count, self.size - self._file.tell()))

    def readline(self) -> bytes:
        """Read the next line. Raises ValueError if it is too long."""
        line = self._file.readline(MAX_LINE)
        if len(line) == MAX_LINE:
            raise ValueError("a line has no end")
        return line


def printable(text: object) -> str:
    """Return text from a file for a message: one line, printable, at most 100 characters."""
    line = ascii(text)[1:-1] if isinstance(text, str) else ascii(text)
    return line if len(line) <= 100 else line[:100] + "..."


def read_pickle(stream: PickleStream, names: Names, persistent: Maker | None = None) -> Any:
    """Read the next pickle of the stream, which then is at its end.

    Values are None, bool, int, float, str, bytes, tuple, list, dict and set (both with str or int keys only), and the
    results of the makers in `names`.

    Args:
        names: the names it may use, and so call.
        persistent: makes the value of a persistent id, a tuple; None if the pickle may have none.

    Raises:
        BadPickle: it is truncated or damaged, asks for anything else, or is too long.
    """
    machine = _Machine(stream, names, persistent)
    try:
        for instruction, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            if stream.instructions_left == 0:
                raise BadPickle(f"has over {MAX_INSTRUCTIONS:,} instructions, more than any such file needs")
            stream.instructions_left -= 1
            if instruction.name == "STOP":
                return machine.pop()
            machine.step(instruction.name, argument)
        raise BadPickle("ends before its last instruction")
    except BadPickle as error:
        raise BadPickle(f"{error} (byte {stream.tell():,})") from None
    except ValueError as error:  # raised by pickletools for bytes that are no instruction
        raise BadPickle(
            f"is truncated or damaged: {printable(str(error))} (byte {stream.tell():,})"
        ) from None


_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack, marks and memo of one pickle."""

    def __init__(self, stream: PickleStream, names: Names, persistent: Maker | None) -> None:
        self.stream = stream
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction. Raises BadPickle for one that plain values do not need."""
        push = self.stack.append
        match name:
            case _ if name in _LITERALS:
                push(argument)
            case _ if name in _CONSTANTS:
                push(_CONSTANTS[name])
            case _ if name in _EMPTY:
                push(_EMPTY[name]())
            case _ if name in _TUPLES:
                push(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                items = [self.pop()] if name == "APPEND" else self.since_mark()
                self.target(list).extend(items)
            case "ADDITEMS":
                items = self.since_mark()
                self.target(set).update(map(_key, items))
            case "SETITEM" | "SETITEMS":
                items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.since_mark()
                self.set_items(items)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise BadPickle("is damaged: refers to a value that it does not have")
                push(self.memo[argument])
            case "GLOBAL":
                push(self.find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                push(self.find(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, called = self.pop(), self.pop()
                push(self.call(called, arguments))
            case "BUILD":
                state = self.pop()
                self.build(state)
            case "BINPERSID" if self.persistent is not None:
                push(self.persistent(_arguments(self.pop())))
            case "FRAME":
                if argument > self.stream.size - self.stream.tell():
                    raise BadPickle("is truncated: a part of it is longer than what is left")
            case "PROTO":
                pass
            case _:
                raise BadPickle(f"asks for {_request(name, argument)}, which no network's file needs")

    def pop(self) -> Any:
        """Pop the value on top."""
        if not self.stack:
            raise BadPickle("is damaged: takes a value where there is none")
        return self.stack.pop()

    def top(self) -> Any:
        """Return the value on top."""
        self.stack.append(self.pop())
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        if not self.marked:
            raise BadPickle("is damaged: ends a list that it did not begin")
        items, self.stack = self.stack, self.marked.pop()
        return items

    def target(self, kind: type) -> Any:
        """Return the container on top, which must be exactly of type `kind`."""
        container = self.top()
        if type(container) is not kind:
            raise BadPickle(
                f"is damaged: adds to a {type(container).__name__} what belongs in a {kind.__name__}"
            )
        return container

    def set_items(self, items: list[Any]) -> None:
        """Add alternating keys and values to the dict on top."""
        if len(items) % 2:
            raise BadPickle("is damaged: has a key without a value")
        self.target(dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def find(self, module: Any, name: Any) -> Name:
        """Look a name up in the table."""
        if type(module) is not str or type(name) is not str or (module, name) not in self.names:
            raise BadPickle(f"asks for {_dotted(module, name)}, which no network's file needs")
        return Name(f"{module}.{name}", self.names[module, name])

    def call(self, called: Any, arguments: Any) -> Any:
        """Call the maker of a name."""
        if type(called) is not Name or called.make is None:
            what = called.label if type(called) is Name else f"a {type(called).__name__.lstrip('_')}"
            raise BadPickle(f"calls {what}, which cannot be called")
        return called.make(_arguments(arguments))

    def build(self, state: Any) -> None:
        """Set the state of the value on top."""
        target = self.top()
        if not isinstance(target, Buildable):
            raise BadPickle(f"sets the state of a {type(target).__name__.lstrip('_')}, which has none")
        target.build(state)


def _key(key: Any) -> str | int:
    # Only types that hash without recursion: hashing a deeply nested tuple overflows Python's stack. Large numbers can
    # be chosen so that all hash alike, and a table of such takes quadratic time.
    if type(key) is str or (type(key) is int and abs(key) < 2**31):
        return key
    kind = "large number" if type(key) is int else type(key).__name__
    raise BadPickle(f"has a {kind} as a key, where only text and small numbers can be")


def _arguments(arguments: Any) -> tuple[Any, ...]:
    if type(arguments) is not tuple:
        raise BadPickle("is damaged: makes a call without a list of arguments")
    return arguments


def _request(name: str, argument: Any) -> str:
    """Describe an unsupported instruction for a message."""
    if name == "INST" and isinstance(argument, str):
        return _dotted(*argument.split(" ", 1))
    return f"the pickle instruction {name}"


def _dotted(module: Any, name: Any) -> str:
    if type(module) is not str or type(name) is not str:
        return "a name that is not text"
    return f"{printable(module)}.{printable(name)}"
