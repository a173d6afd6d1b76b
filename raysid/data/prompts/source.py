"""Sources of prompts: shards of texts, any part of which can be read by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from raysid.config.prompts import PromptSettings
from raysid.data.files import reading_source
from raysid.data.source import NOT_UTF8, SEPARATOR, USUAL_COLUMNS, Block, Piece, Source, good_images
from raysid.errors import UserError

SETTING = "prompts.source"
TYPICAL_BYTES = 200  # of a prompt in memory
LOOKED_AT, MOST_LOOKED_AT = 1024, 16  # rows of a shard, and shards, among which examples are taken

reading_prompts = partial(reading_source, setting=SETTING)
"""As `raysid.data.files.reading_source`, with an error that names the setting of prompts."""


class PromptSource(Source):
    """Prompts in shards.

    Attributes:
        columns: the weights of the columns, by name, in the order in which a row's texts are joined.
    """

    what = "prompts"
    cut_freely = True
    columns: Mapping[str, float]

    @property
    def row_bytes(self) -> int:
        return TYPICAL_BYTES * max(1, len(self.columns))

    @property
    def num_prompts(self) -> int:
        """Number of rows, those that are left out when they are read included."""
        return int(self.shard_sizes.sum())


def text_block(
    rows: Sequence[Sequence[object]],
    names: Sequence[str],
    kept: Sequence[bool] | None = None,
    faults: Mapping[int, str] | None = None,
) -> Block:
    """Make a block of rows, each with the texts of its columns.

    Args:
        names: the rows' names in messages.
        kept: False for rows that are left out; None keeps all.
        faults: the faults of rows that could not be read, by their number in the block.

    Returns:
        The block, in which a row without any text is a fault, too.
    """
    texts = np.empty(len(rows), object)
    found = np.full(len(rows), "", object)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        row = [_encodable(cell) for cell in row]
        cells = [cell.replace(SEPARATOR, " ").strip() if isinstance(cell, str) else "" for cell in row]
        texts[number] = SEPARATOR.join(cells)
        if faults and number in faults:
            found[number] = faults[number]
        elif not any(cells) and (kept is None or kept[number]):
            odd = next((cell for cell in row if cell is not None and not isinstance(cell, str)), None)
            why = "empty" if odd is None else "not UTF-8" if odd == NOT_UTF8 else f"{_kind(odd)}, not a text"
            found[number] = f"{name} is {why}"
    block = Block(image=texts, label=np.zeros(len(rows), np.int64), fault=found)
    if kept is not None:
        block["left_out"] = ~np.asarray(kept, bool)
    return block


def _encodable(cell: object) -> object:
    """Return a cell, and `NOT_UTF8` for a text that has no UTF-8, such as one with half of a surrogate pair."""
    if isinstance(cell, str):
        try:
            cell.encode()
        except UnicodeEncodeError:
            return NOT_UTF8
    return cell


def _kind(value: object) -> str:
    """Name a value's kind as JSON does."""
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def chosen_columns(settings: PromptSettings, there: Sequence[str], name: str) -> dict[str, float]:
    """Return the weights of the columns of prompts among those that are there.

    Args:
        name: the source's name in messages.

    Raises:
        UserError: a column that is named is not there, or none is named and the choice is not clear.
    """
    listed = ", ".join(there[:20]) or "none"
    for column in [*settings.columns, *settings.min]:
        if column not in there:
            setting = "prompts.column" if column in settings.columns else "prompts.min"
            raise UserError(f"{setting}: {name} has no column {column}; columns: {listed}")
    if settings.columns:
        return settings.columns
    usual = [column for column in USUAL_COLUMNS if column in there]
    if len(usual) != 1:
        held = f"several ({', '.join(usual)})" if usual else "none"
        raise UserError(
            f"{name} has {held} of the usual columns of prompts ({', '.join(USUAL_COLUMNS)}): give prompts.column; "
            f"columns: {listed}"
        )
    return {usual[0]: 1.0}


def all_prompts(source: PromptSource) -> Iterator[str]:
    """Return every text of a source that can be used, in its order, of all columns."""
    for shard, size in enumerate(source.shard_sizes.tolist()):
        for block in source.read(Piece(shard, 0, size)):
            for text in block["image"][block["fault"] == ""]:
                yield from filter(None, text.split(SEPARATOR))


def first_prompts(source: PromptSource, count: int) -> tuple[str, ...]:
    """Return the first prompts of a source that can be used, in its order; of several columns the first text."""
    found: list[str] = []
    for shard, size in enumerate(source.shard_sizes.tolist()):
        for block in source.read(Piece(shard, 0, min(size, LOOKED_AT))):
            texts = (text.split(SEPARATOR) for text in good_images(block)["image"])
            found += [next(filter(None, columns)) for columns in texts]
            if len(found) >= count:
                return tuple(found[:count])
        if shard >= MOST_LOOKED_AT:
            break
    return tuple(found)
