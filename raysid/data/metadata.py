"""The `metadata.csv` or `metadata.jsonl` of a folder of pictures, as in Hugging Face's imagefolder: labels by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from raysid.data.files import damaged_file
from raysid.data.labels import numbers_of_texts, read_label_file
from raysid.data.listing import File
from raysid.storage.plain_json import parse_json

METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"  # the column of the pictures' names, below the metadata's own folder


class Metadata(NamedTuple):
    """A column's values by the pictures' names below the folder that the source names; all columns that there are."""

    by_name: dict[str, Any]
    columns: list[str]


def read_metadata(files: Sequence[File], label_column: str) -> Metadata:
    """Read the labels in files of metadata.

    Raises:
        UserError: one is too large or damaged, or has no column of names.
    """
    found = read_column(files, label_column)
    labels = numbers_of_texts(list(found.by_name.values()))
    return found._replace(by_name=dict(zip(found.by_name, labels, strict=True)))


def read_column(files: Sequence[File], column: str | None) -> Metadata:
    """Read a column of files of metadata as it is; None reads only the names of the columns.

    Raises:
        UserError: as `read_metadata`.
    """
    by_name: dict[str, Any] = {}
    columns: dict[str, None] = {}
    for file in files:
        for row in _rows(file):
            columns |= dict.fromkeys(row)
            name = "/".join([*file.parts[:-1], str(row[FILE_NAME])])
            if column in row:
                by_name[name] = row[column]
    return Metadata(by_name, [*columns])


def _rows(file: File) -> list[dict[str, Any]]:
    text = read_label_file(file).decode("utf-8-sig", "replace")
    with damaged_file(file.path, "metadata of pictures"):
        if file.parts[-1].endswith(".csv"):
            rows: list[Any] = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row, dict) and FILE_NAME in row for row in rows):
            raise ValueError(f"a row has no {FILE_NAME}")
    return rows
