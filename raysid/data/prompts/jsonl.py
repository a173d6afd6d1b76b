"""Files with a JSON object on each line, one of whose fields is the prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysid.config.prompts import PromptSettings
from raysid.data.files import Found
from raysid.data.prompts.lines import LineFiles
from raysid.data.prompts.source import PromptSource, chosen_columns, text_block
from raysid.data.source import Block, Piece
from raysid.errors import UserError


class JsonLinesSource(PromptSource):
    """The objects of .jsonl files, in the order of the files' paths. Empty lines are left out.

    Raises:
        UserError: there are no lines, the first is no object, or it lacks a field that is named.
    """

    def __init__(self, found: Found, settings: PromptSettings) -> None:
        self.name = found.name
        self.files = LineFiles(found.name, [file.path for file in found.files])
        lines, names = self.files.lines(Piece(0, 0, int(self.files.sizes[0])))
        first = next((number for number, line in enumerate(lines) if line.strip()), 0)
        row = _object(lines[first])
        if row is None:
            raise UserError(f"prompts.source: {names[first]} is no JSON object")
        self.columns = chosen_columns(settings, [*row], names[first])
        self.min = settings.min

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return self.files.sizes

    def read(self, piece: Piece) -> Iterator[Block]:
        lines, names = self.files.lines(piece)
        rows = [_object(line) for line in lines]
        kept = [
            bool(line.strip()) and (row is None or above(row, self.min))
            for line, row in zip(lines, rows, strict=True)
        ]
        faults = {
            number: f"{names[number]} is no JSON object"
            for number, row in enumerate(rows)
            if row is None and kept[number]
        }
        texts = [[(row or {}).get(name) for name in self.columns] for row in rows]
        yield text_block(texts, names, kept, faults)


def above(row: dict[str, Any], least: dict[str, float]) -> bool:
    """True if a row's scores are numbers of at least these values."""
    return all(isinstance(row.get(name), int | float) and row[name] >= value for name, value in least.items())


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if it is something else. Depth and numbers are bounded by the line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
