"""The output of the command: control characters of names and messages do not reach the terminal.

File names, classes, settings, cards and other libraries' messages may hold characters that clear a terminal, move its
cursor or reverse its text. They are escaped where text leaves the process, so that no message can forget it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from raysid.errors import printable

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SEQUENCES = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|\r)")  # of a program that draws on a terminal


def printable_lines(text: str) -> str:
    """Escape control characters other than line ends and tabs; colours, as in Ray's output, are left out."""
    return re.sub(r"[^\n\t]+", lambda match: printable(match[0]), _COLOURS.sub("", text))


class PrintableStream:
    """A text stream that escapes control characters.

    Args:
        stream: the output.
        draws: let the sequences pass by which a program draws on a terminal.
    """

    buffer = None  # click must not write around this

    def __init__(self, stream: TextIO, draws: bool = False) -> None:
        self._stream, self._draws = stream, draws

    @property
    def drawing(self) -> PrintableStream:
        """The same output for a program that draws, and escapes the texts of others itself."""
        return PrintableStream(self._stream, draws=True)

    def write(self, text: str) -> int:
        """Write text; letters that the stream's encoding lacks become escapes."""
        parts = _SEQUENCES.split(text) if self._draws else [text]
        clean = "".join(part if i % 2 else printable_lines(part) for i, part in enumerate(parts))
        try:
            self._stream.write(clean)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(clean.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # flush, isatty, fileno and so on
        return getattr(self._stream, name)


def drawing(stream: TextIO) -> TextIO:
    """Return a stream on which a program may draw; it must escape the texts of others with `printable`."""
    return cast(TextIO, getattr(stream, "drawing", stream))


@contextmanager
def printable_output() -> Iterator[None]:
    """Escape control characters in all that this process writes to its standard output and error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, PrintableStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
