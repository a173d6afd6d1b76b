"""Captions of handwritten digits, and their reading: a vocabulary small enough to say whether an image agrees.

A caption names the digit, and some of three attributes of how it is written: ink, width and slant. Each attribute is
low or high where the image's own measure lies in the lowest or the highest third of its digit's, so that captions are
true of the image; the middle third is not named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raysid.data.scikit_learn import DigitsSource
from raysid.data.source import random_words

Level = Literal[-1, 1]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = ("ink", "width", "slant")
# The words of each attribute, low and high. The last of each is held out: no caption of the training set has it.
WORDS: dict[str, dict[Level, tuple[str, ...]]] = {
    "ink": {-1: ("thin", "fine", "faint", "delicate"), 1: ("bold", "heavy", "dark", "thick")},
    "width": {-1: ("narrow", "slim", "tight", "slender"), 1: ("wide", "broad", "spread out", "stretched")},
    "slant": {
        -1: ("leaning left", "tilted to the left", "slanting to the left", "inclined to the left"),
        1: ("leaning right", "tilted to the right", "slanting to the right", "inclined to the right"),
    },
}
_LEVELS = {
    (name, word): level for name in ATTRIBUTES for level, known in WORDS[name].items() for word in known
}
PER_PICTURE = 8  # captions of each image
CAPTION_PURPOSE = 0x5EA4  # separates the words from other draws of the run's seed
SAID = 0.6  # probability that an attribute that is low or high is named


@dataclass(frozen=True)
class Meaning:
    """The meaning of a caption: the digit, and the level of each attribute that it names."""

    digit: int
    levels: dict[str, Level] = field(default_factory=dict)


def measures_of(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Measure ink, width and slant of grey images (N, 1, H, W), 0 for empty to 1 for full.

    Returns:
        (N, 3): the mean of the ink; the standard deviation of its columns, in pixels; the shear of its columns by its
        rows, positive where the top leans to the right.
    """
    ink = np.clip(images[:, 0].astype(np.float64), 0, 1)
    rows, columns = np.arange(ink.shape[1])[:, None], np.arange(ink.shape[2])
    total = ink.sum((1, 2)) + 1e-9
    row, column = ((ink * place).sum((1, 2)) / total for place in (rows, columns))
    from_row, from_column = rows[None] - row[:, None, None], columns[None, None] - column[:, None, None]
    spread = np.sqrt((ink * from_column**2).sum((1, 2)) / total)
    tall = (ink * from_row**2).sum((1, 2)) / total + 1e-9
    shear = -(ink * from_row * from_column).sum((1, 2)) / total / tall
    return np.stack([ink.mean((1, 2)), spread, shear], 1)


@lru_cache(maxsize=1)
def thirds() -> NDArray[np.float64]:
    """Return the bounds of the middle third of each attribute of each digit's real images: (10, 3, 2)."""
    images, labels = _digits()
    measures = measures_of(images)
    return np.stack([np.quantile(measures[labels == digit], (1 / 3, 2 / 3), axis=0).T for digit in range(10)])


def levels_of(images: NDArray[np.floating], digits: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the level of each attribute of images (N, 1, H, W) as their digits: -1, 0 or 1, (N, 3)."""
    bounds = thirds()[np.asarray(digits)]
    measures = measures_of(images)
    return (measures > bounds[..., 1]).astype(np.int64) - (measures < bounds[..., 0])


def write_caption(digit: int, levels: Iterable[int], seed: int, *address: int, held_out: bool = False) -> str:
    """Write a caption of a digit whose attributes have these levels.

    Args:
        seed, address: numbers that decide the choice of words; the address is that of the image and the caption.
        held_out: name each attribute that is low or high, by the word that no other caption has.
    """
    numbers = iter(random_words(seed, 1 + 2 * len(ATTRIBUTES), CAPTION_PURPOSE, *address) * 2.0**-64)
    words = {}
    for name, level in zip(ATTRIBUTES, levels, strict=True):
        chance, choice = next(numbers), next(numbers)
        if level == 0 or not (held_out or chance < SAID):
            continue
        known = WORDS[name][1 if level > 0 else -1]
        words[name] = known[-1] if held_out else known[int(choice * (len(known) - 1))]
    named = DIGITS[digit] if next(numbers) < 0.5 else str(digit)
    noun = " ".join([*(words[name] for name in ("ink", "width") if name in words), named])
    article = "an" if re.match(r"[aeiou]|8", noun) and not noun.startswith("one") else "a"
    return " ".join([article, noun, *([words["slant"]] if "slant" in words else [])])


def read_caption(caption: str) -> Meaning:
    """Read a caption that `write_caption` wrote.

    Raises:
        ValueError: it names no digit, or several.
    """
    text = f" {' '.join(caption.lower().split())} "
    found = [n for n, word in enumerate(DIGITS) if f" {word} " in text or f" {n} " in text]
    if len(found) != 1:
        raise ValueError(f"{caption!r} names {len(found) or 'no'} digits, where one is needed")
    levels = {name: _LEVELS[name, word] for name, word in words_of(caption).items()}
    return Meaning(found[0], levels)


def words_of(caption: str) -> dict[str, str]:
    """Return the words for attributes that a caption has, by attribute."""
    text = f" {' '.join(caption.lower().split())} "
    return {name: word for name, word in _LEVELS if f" {word} " in text}


@lru_cache(maxsize=1)
def digit_captions(seed: int = 0) -> tuple[tuple[str, ...], ...]:
    """Return the captions of scikit-learn's digits: `PER_PICTURE` for each image, in its order."""
    images, labels = _digits()
    levels = levels_of(images, labels)
    return tuple(
        tuple(write_caption(int(digit), own, seed, number, each) for each in range(PER_PICTURE))
        for number, (digit, own) in enumerate(zip(labels, levels, strict=True))
    )


def evaluation_captions(count: int, held_out: bool = False) -> list[str]:
    """Return the captions of an evaluation's samples: (count,), each image's first, then each image's second.

    Args:
        held_out: of the words that no other caption has. They name every attribute that is low or high.
    """
    if not held_out:
        own = digit_captions()
        return [own[n % len(own)][n // len(own) % PER_PICTURE] for n in range(count)]
    images, labels = _digits()
    levels = levels_of(images, labels)
    places = ((n % len(labels), PER_PICTURE + n // len(labels)) for n in range(count))
    return [
        write_caption(int(labels[image]), levels[image], 0, image, each, held_out=True)
        for image, each in places
    ]


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return scikit-learn's digits, (N, 1, 8, 8) from 0 to 1, and their labels."""
    source = DigitsSource()
    blocks = [*source.blocks()]
    images = np.concatenate([block["image"] for block in blocks]) / source.pixel_max
    return images, np.concatenate([block["label"] for block in blocks])
