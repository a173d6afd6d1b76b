"""Files of lines, in shards that can be read alone: byte ranges that begin and end with a line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from raysid.data.listing import in_threads
from raysid.data.prompts.source import reading_prompts
from raysid.data.source import Piece, Texts
from raysid.errors import UserError, printable
from raysid.storage import open_file

PIECE_BYTES = 1 << 20  # of a shard; a line may be longer
LONGEST_LINE = 1 << 24


class LineFiles:
    """The lines of files. Opening it reads the files once, to count their lines.

    Args:
        name: the source's name in messages.

    Raises:
        UserError: a file cannot be read, or has a line that is too long; there are no lines.
    """

    def __init__(self, name: str, paths: Sequence[str]) -> None:
        self.name = name
        self.paths = Texts(paths)
        with reading_prompts(name):
            found = list(in_threads(partial(_shards, name), paths))
        numbered = [(number, *shard) for number, shards in enumerate(found) for shard in shards]
        if not numbered:
            raise UserError(f"prompts.source {name} holds no lines")
        # Of each shard: file, first byte, end, number of its first line in the file, lines.
        self.shards = np.array(numbered, np.int64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Lines of each shard."""
        return self.shards[:, 4]

    def lines(self, piece: Piece) -> tuple[list[bytes], list[str]]:
        """Return lines of a shard without their ends, and their names in messages."""
        number, first, end, line, _ = (int(value) for value in self.shards[piece.shard])
        path = self.paths[number]
        with reading_prompts(self.name), open_file(path) as file:
            file.seek(first)
            content = file.read(end - first)
        lines = content.removesuffix(b"\n").split(b"\n")[piece.first : piece.last]
        names = [f"line {line + 1 + piece.first + row} of {printable(path)}" for row in range(len(lines))]
        return [each.removesuffix(b"\r") for each in lines], names


def _shards(name: str, path: str) -> list[tuple[int, int, int, int]]:
    """Return (first byte, end, number of the first line, lines) of each shard of a file."""
    shards = []
    rest, begin, line = b"", 0, 0
    with open_file(path) as file:
        while content := file.read(PIECE_BYTES):
            whole, newline, rest = (rest + content).rpartition(b"\n")
            if newline:
                end, lines = begin + len(whole) + 1, whole.count(b"\n") + 1
                shards.append((begin, end, line, lines))
                begin, line = end, line + lines
            if len(rest) > LONGEST_LINE:
                raise UserError(
                    f"prompts.source {name}: line {line + 1} of {printable(path)} is longer than {LONGEST_LINE:,} "
                    "bytes: is it text?"
                )
    if rest:  # the last line has no end
        shards.append((begin, begin + len(rest), line, 1))
    return shards
