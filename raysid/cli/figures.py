"""The table of an evaluation's figures."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "frechet_distance": "Fréchet distance to the real images",
    "halves_distance": "the same between two halves of the real images",
    "ms_per_image": "milliseconds per image",
    "num_samples": "images made",
}


def print_figures(title: str, figures: dict[str, Any]) -> None:
    """Print the figures of an evaluation as a table."""
    from raysid.run.table import print_table

    rows = [[_NAMES.get(name, name.replace("_", " ")), _formatted(name, figures[name])] for name in figures]
    print_table(title, ["figure", "value"], rows)


def _formatted(name: str, value: Any) -> Any:
    return f"{value:.1%}" if name == "label_accuracy" and value is not None else value
