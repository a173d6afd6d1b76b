"""Plots of a search: its metric against each setting that it tried."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed
import matplotlib.pyplot as plt  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

from raysid.config import TuneConfig  # noqa: E402
from raysid.trainers.search.results import (  # noqa: E402
    DIVERGED,
    ENDED_EARLY,
    FAILED,
    FINISHED,
    TrialResult,
)

MARKERS = {FINISHED: "o", ENDED_EARLY: "v", DIVERGED: "x", FAILED: "x"}


def plot_search(config: TuneConfig, trials: list[TrialResult], folder: Path, events: Path) -> None:
    """Write a PNG for each dimension of the search, and the same as TensorBoard figures.

    Args:
        folder: for the PNGs.
        events: for TensorBoard's events; those of an earlier session of the search are replaced.
    """
    folder.mkdir(exist_ok=True)
    for old in events.glob("events.*"):
        old.unlink()
    with SummaryWriter(str(events)) as writer:
        for dimension in config.space:
            name = dimension.fields[0]
            figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
            for status, marker in MARKERS.items():
                points = [
                    (t.values[name], t.metric) for t in trials if t.status == status and t.metric is not None
                ]
                if points:
                    axes.scatter(*zip(*points, strict=True), marker=marker, label=status)
            axes.set_xlabel(" = ".join(dimension.fields))
            axes.set_ylabel(f"best {config.metric.replace('_', ' ')}")
            if dimension.log_uniform:
                axes.set_xscale("log")
            if config.mode == "min":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("{x:g}")
            axes.legend()
            axes.grid(alpha=0.3)
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=120)
            writer.add_figure(f"search/{name}", figure, close=True)
