"""The figures of an evaluation by name: how tables, messages and plots show each, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """A figure that an evaluation may have.

    Attributes:
        title: its name in tables.
        short: its name in lines of text.
        form: its format, for `format`.
        better: the direction in which it is better; None for neither.
    """

    title: str
    short: str
    form: str
    better: Literal["min", "max"] | None = None

    def show(self, value: Any) -> str:
        """Return a value as text; a dash for none."""
        return "-" if value is None else format(value, self.form)


FIGURES = {
    "frechet_distance": Figure("Fréchet distance", "distance", ".3f", "min"),
    "label_accuracy": Figure("label accuracy", "accuracy", ".1%", "max"),
    "agreement": Figure("agreement with the prompt", "agreement", ".1%", "max"),
    "words_right": Figure("words right", "words", ".1%", "max"),
    "held_out_right": Figure("words never seen", "words never seen", ".1%", "max"),
    "ms_per_image": Figure("ms per image", "ms per image", ".3f"),
}
"""In the order of tables. A figure that is not listed is shown under its own name."""

IN_A_LINE = ("frechet_distance", "label_accuracy", "agreement")
"""The figures that a line of text about an evaluation names."""


def in_a_line(figures: Mapping[str, Any]) -> str:
    """Return the main figures of an evaluation that it has, in a few words: `distance 0.812, accuracy 98.0%`."""
    known = [name for name in IN_A_LINE if isinstance(figures.get(name), int | float)]
    return ", ".join(f"{FIGURES[name].short} {FIGURES[name].show(figures[name])}" for name in known)


def finite(figures: Mapping[str, Any], name: str) -> float | None:
    """Return a figure of an evaluation if it has it as a finite number."""
    value = figures.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
