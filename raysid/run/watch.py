"""The state of a run in one screen of text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from upath import UPath

from raysid.errors import UserError
from raysid.run.folder import LOCK, OWNER, RECORD
from raysid.run.metrics import METRICS, WARNING, read_metrics
from raysid.run.text import duration
from raysid.storage import exists, is_local, location, read_json, read_whole
from raysid.storage.lease import is_running

WATCH_SECONDS = 2.0
BAR = 20
ROLES = {"teacher": "teacher service", "fake_score": "fake-score learner", "generator": "generator learner"}


class RunState(NamedTuple):
    """A run's state as text, and whether the run is finished."""

    text: str
    finished: bool


def state_of(run: str) -> RunState:
    """The latest state of a run: step, speed, losses, distance, busy shares of the roles, size of the pool.

    Args:
        run: the run's folder.

    Raises:
        UserError: there is no run's folder, or nothing recorded in it yet.
        StorageError: the bucket cannot be read.
    """
    folder = location(run)
    if not exists(folder / "config.yaml"):
        raise UserError(f"{run} is not a run's folder: it has no config.yaml")
    entries = read_metrics(folder)
    if not entries:
        raise UserError(f"{run} has recorded nothing yet: its {METRICS} is empty or missing")
    config = yaml.safe_load(read_whole(folder / "config.yaml"))
    finished = any(entry["kind"] == "table" for entry in entries)
    age = time.time() - entries[-1]["unix_time"]
    ago = f"{age:.0f} s ago" if age < 60 else f"{duration(age)} ago"
    status = "finished" if finished else _status(folder, f"last metrics {ago}")
    return RunState("\n".join([f"{run}: {status}", *_lines(config, entries, finished)]), finished)


def _status(folder: UPath, last_metrics: str) -> str:
    """The status of an unfinished run, as far as its records say and this machine can see."""
    sessions = (read_json(folder / RECORD) or {}).get("sessions") or [{}]
    if ended := sessions[-1].get("ended"):
        return str(ended["reason"])
    if is_local(folder):
        running = is_running(read_json(folder / OWNER) or {})
    else:
        lease = read_json(folder / LOCK)  # removed when a run ends, renewed while it runs
        running = lease is not None and is_running(lease)
    if running is None:
        return last_metrics
    return f"{'running' if running else 'not running'}; {last_metrics}"


def _lines(config: Mapping[str, Any], entries: list[dict[str, Any]], finished: bool) -> Iterator[str]:
    newest = entries[-1] | max(
        ({"step": e["step"], "images": e["images"]} for e in entries), key=lambda e: e["step"]
    )
    total, images = config["total_images"], newest["images"]
    yield f"step        {newest['step']:,}, {images:,} of {total:,} images ({images / total:.0%})"
    yield f"running     {duration(newest['time'])}"
    if perf := _last(entries, "perf"):
        rate = perf["images_per_second"]
        left = "" if finished or not rate else f", {duration(max(0.0, total - images) / rate)} left"
        yield f"speed       {rate:,.0f} images/s{left}"
    if train := _last(entries, "train"):
        losses = {name.removeprefix("loss/"): v for name, v in train.items() if name.startswith("loss/")}
        yield "losses      " + ", ".join(f"{name.replace('_', ' ')} {v:.4g}" for name, v in losses.items())
    yield from _health(entries)
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


def _health(entries: list[dict[str, Any]]) -> Iterator[str]:
    """The latest warning, and the samples left out since the last line but one."""
    if warnings := [entry for entry in entries if entry["kind"] == WARNING]:
        count, last = len(warnings), warnings[-1]
        yield f"warnings    {count}, the last at step {last['step']:,}: {last['text']}"
    train = _last(entries, "train") or {}
    bad = {role: train.get(f"{role}/bad_samples") for role in ("generator", "fake_score")}
    if any(bad.values()):
        listed = ", ".join(f"{role.replace('_', ' ')} {count:.3g}" for role, count in bad.items() if count)
        yield f"left out    samples of a step that are NaN or infinite: {listed}"


def _also(perf: Mapping[str, Any], role: str) -> str:
    """The rest of a role's line: number of scorers, shares of waiting."""
    parts = []
    if (count := perf.get(f"replicas/{role}")) is not None:
        parts.append(f"{count:.0f} scorer{'s' * (count != 1)}")
    if (waited := perf.get(f"waited/{role}")) is not None:
        parts.append(f"the step waited for it {waited:.0%} of the time")
    if role == "teacher" and (again := perf.get("teacher_recomputes")):
        parts.append(f"{again:.0f} microbatches computed again")
    if (waited := perf.get(f"data_wait/{role}", 0.0)) >= 0.001:
        parts.append(f"waited for images {waited:.1%}")
    return "".join(f", {part}" for part in parts)


def _last(entries: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((entry for entry in reversed(entries) if entry["kind"] == kind), None)


def _distance(entry: Mapping[str, Any]) -> str:
    accuracy = entry["label_accuracy"]
    text = f"{entry['frechet_distance']:.3f} after {entry['images']:,} images"
    return text if accuracy is None else f"{text}, label accuracy {accuracy:.1%}"
