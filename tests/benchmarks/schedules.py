"""Measure the effect of the order of the updates on the result: `python -m tests.benchmarks.schedules`.

The quickstart's distillation with both schedules, seeds 0, 1, 2. The distances do not depend on the machine's load,
so the runs may be trained at any time (the same command resumes them). Seconds are images over each schedule's
speed, which is measured at the end, in turns, on an idle machine.
`overlapped` trains psi on the images that theta's step made, `alternating` on fresh ones (docs/design.md, "One step").
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed
import matplotlib.pyplot as plt  # noqa: E402

from raysid.recipes import load_recipe  # noqa: E402
from raysid.run.metrics import read_metrics  # noqa: E402
from raysid.run.table import print_table  # noqa: E402
from raysid.trainers.distill import distill  # noqa: E402

RECIPE = "quickstart-digits-sida"
SCHEDULES = ("overlapped", "alternating")
EVERY = 16_000  # images between evaluations
LEVELS = (2.0, 1.0, 0.8, 0.7)  # distances whose first attainment is reported
SPEED_IMAGES = 32_000

Curve = list[tuple[int, float]]
"""Images, and the evaluated distance after them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=192_000, help="length of a run (default 192000)")
    parser.add_argument("--rounds", type=int, default=3, help="speed measurements of each (default 3)")
    parser.add_argument("--storage", default="runs", help="where the runs are kept (default runs)")
    parser.add_argument("--out", default="schedules", help="writes OUT.json and OUT.png (default schedules)")
    options = parser.parse_args()
    curves = {
        schedule: [train(schedule, seed, options.images, options.storage) for seed in options.seeds]
        for schedule in SCHEDULES
    }
    speeds: dict[str, list[float]] = {schedule: [] for schedule in SCHEDULES}
    for round_ in range(options.rounds):
        for schedule in SCHEDULES:
            speeds[schedule].append(speed(schedule, round_, options.storage))
    medians = {schedule: statistics.median(measured) for schedule, measured in speeds.items()}
    show(curves, medians)
    plot(curves, medians, Path(f"{options.out}.png"))
    result = {"seeds": options.seeds, "images_per_second": speeds, "distances": curves}
    Path(f"{options.out}.json").write_text(json.dumps(result, indent=2))
    print(f"{options.out}.json, {options.out}.png")


def train(schedule: str, seed: int, images: int, storage: str) -> Curve:
    """Run, or resume, one schedule and seed; return its evaluations."""
    run = run_it(f"{schedule}-{seed}", storage, schedule=schedule, seed=seed, total_images=images)
    return [(e["images"], e["frechet_distance"]) for e in read_metrics(run) if e["kind"] == "evaluation"]


def speed(schedule: str, round_: int, storage: str) -> float:
    """Images per second: the median over a short run's lines, without the first."""
    settings = {"schedule": schedule, "total_images": SPEED_IMAGES, "evaluation.num_samples": 100}
    run = run_it(f"speed-{schedule}-{round_}", storage, fresh=True, **settings)
    rates = [entry["images_per_second"] for entry in read_metrics(run) if entry["kind"] == "perf"]
    return statistics.median(rates[1:])


def run_it(name: str, storage: str, fresh: bool = False, **overrides: Any) -> Path:
    """Distil the recipe with these settings; return the run's folder."""
    given = {"run.name": name, "storage": storage, "evaluation.every_images": EVERY} | overrides
    return Path(distill(load_recipe(RECIPE, given, kind="distill"), fresh=fresh).path)


def reached(curve: Curve, level: float) -> int | None:
    """The number of images after which a distance was first at or below a level."""
    return next((images for images, distance in curve if distance <= level), None)


def show(curves: Mapping[str, list[Curve]], speeds: Mapping[str, float]) -> None:
    """Tables: the mean distance at equal images; images and seconds to equal distances."""
    at = [images for images, _ in curves[SCHEDULES[0]][0]][1:]
    print_table(
        "mean distance over seeds (standard deviation)",
        ["images", *SCHEDULES],
        [[f"{images:,}", *(of(curves[schedule], images) for schedule in SCHEDULES)] for images in at],
    )
    rows = [["images/s", *(f"{speeds[schedule]:,.0f}" for schedule in SCHEDULES)]]
    for level in LEVELS:
        for unit in ("images", "seconds"):
            row = [f"{unit} to {level:g}"]
            for schedule in SCHEDULES:
                found = [reached(curve, level) for curve in curves[schedule]]
                known = [images for images in found if images is not None]
                mean = statistics.mean(known) / (speeds[schedule] if unit == "seconds" else 1) if known else 0
                missed = f" ({len(found) - len(known)} never)" if len(known) < len(found) else ""
                row.append(f"{mean:,.0f}{missed}" if known else "never")
            rows.append(row)
    best = [[min(d for _, d in curve) for curve in curves[schedule]] for schedule in SCHEDULES]
    rows.append(["best of each seed", *(", ".join(f"{d:.3f}" for d in of_schedule) for of_schedule in best)])
    print_table("means over seeds", ["", *SCHEDULES], rows)


def of(curves: list[Curve], images: int) -> str:
    """Mean and standard deviation over seeds of the distance after a number of images."""
    distances = [dict(curve)[images] for curve in curves]
    spread = f" ({statistics.stdev(distances):.2f})" if len(distances) > 1 else ""
    return f"{statistics.mean(distances):.2f}{spread}"


def plot(curves: Mapping[str, list[Curve]], speeds: Mapping[str, float], file: Path) -> None:
    """Plot the distance against images and against seconds, one line per run."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for schedule, colour in zip(SCHEDULES, ("tab:blue", "tab:orange"), strict=True):
        for axes, scale in zip(panels, (1000.0, speeds[schedule]), strict=True):
            for number, curve in enumerate(curves[schedule]):
                images, distances = zip(*curve[1:], strict=True)
                label = schedule if number == 0 else None
                axes.plot([i / scale for i in images], distances, color=colour, alpha=0.7, label=label)
    for axes, label in zip(panels, ("thousand images", "seconds"), strict=True):
        axes.set_xlabel(label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("Fréchet distance")
    panels[0].legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
