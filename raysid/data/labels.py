"""Class labels of pictures: how they are numbered, and the `dataset.json` that lists them by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysid.config.networks import MAX_CLASSES
from raysid.data.listing import File
from raysid.errors import UserError, printable
from raysid.storage import file_size, listed_path, read_whole
from raysid.storage.plain_json import parse_json

LABEL_COLUMN = "label"  # the default of `data.label_column`
DATASET_JSON = "dataset.json"
MAX_LABELS = 1 << 27  # bytes of a file of labels; ImageNet's dataset.json has 50 million
MAX_DIGITS = 19  # of a number in text; a longer one is a name
LISTED = 12  # columns and fields that a message names
DEEPEST = 8  # folders that names may differ by


class Labels(NamedTuple):
    """The classes of a list of images.

    Attributes:
        numbers: int64 (n,); -1 for an image without a label among others that have one; all zeros if none has.
        names: of the classes, or their numbers if they have no names. Empty if there are no labels.
    """

    numbers: NDArray[np.int64]
    names: list[str]


def no_labels(count: int) -> Labels:
    """Return the labels of images without classes."""
    return Labels(np.zeros(count, np.int64), [])


def class_labels(found: Sequence[Any], where: str) -> Labels:
    """Number the labels of a list of images: whole numbers from 0 stay as they are, names are numbered in sorted order.

    Args:
        found: the label of each image; None if it has none. Booleans, and floats without a fraction, are whole numbers.
        where: the origin of the labels, for an error.

    Raises:
        UserError: labels are of another type, or mix numbers and names.
    """
    labels = [_plain(label) for label in found]
    given = [label for label in labels if label is not None]
    if not given:
        return no_labels(len(labels))
    if all(type(label) is str for label in given):
        names = sorted(set(given))
        number = {name: index for index, name in enumerate(names)}
        return Labels(np.array([-1 if x is None else number[x] for x in labels], np.int64), names)
    odd = next((x for x in given if type(x) is not int or not 0 <= x < MAX_CLASSES), None)
    if odd is not None:
        raise UserError(
            f"{where} has the label {odd!r}: classes are whole numbers from 0, or every label must be a name"
        )
    numbers = np.array([-1 if x is None else x for x in labels], np.int64)
    return Labels(numbers, [str(number) for number in range(int(numbers.max()) + 1)])


def _plain(label: Any) -> Any:
    if isinstance(label, bool):
        return int(label)
    if isinstance(label, float):
        return None if math.isnan(label) else int(label) if label.is_integer() else label
    return label


def number_or_name(text: str) -> int | str | None:
    """Return the label that a text is: a number, a name, or None if it is blank."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else text or None


def numbers_of_texts(labels: Sequence[Any]) -> list[Any]:
    """Return labels with texts of digits as numbers, if every label then is a number."""
    numbers = [number_or_name(label) if type(label) is str else label for label in labels]
    return list(labels) if any(type(number) is str for number in numbers) else numbers


def names_listed(names: Sequence[str]) -> str:
    """Return the first of some names of columns or fields, for a message."""
    more = len(names) - LISTED
    return (
        printable(", ".join(names[:LISTED])) + (f" and {more} more" if more > 0 else "") if names else "none"
    )


def read_label_file(file: File) -> bytes:
    """Read a file of labels. Raises UserError if it is too large."""
    path = listed_path(file.path)
    if file_size(path) > MAX_LABELS:
        raise UserError(f"{printable(file.path)} is too large: {MAX_LABELS:,} bytes are the limit")
    return read_whole(path)


def listed_labels(content: bytes) -> dict[str, Any]:
    """Read a `dataset.json`: {"labels": [["00000/img00000000.png", 6], ...]}, a mapping in place of the list, or null.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it is damaged.
    """
    listed: Any = parse_json(content)["labels"]
    pairs = listed.items() if isinstance(listed, Mapping) else listed or []
    return {str(name): label for name, label in pairs}


def match_labels(by_name: Mapping[str, Any], pictures: Sequence[str], where: str) -> list[Any]:
    """Return the label of each picture, None for one that is not listed.

    As EDM's dataset tool does, backslashes count as slashes. If no name is that of a picture, the names may differ by
    folders in which all of the pictures, or all of the listed files, lie.

    Args:
        by_name: labels by the pictures' names, of any length.
        pictures: the pictures' names.
        where: the origin of the labels, for an error.

    Raises:
        UserError: there are labels, and no picture has one.
    """
    listed = {_parts(name): label for name, label in by_name.items()}
    names = [_parts(name) for name in pictures]
    labels = [by_name.get(name, listed.get(parts)) for name, parts in zip(pictures, names, strict=True)]
    if all(label is None for label in by_name.values()) or any(label is not None for label in labels):
        return labels
    depths = product(range(_shared(list(listed)) + 1), range(_shared(names) + 1))
    for above, below in sorted(depths, key=sum):
        shorter = {parts[above:]: label for parts, label in listed.items()}
        labels = [shorter.get(parts[below:]) for parts in names]
        if any(label is not None for label in labels):
            return labels
    raise UserError(
        f"{where} names none of the pictures: it has {printable(next(iter(by_name)))!r}, the first picture is "
        f"{printable(pictures[0])!r}; correct the names, or set its labels to null to train without them"
    )


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _shared(names: Sequence[tuple[str, ...]]) -> int:
    """The number of folders in which all of these files lie."""
    first, last = min(names), max(names)  # the others share what these two share
    count = 0
    for one, other in zip(first[:-1], last[:-1], strict=False):
        if one != other:
            break
        count += 1
    return min(count, DEEPEST)
