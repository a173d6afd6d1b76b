"""What a run comes to: figures read back from its metrics, and the table at its end."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

from upath import UPath

from raysid.config import Config
from raysid.generator import FOLDERS, load_generator
from raysid.roles.generator_learner import RECOMPUTED
from raysid.run.metrics import read_metrics
from raysid.run.table import print_table
from raysid.storage import is_local
from raysid.trainers.evaluation import evaluator, generator_before, measure, measures
from raysid.trainers.teachers import Teacher

TEACHER, BEFORE = "teacher", "generator before"
LAST, BEST = "generator, last EMA", "generator, best evaluated EMA"


def finished_rows(run: Path) -> list[dict[str, Any]] | None:
    """The final table of a run that has one."""
    tables = [entry for entry in read_metrics(run) if entry["kind"] == "table"]
    return tables[-1]["rows"] if tables else None


def best_distance(run: Path) -> float:
    """The smallest evaluated distance of the run so far; inf when none was evaluated."""
    return min(evaluated_distances(run).values(), default=math.inf)


def evaluated_distances(run: Path) -> dict[int, float]:
    """The distance of every evaluation of the run that gave one, by step."""
    measured = {e["step"]: e["frechet_distance"] for e in read_metrics(run) if e["kind"] == "evaluation"}
    return {step: distance for step, distance in measured.items() if math.isfinite(distance)}


def has_evaluation(run: Path, step: int, source: str | None) -> bool:
    """Whether the run has recorded an evaluation after `step` steps; where nothing is measured, its pictures."""
    kind = "evaluation" if measures(source) else "samples"
    return any(e["kind"] == kind and e["step"] == step for e in read_metrics(run))


def recomputes_so_far(run: Path) -> float:
    """How often the run did lost scorers' work again, as last recorded."""
    counts = [e[RECOMPUTED] for e in read_metrics(run) if e["kind"] == "perf"]
    return counts[-1] if counts else 0


def summary_rows(
    config: Config, run: UPath, teacher: Teacher, start: str | None = None
) -> list[dict[str, Any]]:
    """Measure the teacher, the generator before, and the two products, all on the same noise.

    No rows where there is nothing to measure them by.

    The seed is another than that of the evaluations in training, so that choosing the best of these does not
    flatter it.
    """
    source = config.data.source_name
    if source is None or not measures(source):
        return []
    seed, samples = config.evaluation.seed + 1, config.evaluation.num_samples
    factory = config.teacher.factory
    before = generator_before(str(teacher.path), config.method.sigma_init, start, factory)
    rows = [{"name": TEACHER, "evaluations": teacher.evaluations, **teacher.figures(config, seed)}]
    makers = [(BEFORE, before)] + [(name, load_generator(run, which, factory)) for name, which in _PRODUCTS]
    for name, generator in makers:
        figures = measure(generator, generator.card, source, samples, seed)
        rows.append({"name": name, "evaluations": 1, **figures})
    halves = evaluator(source).reference_figures()["halves_distance"]
    rows.append({"name": "real images, one half against the other", "frechet_distance": halves})
    return rows


_PRODUCTS: list[tuple[str, Any]] = [(LAST, "last"), (BEST, "best")]


def show_summary(run: UPath, rows: list[dict[str, Any]], checkpoint: str | None) -> None:
    """Print the table of a finished run, and where its results lie.

    Args:
        checkpoint: folder of a training state: that of the generator that is shown, where it is kept.
    """
    if rows:
        samples = next((row["num_samples"] for row in rows if "num_samples" in row), 0)
        print_table(
            f"Fréchet distance of {samples:,} samples to all real images",
            ["", "network evaluations", "Fréchet distance", "label accuracy", "ms per image"],
            [[_text(row, key) for key in _COLUMNS] for row in rows],
        )
    grids = sorted((run / "samples").glob("step-*.png"))
    print(f"samples      {_shown(grids[-1]) if grids else '-'}")
    print(f"run          {_shown(run)}")
    print(f"generator    {_shown(run / FOLDERS['best' if rows else 'last'])}")
    print(f"checkpoint   {_shown(UPath(checkpoint)) if checkpoint else '-'}")
    print(f"TensorBoard  {_tensorboard()} --logdir {_shown(run)}")


def _shown(path: UPath) -> str:
    """A path as short as it can be typed from here."""
    if not is_local(path):
        return str(path)
    whole, here = Path(str(path)), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def _tensorboard() -> str:
    """The command that starts TensorBoard from here, whether or not its environment is active."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    return _shown(UPath(sys.executable).parent / "tensorboard")


_COLUMNS = ("name", "evaluations", "frechet_distance", "label_accuracy", "ms_per_image")


def _text(row: dict[str, Any], key: str) -> Any:
    value = row.get(key)
    if value is None or key in ("name", "evaluations"):
        return value
    return f"{value:.1%}" if key == "label_accuracy" else f"{value:.3f}"
