"""Labels of pictures in a folder: those of EDM's `dataset.json`, or the subfolders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from upath import UPath

from raysid.data.files import File, Found
from raysid.data.labels import DATASET_JSON, MAX_LABELS, listed_labels, match_labels, names_listed
from raysid.errors import UserError, printable
from raysid.storage import file_size, read_whole

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


def folder_labels(found: Found) -> FolderLabels:
    """Return the labels of a folder's pictures.

    Raises:
        UserError: a file of labels is damaged, or names none of the pictures.
    """
    return _of_dataset_json(found) or _of_folders(found)


def _of_dataset_json(found: Found) -> FolderLabels | None:
    """The labels of a `dataset.json` in whose folder all pictures lie; None if there is none."""
    files = [file for file in found.others if file.parts[-1] == DATASET_JSON]
    files = [file for file in files if all(_lies_below(picture, file) for picture in found.files)]
    if not files:
        return None
    file = min(files, key=lambda file: len(file.parts))
    where = printable(file.path)
    if file_size(UPath(file.path)) > MAX_LABELS:
        raise UserError(f"{where} is too large: {MAX_LABELS:,} bytes are the limit")
    try:
        by_name = listed_labels(read_whole(UPath(file.path)))
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
    labels = [file.parts[0] if len(file.parts) > 1 else None for file in found.files]
    others = {file.parts[0] for file in found.others if len(file.parts) > 1} - set(labels)
    if any(labels) and others:
        note = f"no pictures in the folders {names_listed(sorted(others))}: they are no classes"
        return FolderLabels(labels, found.name, (note,))
    return FolderLabels(labels, found.name)
