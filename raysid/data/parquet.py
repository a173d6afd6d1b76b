"""Parquet files: a column of pictures, and a column of labels or folders named after them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.files import Found, damaged_file, reading_source
from raysid.data.footers import FORM, read_footers
from raysid.data.labels import LABEL_COLUMN, Labels, class_labels, names_listed, no_labels
from raysid.data.listing import File, in_threads
from raysid.data.pages import Ahead, DeadlyPages, PageFile
from raysid.data.parquet_columns import (
    cells,
    holds_captions,
    holds_labels,
    holds_paths,
    holds_pictures,
    image_column,
    pictures,
)
from raysid.data.picture_captions import caption_column
from raysid.data.picture_source import IMAGES_PER_SHARD, Content, PictureSource, left_out_note
from raysid.data.pictures import MAX_PICTURE, BadPicture
from raysid.data.source import Piece, Texts
from raysid.data.splits import splits_note
from raysid.errors import UserError, printable
from raysid.storage import open_file
from raysid.storage.failures import explain
from raysid.storage.plain_json import parse_json

INDEX = "raysid_index"
"""Column in which `raysid data convert` stores a picture's index in the list that it was made from."""
CLASSES = b"raysid_classes"
"""Key of a file's metadata under which `raysid data convert` stores the names of the classes, as JSON."""
ROWS_AT_A_TIME = 256
BYTES_AT_A_TIME = 1 << 26  # of rows at a time
CELL_OVERHEAD = 64  # bytes that Parquet may add to a cell
_LABELS_AT_A_TIME = BoundedSemaphore(4)  # each takes a process; their bytes are read sixteen at a time
CONVERTED = re.compile(r"part-\d+-of-(\d+)\.parquet")  # file names of `raysid data convert`


