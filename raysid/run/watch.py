"""What a run is doing, in one screen of text: for people in a shell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from upath import UPath

from raysid.errors import UserError
from raysid.run.progress import duration
from raysid.run.tracking import METRICS, read_metrics
from raysid.storage import exists, read_whole

WATCH_SECONDS = 2.0
BAR = 20
ROLES = {"teacher": "teacher service", "fake_score": "fake-score learner", "generator": "generator learner"}


@dataclass(frozen=True)
class RunState:
    """What a run is doing, as text, and whether it has come to its end."""

    text: str
    finished: bool


def state_of(run: str) -> RunState:
    """The latest state of a run: step, rates, losses, distance, how busy each role is, size of the pool.

    Args:
        run: the run's folder.

    Raises:
        UserError: there is no run's folder, or nothing recorded in it yet.
        StorageError: the bucket cannot be read.
    """
    folder = UPath(run)
    if not exists(folder / "config.yaml"):
        raise UserError(f"{run} is not a run's folder: it has no config.yaml")
    entries = read_metrics(folder)
    if not entries:
        raise UserError(f"{run} has recorded nothing yet: its {METRICS} is empty or missing")
    config = yaml.safe_load(read_whole(folder / "config.yaml"))
    ended = any(entry["kind"] == "table" for entry in entries)
    return RunState("\n".join(_lines(run, config, entries, ended)), ended)


def _lines(run: str, config: Mapping[str, Any], entries: list[dict[str, Any]], ended: bool) -> Iterator[str]:
    newest = entries[-1] | max(
        ({"step": e["step"], "images": e["images"]} for e in entries), key=lambda e: e["step"]
    )
    total, images = config["total_images"], newest["images"]
    ago = time.time() - newest["unix_time"]
    yield f"{run}: {'finished' if ended else f'last line {duration(ago)} ago'}"
    yield f"step        {newest['step']:,}, {images:,} of {total:,} images ({images / total:.0%})"
    yield f"running     {duration(newest['time'])}"
    if perf := _last(entries, "perf"):
        rate = perf["images_per_second"]
        left = "" if ended or not rate else f", {duration(max(0.0, total - images) / rate)} left"
        yield f"speed       {rate:,.0f} images/s{left}"
    if train := _last(entries, "train"):
        losses = {name.removeprefix("loss/"): v for name, v in train.items() if name.startswith("loss/")}
        yield "losses      " + ", ".join(f"{name.replace('_', ' ')} {v:.4g}" for name, v in losses.items())
    measured = [entry for entry in entries if entry["kind"] == "evaluation"]
    if measured:
        best = min(measured, key=lambda entry: entry["frechet_distance"])
        yield f"distance    {_distance(measured[-1])}"
        yield f"best        {_distance(best)}"
    if perf:
        for role, title in ROLES.items():
            share = perf.get(f"busy/{role}")
            if share is not None:
                filled = round(min(1.0, share) * BAR)
                yield f"{title:20}{'#' * filled}{'.' * (BAR - filled)} busy {share:.0%}{_also(perf, role)}"


def _also(perf: Mapping[str, Any], role: str) -> str:
    """What else a role's line says: how many scorers, what was waited for."""
    said = []
    if (count := perf.get(f"replicas/{role}")) is not None:
        said.append(f"{count:.0f} scorer{'s' * (count != 1)}")
    if (waited := perf.get(f"waited/{role}")) is not None:
        said.append(f"the step waited for it {waited:.0%} of the time")
    if role == "teacher" and (again := perf.get("teacher_recomputes")):
        said.append(f"{again:.0f} microbatches computed again")
    if (waited := perf.get(f"data_wait/{role}", 0.0)) >= 0.001:
        said.append(f"waited for images {waited:.1%}")
    return "".join(f", {part}" for part in said)


def _last(entries: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((entry for entry in reversed(entries) if entry["kind"] == kind), None)


def _distance(entry: Mapping[str, Any]) -> str:
    accuracy = entry["label_accuracy"]
    said = f"{entry['frechet_distance']:.3f} after {entry['images']:,} images"
    return said if accuracy is None else f"{said}, label accuracy {accuracy:.1%}"
