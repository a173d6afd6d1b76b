"""Labels as files have them, as classes 0 to n - 1."""

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
        numbers: int64 (n,); -1 where an image has none and others have one; zeros where none has.
        names: of the classes; their numbers where they have no others. Empty where there are no labels.
    """

    numbers: NDArray[np.int64]
    names: list[str]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images of each class, (len(names),)."""
        return np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.names))[: len(self.names)]


def class_labels(found: Sequence[Any], where: str) -> Labels:
    """Labels from what stands beside the images: whole numbers from 0 as they are, texts in their sorted order.

    Args:
        found: of each image; None where it has none.
        where: what to say in an error.

    Raises:
        UserError: they are neither.
    """
    given = [label for label in found if label is not None]
    if not given:
        return Labels(np.zeros(len(found), np.int64), [])
    if all(type(label) is str for label in given):
        names = sorted(set(given))
        number = {name: place for place, name in enumerate(names)}
        return Labels(np.array([-1 if x is None else number[x] for x in found], np.int64), names)
    odd = next((x for x in given if type(x) is not int or not 0 <= x < MAX_CLASSES), None)
    if odd is not None:
        raise UserError(
            f"{where} has the label {odd!r}: classes are whole numbers from 0, or all of them names"
        )
    numbers = np.array([-1 if x is None else x for x in found], np.int64)
    return Labels(numbers, [str(number) for number in range(int(numbers.max()) + 1)])
