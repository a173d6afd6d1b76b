"""Labels of pictures in a folder: those of a `metadata.csv` or of EDM's `dataset.json`, or the subfolders; captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from raysid.data.files import Found
from raysid.data.labels import (
    DATASET_JSON,
    LABEL_COLUMN,
    listed_labels,
    match_labels,
    names_listed,
    read_label_file,
)
from raysid.data.listing import File
from raysid.data.metadata import METADATA, read_column, read_metadata
from raysid.data.picture_captions import caption_column
from raysid.data.splits import is_split, splits_note
from raysid.errors import UserError, printable

_CHUNK = re.compile(r"(\d{5})/img\d{8}\.\w+")  # a picture's path as EDM's dataset tool writes it


class FolderLabels(NamedTuple):
    """The label of each picture, None if it has none; the origin of the labels; and notes for the user.

    Attributes:
        read: the files that hold the labels.
    """

    labels: Sequence[Any]
    where: str
    notes: tuple[str, ...] = ()
    read: tuple[File, ...] = ()


def folder_labels(found: Found, column: str) -> FolderLabels:
    """Return the labels of a folder's pictures.

    Args:
        column: the column of a `metadata.csv` that holds them.

    Raises:
        UserError: a file of labels is damaged or names none of the pictures, or the column was given, but no file has
            it and there are no other labels.
    """
    files = tuple(file for file in found.others if file.parts[-1] in METADATA)
    metadata = read_metadata(files, column)
    if metadata.by_name:
        where = printable(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        names = ["/".join(picture.parts) for picture in found.files]
        notes = (f"labels are the column {printable(column)} of {where}",)
        return FolderLabels(match_labels(metadata.by_name, names, where), where, notes, files)
    labels = _of_dataset_json(found) or _of_folders(found)
    if any(label is not None for label in labels.labels) or not (files or column != LABEL_COLUMN):
        return labels
    listed = f"no metadata.csv with a column {printable(column)}; columns: {names_listed(metadata.columns)}"
    if column != LABEL_COLUMN:
        raise UserError(f"data.source {found.name} has {listed}: correct data.label_column")
    return labels._replace(notes=(*labels.notes, f"no labels: there is {listed}"))


def folder_captions(found: Found, column: str | None) -> FolderLabels:
    """Return the captions of a folder's pictures, in the place of labels; None for a picture without one.

    Args:
        column: the column of a `metadata.csv` that holds them; None for the one of the usual names.

    Raises:
        UserError: there is no such file or column, the file is damaged, or it names none of the pictures.
    """
    files = tuple(file for file in found.others if file.parts[-1] in METADATA)
    if not files:
        raise UserError(f"data.source {found.name} has no captions: there is no {' or '.join(METADATA)}")
    where = printable(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    column = caption_column(column, read_column(files, None).columns, where)
    captions = read_column(files, column).by_name
    names = ["/".join(picture.parts) for picture in found.files]
    return FolderLabels(match_labels(captions, names, where), where, read=files)


def _of_dataset_json(found: Found) -> FolderLabels | None:
    """The labels of a `dataset.json` in whose folder all pictures lie; None if there is none."""
    files = [file for file in found.others if file.parts[-1] == DATASET_JSON]
    files = [file for file in files if all(_lies_below(picture, file) for picture in found.files)]
    if not files:
        return None
    file = min(files, key=lambda file: len(file.parts))
    where = printable(file.path)
    content = read_label_file(file)
    try:
        by_name = listed_labels(content)
    except KeyError:  # of another tool
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {error!r}") from None
    names = ["/".join(picture.parts[len(file.parts) - 1 :]) for picture in found.files]
    return FolderLabels(match_labels(by_name, names, where), where, read=(file,))


def _lies_below(picture: File, file: File) -> bool:
    folder = file.parts[:-1]
    return picture.parts[: len(folder)] == folder


def _of_folders(found: Found) -> FolderLabels:
    """The subfolders that the pictures lie in; EDM's, which each hold a part of all pictures, are no classes."""
    if all(_CHUNK.fullmatch("/".join(file.parts)) for file in found.files):
        return FolderLabels(
            [None] * len(found.files),
            found.name,
            (f"no labels: the folders are those of EDM's dataset tool, and there is no {DATASET_JSON}",),
        )
    # The classes of data/train/cat/ lie below the split.
    depth = int(all(len(file.parts) > 1 and is_split(file.parts[0]) for file in found.files))
    labels = [_folder(file, depth) for file in found.files]
    others = {name for file in found.others if (name := _folder(file, depth)) is not None} - set(labels)
    notes = splits_note(found.files) if depth else ()
    if any(labels) and others:
        notes += (f"no pictures in the folders {names_listed(sorted(others))}: they are no classes",)
    return FolderLabels(labels, found.name, notes)


def _folder(file: File, depth: int) -> str | None:
    return file.parts[depth] if len(file.parts) > depth + 1 else None
