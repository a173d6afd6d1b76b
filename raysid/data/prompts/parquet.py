"""Parquet files with columns of prompts and of scores, such as Recap-DataComp-1B's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysid.config.prompts import PromptSettings
from raysid.data.files import Found
from raysid.data.footers import read_footers
from raysid.data.pages import DeadlyPages, PageFile
from raysid.data.parquet_columns import cells
from raysid.data.prompts.source import PromptSource, chosen_columns, reading_prompts, text_block
from raysid.data.source import Block, Piece, Texts
from raysid.errors import UserError, printable
from raysid.storage import open_file
from raysid.storage.failures import explain

ROWS_AT_A_TIME = 16_384


class ParquetPrompts(PromptSource):
    """The rows of Parquet files, in the order of the files' paths. A shard is a row group.

    Only the footers are read when it is opened, so a set of a billion rows takes as long as its number of files does.

    Raises:
        UserError: a file is not Parquet, columns are missing or hold no text, or there are no rows.
    """

    cut_freely = False

    def __init__(self, found: Found, settings: PromptSettings) -> None:
        self.name = found.name
        paths = [file.path for file in found.files]
        self.paths = Texts(paths)
        with reading_prompts(found.name):
            footers = read_footers(paths)
        schema = footers[0].schema.to_arrow_schema()
        self.columns = chosen_columns(settings, schema.names, printable(paths[0]))
        self.min = dict(settings.min)
        groups = []
        for number, (path, footer) in enumerate(zip(paths, footers, strict=True)):
            self._check_columns(path, footer.schema.to_arrow_schema())
            sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            groups += [
                (number, group, int(starts[group]), size) for group, size in enumerate(sizes) if size > 0
            ]
        if not groups:
            raise UserError(f"prompts.source {found.name} holds Parquet files without rows")
        # Of each shard: file, row group, number of its first row in the file, rows.
        self.groups = np.array(groups, np.int64)

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return self.groups[:, 3]

    def read(self, piece: Piece) -> Iterator[Block]:
        number, group, start, _ = (int(value) for value in self.groups[piece.shard])
        path = self.paths[number]
        wanted = [*dict.fromkeys([*self.columns, *self.min])]
        row = 0
        with reading_prompts(self.name), open_file(path) as opened, PageFile(path, opened) as pages:
            batches = pages.batches([group], wanted, ROWS_AT_A_TIME)
            while row < piece.last:
                why = "its row group ends before it"
                try:
                    batch = next(batches, None)
                except (DeadlyPages, ValueError) as error:
                    batch, why = None, explain(error)
                end = piece.last if batch is None else row + len(batch)
                part = range(max(piece.first, row), min(piece.last, end))
                names = [f"row {start + each} of {printable(path)}" for each in part]
                if batch is None:  # what follows damage is not read
                    faults = {row: f"{name} cannot be read: {why}" for row, name in enumerate(names)}
                    yield text_block([[""]] * len(names), names, faults=faults)
                elif part:
                    yield self._block(batch.slice(part.start - row, len(part)), names)
                row = end

    def _block(self, batch: pa.RecordBatch, names: list[str]) -> Block:
        columns = [cells(batch.column(name)) for name in self.columns]
        kept = None
        if self.min:
            masks = [pc.greater_equal(batch.column(name), value) for name, value in self.min.items()]
            filled = [pc.fill_null(mask, False).to_numpy(zero_copy_only=False) for mask in masks]
            kept = np.logical_and.reduce(filled)
        return text_block([*zip(*columns, strict=True)], names, kept)

    def _check_columns(self, path: str, schema: pa.Schema) -> None:
        """Check that a file has the columns, of texts and of numbers."""
        for name in (*self.columns, *self.min):
            if name not in schema.names:
                raise UserError(
                    f"{printable(path)} has no column {name}, which {printable(self.paths[0])} has"
                )
        for name in self.columns:
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (
                pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            ):
                raise UserError(f"prompts.column {name} of {printable(path)} holds {kind}: prompts are texts")
        for name in self.min:
            kind = schema.field(name).type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise UserError(
                    f"prompts.min: the column {name} of {printable(path)} holds {kind}, not numbers"
                )
