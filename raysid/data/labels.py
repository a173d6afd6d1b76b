"""Class numbers 0 to n - 1 for the labels that files have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysid.errors import UserError

MAX_CLASSES = 1_000_000


class Labels(NamedTuple):
    """The classes of a list of images.

    Attributes:
        numbers: int64 (n,); -1 for an image without a label among others that have one; all zeros if none has.
        names: of the classes, or their numbers if they have no names. Empty if there are no labels.
    """

    numbers: NDArray[np.int64]
    names: list[str]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images of each class, (len(names),)."""
        return np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.names))[: len(self.names)]


def class_labels(found: Sequence[Any], where: str) -> Labels:
    """Number the labels of a list of images: whole numbers from 0 stay as they are, names are numbered in sorted order.

    Args:
        found: the label of each image; None if it has none.
        where: the origin of the labels, for an error.

    Raises:
        UserError: labels are of another type, or mix numbers and names.
    """
    given = [label for label in found if label is not None]
    if not given:
        return Labels(np.zeros(len(found), np.int64), [])
    if all(type(label) is str for label in given):
        names = sorted(set(given))
        number = {name: index for index, name in enumerate(names)}
        return Labels(np.array([-1 if x is None else number[x] for x in found], np.int64), names)
    odd = next((x for x in given if type(x) is not int or not 0 <= x < MAX_CLASSES), None)
    if odd is not None:
        raise UserError(
            f"{where} has the label {odd!r}: classes are whole numbers from 0, or every label must be a name"
        )
    numbers = np.array([-1 if x is None else x for x in found], np.int64)
    return Labels(numbers, [str(number) for number in range(int(numbers.max()) + 1)])