class ParquetSource(PictureSource):
    """The rows of Parquet files, in the order of the files' paths.

    A shard is one or more consecutive row groups of a file, up to 1,024 images if there are several. Pictures are
    bytes, or a struct with `bytes` as in Hugging Face's datasets; or files beside the Parquet file, which a struct's
    `path` or the column `data.image_column` names. Labels are the column `data.label_column`, or the value in the
    files' paths if folders are named `label=value`.

    Args:
        captioned: read captions, the column `data.caption_column`, in place of labels.

    Raises:
        UserError: a file is not Parquet, the columns are missing or ambiguous, or labels are not classes.
    """

    def __init__(self, found: Found, data: DataSettings, captioned: bool = False) -> None:
        self.captioned = captioned
        self.name = found.name
        paths = [file.path for file in found.files]
        _check_whole(found)
        with reading_source(found.name):
            footers = read_footers(paths)
        schema = footers[0].schema.to_arrow_schema()
        where = f"data.source {found.name} ({found.files[0].path})"
        self.image_column = image_column(schema, data.image_column, where)
        self.has_index = INDEX in schema.names
        self.paths = Texts(paths)
        for path, footer in zip(paths, footers, strict=True):
            _check_file(path, footer, self.image_column, self.has_index, paths[0])
        self.groups, self.starts = _shards(footers)
        if captioned:
            self.caption_column = caption_column(data.caption_column, schema.names, where)
            for path, footer in zip(paths, footers, strict=True):
                _check_captions(path, footer.schema.to_arrow_schema(), self.caption_column)
            self.labels = no_labels(int(self.starts[-1]))
        else:
            self.labels = _labels(found, footers, data.label_column, self.image_column)
        if not (captioned or self.labels.names):
            self.notes += _without_labels(found, footers, data.label_column)
        self.notes += splits_note(found.files) + left_out_note(found.not_read())

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def contents(self, piece: Piece) -> Iterator[Content]:
        number, first, last = (int(value) for value in self.groups[piece.shard])
        path, start = self.paths[number], int(self.starts[piece.shard])
        with reading_source(self.name), open_file(path) as opened, PageFile(path, opened) as pages:
            footer = pq.ParquetFile(opened).metadata
            row = 0
            for group in range(first, last):
                rows = footer.row_group(group).num_rows
                part = range(max(piece.first - row, 0), min(piece.last - row, rows))
                if part:
                    entries = range(start + row + part.start, start + row + part.stop)
                    labels = self.labels.numbers[entries.start : entries.stop].tolist()
                    found = self._rows(path, pages, footer.row_group(group), group, part)
                    for entry, label, (picture, index, caption) in zip(entries, labels, found, strict=True):
                        yield Content(entry, entry if index is None else index, label, picture, caption)
                row += rows

    def name_of(self, entry: int) -> str:
        number = int(self.groups[np.searchsorted(self.starts, entry, side="right") - 1, 0])
        first = int(self.starts[np.searchsorted(self.groups[:, 0], number)])  # of the file
        return printable(f"row {entry - first} of {self.paths[number]}")

    def _rows(
        self, path: str, pages: PageFile, outline: Any, group: int, part: range
    ) -> Iterator[tuple[bytes | BadPicture, int | None, object]]:
        """Picture, stored index and caption of some rows of a row group, read in batches; rows after damage are bad."""
        columns = [self.image_column] + [INDEX] * self.has_index
        columns += [self.caption_column] * self.captioned
        whole, dictionary = self._bytes(outline)
        mean = whole // max(outline.num_rows, 1)
        if mean > MAX_PICTURE + CELL_OVERHEAD:
            # Do not read what is refused anyway: it may exceed the memory.
            yield from [(BadPicture(f"is in a row group of {mean:,} bytes per row"), None, None)] * len(part)
            return
        # A dictionary stores a repeated value once; the decoded rows each hold a full copy.
        at_a_time = min(ROWS_AT_A_TIME, BYTES_AT_A_TIME // max(mean, dictionary, 1))
        batches = pages.batches([group], columns, max(1, at_a_time))
        begin = 0  # of the batch
        while begin < part.stop:
            missing = part.stop - max(begin, part.start)
            try:
                batch = next(batches, None)
            except (DeadlyPages, ValueError) as error:
                yield from [(BadPicture(f"cannot be read: {explain(error)}"), None, None)] * missing
                return
            if batch is None:
                yield from [(BadPicture("is cut off: its row group ends before it"), None, None)] * missing
                return
            wanted = batch.slice(min(max(part.start - begin, 0), len(batch)), missing)
            begin += len(batch)
            nothing = [None] * len(wanted)
            kept = wanted.column(INDEX).to_pylist() if self.has_index else nothing
            captions = cells(wanted.column(self.caption_column)) if self.captioned else nothing
            yield from zip(pictures(wanted.column(self.image_column), path), kept, captions, strict=True)

    def _bytes(self, group: Any) -> tuple[int, int]:
        """Bytes of a row group's pictures, and how many of them may be in a dictionary."""
        chunks = [group.column(column) for column in range(group.num_columns)]
        sizes = [
            (chunk.total_uncompressed_size, chunk.has_dictionary_page)
            for chunk in chunks
            if chunk.path_in_schema in (self.image_column, f"{self.image_column}.bytes")
        ]
        return sum(size for size, _ in sizes), sum(size for size, has_dictionary in sizes if has_dictionary)


def _check_whole(found: Found) -> None:
    """Check that the folder of a conversion is complete."""
    parts = [CONVERTED.fullmatch(file.parts[-1]) for file in found.files]
    totals = {int(part[1]) for part in parts if part}
    in_one_folder = all(len(file.parts) == 1 for file in found.files) and not found.name.endswith(".parquet")
    if all(parts) and in_one_folder and len(totals) == 1 and len(parts) < (total := totals.pop()):
        raise UserError(
            f"data.source {found.name}: {len(parts)} of {total} files are there; run the same `raysid data convert` "
            "to write the others"
        )


def _check_file(path: str, footer: pq.FileMetaData, column: str, has_index: bool, first: str) -> None:
    """Check that a file has the columns of the first one, and consistent numbers of rows."""
    schema = footer.schema.to_arrow_schema()
    if column not in schema.names:
        raise UserError(f"{path} has no column {column}, which {first} has")
    kind = schema.field(column).type
    if not (holds_pictures(kind) or holds_paths(kind)):
        raise UserError(f"{path} has no bytes in its column {column}, which {first} has")
    if (INDEX in schema.names) != has_index:
        raise UserError(
            f"only one of {path} and {first} has a column {INDEX}: they are from different conversions"
        )
    if has_index and schema.field(INDEX).type != pa.int64():
        raise UserError(f"{path} has a column {INDEX} of {schema.field(INDEX).type}: int64 is needed")
    rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if min(rows, default=0) < 0 or footer.num_rows != sum(rows):
        raise UserError(
            f"{path} is damaged: its footer has {footer.num_rows:,} rows, its groups {sum(rows):,}"
        )


def _check_captions(path: str, schema: pa.Schema, column: str) -> None:
    """Check that a file has the column of captions. Raises UserError."""
    if column not in schema.names:
        raise UserError(f"{path} has no column {column}, which other files have")
    if not holds_captions(kind := schema.field(column).type):
        raise UserError(
            f"data.caption_column {column} of {path} holds {kind}: captions are texts, or lists of texts"
        )


def _shards(footers: Sequence[pq.FileMetaData]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(file, first row group, last) of each shard (n, 3), and the entry of its first row (n + 1,)."""
    groups: list[tuple[int, int, int]] = []
    starts, entry = [0], 0
    for number, footer in enumerate(footers):
        first, size = 0, 0
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            if size and size + rows > IMAGES_PER_SHARD:
                groups.append((number, first, group))
                starts.append(entry)
                first, size = group, 0
            size, entry = size + rows, entry + rows
        if size:
            groups.append((number, first, footer.num_row_groups))
            starts.append(entry)
    if not groups:
        raise UserError("data.source holds Parquet files without rows")
    return np.array(groups, np.int64), np.array(starts, np.int64)


def _labels(found: Found, footers: Sequence[pq.FileMetaData], column: str, image_column: str) -> Labels:
    """Read the labels of all rows, from their column or from the names of their folders."""
    if column == image_column:
        raise UserError(f"data.label_column and data.image_column are both {column}")
    values: list[Any] = []
    with reading_source(found.name):
        for labels in in_threads(partial(_file_labels, column), found.files, footers):
            values += labels
    return _with_names(class_labels(values, found.name), footers)


def _with_names(labels: Labels, footers: Sequence[pq.FileMetaData]) -> Labels:
    """Give classes the names that `raysid data convert` has kept, if the files have the same ones."""
    kept = {footer.metadata[CLASSES] for footer in footers if CLASSES in (footer.metadata or {})}
    if len(kept) != 1 or not labels.names:
        return labels
    try:
        names = parse_json(kept.pop())
    except ValueError:
        return labels
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return Labels(labels.numbers, names) if fits and len(names) >= len(labels.names) else labels


def _without_labels(found: Found, footers: Sequence[pq.FileMetaData], column: str) -> tuple[str, ...]:
    """Return the note on files without labels. Raises UserError if the label's column was given, but does not exist."""
    columns = {name: None for footer in footers for name in footer.schema.to_arrow_schema().names}
    columns |= {name: None for file in found.files for name, _ in _partitions(file)}
    listed = f"no column {printable(column)}; columns: {names_listed([*columns])}"
    if column in columns:
        return (f"no labels: the column {printable(column)} is empty",)
    if column != LABEL_COLUMN:
        raise UserError(f"data.source {found.name} has {listed}: correct data.label_column")
    return (f"no labels: there is {listed} (data.label_column names the column of the labels)",)


def _file_labels(column: str, file: File, footer: pq.FileMetaData) -> list[Any]:
    if column not in footer.schema.to_arrow_schema().names:
        return [_partition(file, column)] * footer.num_rows
    kind = footer.schema.to_arrow_schema().field(column).type
    if not holds_labels(kind):
        raise UserError(f"{file.path} has {kind} in its column {column}: labels are whole numbers or names")
    labels: list[Any] = []
    with open_file(file.path) as opened, damaged_file(file.path, FORM):
        ahead = Ahead(opened, footer, column)
        with _LABELS_AT_A_TIME, PageFile(file.path, ahead) as pages:
            for batch in pages.batches(range(footer.num_row_groups), [column], IMAGES_PER_SHARD):
                labels += batch.column(0).to_pylist()
    if len(labels) != footer.num_rows:
        raise UserError(f"{file.path} is damaged: of {footer.num_rows:,} rows {len(labels):,} have a label")
    return labels


def _partition(file: File, column: str) -> int | str | None:
    """The value of a folder `column=value` in a file's path."""
    value = next((value for name, value in _partitions(file) if name == column), None)
    return int(value) if value is not None and value.isascii() and value.isdigit() else value


def _partitions(file: File) -> Iterator[tuple[str, str]]:
    """The names and values of folders `column=value` in a file's path."""
    for part in file.path.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and value != "__HIVE_DEFAULT_PARTITION__":
            yield unquote(name), unquote(value)
