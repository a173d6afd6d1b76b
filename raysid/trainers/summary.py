"""The summary of a run: its headline, figures read back from its metrics, and the table at its end."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

from upath import UPath

from raysid.config import Config
from raysid.data import ImageSource
from raysid.data.prompts import PromptSource
from raysid.generator import FOLDERS, load_generator
from raysid.metrics.figures import FIGURES
from raysid.run.metrics import read_metrics
from raysid.run.table import print_table
from raysid.storage import is_local
from raysid.trainers.evaluation import generator_before
from raysid.trainers.measuring import HELD_OUT_SAMPLES, evaluator, measure, measured_by, real_agreement
from raysid.trainers.teachers import Teacher

TEACHER, BEFORE = "teacher", "generator before"
LAST, BEST = "generator, last EMA", "generator, best evaluated EMA"


def headline(
    config: Config, teacher: Teacher, source: ImageSource | None, prompts: PromptSource | None = None
) -> str:
    """Describe a run in one line: the method, the images, the processes, the teacher."""
    method, data = "SiD", "no real images"
    if config.method.adversarial:
        assert source is not None
        method, data = "SiDA", f"{source.num_images:,} real images of {source.name}"
        if config.generator.path:
            method = f"SiD²A from {config.generator.path}"
    if prompts is not None:
        guidance = config.method.guidance
        scales = sorted({guidance.train_fake, guidance.eval_fake, guidance.eval_teacher})
        method = f"SiD-LSG at k {' / '.join(f'{scale:g}' for scale in scales)}"
        data = f"{prompts.num_prompts:,} prompts of {prompts.name}, no real images"
    scaling = config.teacher.scaling
    scorers = f"{scaling.min_replicas}"
    if scaling.max_replicas > scaling.min_replicas:
        scorers += f" to {scaling.max_replicas}"
    workers = config.learner_workers
    learners = ", ".join(
        f"a {name} learner" + f" of {workers[role]} workers" * (workers[role] > 1)
        for role, name in (("fake_score", "fake-score"), ("generator", "generator"))
    )
    colocated = config.colocated
    most, fewest = colocated.num_workers, colocated.min_workers
    number = f"{fewest} to {most} workers" if fewest else f"{most} worker{'s' * (most > 1)}"
    where = {
        "local": "one process",
        "colocated": f"{number} of Ray Train, all networks in each",
        "split": f"{scorers} teacher scorer{'s' * (scaling.max_replicas > 1)}, {learners} as Ray actors",
    }[config.placement]
    return (
        f"{method}, {config.schedule}: {config.total_images:,} generated images and {data}; {where}; "
        f"teacher {teacher.path.name}"
    )


def finished_rows(run: Path) -> list[dict[str, Any]] | None:
    """Return the rows of a finished run's table, None for a run that is not finished."""
    tables = [entry for entry in read_metrics(run) if entry["kind"] == "table"]
    return tables[-1]["rows"] if tables else None


def evaluated_distances(run: Path) -> dict[int, float]:
    """Return the finite distances of the run's evaluations, by step."""
    measured = {e["step"]: e["frechet_distance"] for e in read_metrics(run) if e["kind"] == "evaluation"}
    return {step: distance for step, distance in measured.items() if math.isfinite(distance)}


def has_evaluation(run: Path, step: int, measured: bool) -> bool:
    """Return True if the run has recorded an evaluation after `step` steps, or its grid if nothing is measured."""
    kind = "evaluation" if measured else "samples"
    return any(e["kind"] == kind and e["step"] == step for e in read_metrics(run))


def summary_rows(
    config: Config, run: UPath, teacher: Teacher, start: str | None = None
) -> list[dict[str, Any]]:
    """Measure the teacher, the generator before training, and the last and the best generator, all on the same noise.

    The seed differs from that of the evaluations in training, so that the choice of the best one does not bias its
    figures.

    Args:
        start: folder of the generator that the run began with; None is the teacher.

    Returns:
        One row each, and one of the real images; none for images that cannot be compared.
    """
    source = measured_by(teacher.card.network, config.data.source_name, config.prompts.source_name)
    if source is None:
        return []
    seed, samples = config.evaluation.seed + 1, config.evaluation.num_samples
    factory, method = config.teacher.factory, config.method
    before = generator_before(
        str(teacher.path), method.sigma_init, start, factory, noise_steps=method.noise_steps
    )
    rows = [{"name": TEACHER, "evaluations": teacher.evaluations, **teacher.figures(config, seed)}]
    last, best = load_generator(run, "last", factory), load_generator(run, "best", factory)
    for name, generator in ((BEFORE, before), (LAST, last), (BEST, best)):
        figures = measure(
            generator, generator.card, source, samples, seed, held_out=min(samples, HELD_OUT_SAMPLES)
        )
        figures.pop("by_word", None)  # `raysid evaluate` prints them
        rows.append({"name": name, "evaluations": 1, **figures})
    halves = evaluator(source).reference_figures()["halves_distance"]
    real: dict[str, Any] = {"name": "real images, one half against the other", "frechet_distance": halves}
    if before.takes_text:
        real |= real_agreement(source)
    return [*rows, real]


def print_summary(run: UPath, rows: list[dict[str, Any]], checkpoint: str | None) -> None:
    """Print the table of a finished run, and the paths of its results.

    Args:
        checkpoint: folder of the training state of the printed generator, if it is kept.
    """
    if rows:
        known = [name for name in FIGURES if any(row.get(name) is not None for row in rows)]
        samples = next((row["num_samples"] for row in rows if "num_samples" in row), 0)
        print_table(
            f"Fréchet distance of {samples:,} samples to all real images",
            ["", "network evaluations", *(FIGURES[name].title for name in known)],
            [
                [row["name"], row.get("evaluations"), *(FIGURES[name].show(row.get(name)) for name in known)]
                for row in rows
            ],
        )
    grids = sorted((run / "samples").glob("step-*.png"))
    print(f"samples      {_short_path(grids[-1]) if grids else '-'}")
    print(f"run          {_short_path(run)}")
    print(f"generator    {_short_path(run / FOLDERS['best' if rows else 'last'])}")
    print(f"checkpoint   {_short_path(UPath(checkpoint)) if checkpoint else '-'}")
    print(f"TensorBoard  {_tensorboard()} --logdir {_short_path(run)}")


def _short_path(path: UPath) -> str:
    """Return a path relative to the working directory if it is inside."""
    if not is_local(path):
        return str(path)
    whole, here = Path(str(path)), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def _tensorboard() -> str:
    """Return the command that starts TensorBoard, also if raysid's environment is not active."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    return _short_path(UPath(sys.executable).parent / "tensorboard")
