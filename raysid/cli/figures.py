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

    if figures.get("label_accuracy") is not None:
        figures = figures | {"label_accuracy": f"{figures['label_accuracy']:.1%}"}
    rows = [[_NAMES.get(name, name.replace("_", " ")), value] for name, value in figures.items()]
    print_table(title, ["figure", "value"], rows)
