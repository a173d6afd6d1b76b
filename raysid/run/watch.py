"""The state of a run in one screen of text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from upath import UPath

from raysid.errors import UserError, one_line
from raysid.metrics.figures import FIGURES, IN_A_LINE
from raysid.recipes.yaml_form import NotYAML, parse_yaml
from raysid.run.folder import LOCK, OWNER, RECORD
from raysid.run.metrics import METRICS, WARNING, parse_lines, with_floats
from raysid.run.text import duration
from raysid.storage import exists, is_local, location, read_json, read_whole
from raysid.storage.lease import is_running

WATCH_SECONDS = 2.0
BAR = 20
MOST = 10**15  # a count or a time beyond this is none
ROLES = {"teacher": "teacher service", "fake_score": "fake-score learner", "generator": "generator learner"}


class RunState(NamedTuple):
    """A run's state as text, and whether the run is finished."""

    text: str
    finished: bool


def state_of(run: str) -> RunState:
    """Return the latest state of a run: step, speed, losses, distance, busy shares of the roles, size of the pool.

    A record that is damaged or of another program is read as far as it goes, and the text says what is wrong with it.

    Args:
        run: the run's folder.

    Raises:
        UserError: there is no run's folder, or nothing that can be read is recorded in it.
        StorageError: the bucket cannot be read.
    """
    folder = location(run)
    if not exists(folder / "config.yaml"):
        raise UserError(f"{run} is not a run's folder: it has no config.yaml")
    problems: list[str] = []
    entries = _entries(folder, problems)
    if not entries:
        why = "; ".join(problems) or f"its {METRICS} is empty or missing"
        raise UserError(f"{run} has recorded nothing yet: {why}")
    total = _total_images(folder, problems)
    finished = any(entry["kind"] == "table" for entry in entries)
    age = max(0.0, time.time() - entries[-1]["unix_time"])
    ago = f"{age:.0f} s ago" if age < 60 else f"{duration(age)} ago"
    status = "finished" if finished else _status(folder, f"last metrics {ago}", problems)
    lines = [f"{run}: {status}", *_lines(total, entries, finished)]
    lines += [f"unreadable  {problem}" for problem in problems]
    return RunState("\n".join(map(one_line, lines)), finished)


def _entries(folder: UPath, problems: list[str]) -> list[dict[str, Any]]:
    """Read the lines of the record that have all common keys; note how many do not."""
    try:
        content = read_whole(folder / METRICS)
    except FileNotFoundError:
        return []
    lines = parse_lines(content)
    entries = [with_floats(entry) for _, entry in lines]
    whole = [entry for entry in entries if _is_line(entry)]
    # A kill cuts the last line off, which is usual.
    others = sum(1 for line in content.split(b"\n")[:-1] if line.strip()) - len(whole)
    if others > 0:
        problems.append(f"{METRICS}: {others:,} of its lines {'are' if others > 1 else 'is'} not a run's")
    return whole


def _is_line(entry: Mapping[str, Any]) -> bool:
    counts = (entry.get(name) for name in ("step", "images"))
    times = (entry.get(name) for name in ("time", "unix_time"))
    return (
        isinstance(entry.get("kind"), str)
        and all(isinstance(count, int) and 0 <= count < MOST for count in counts)
        and all(_number(value) is not None for value in times)
    )


def _number(value: Any) -> float | None:
    """Return a finite number of a usual size, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -MOST < value < MOST else None


def _total_images(folder: UPath, problems: list[str]) -> int | None:
    """Return the length of the run from its config; None if the config does not say."""
    try:
        config = parse_yaml(read_whole(folder / "config.yaml"))
        total = config.get("total_images") if isinstance(config, dict) else None
        if isinstance(total, int) and 0 < total < MOST:
            return total
        problems.append("config.yaml has no total_images")
    except NotYAML as error:
        problems.append(f"config.yaml: {error}")
    return None


def _status(folder: UPath, last_metrics: str, problems: list[str]) -> str:
    """Return the status of an unfinished run, as far as its records say and this machine can see."""

    def record(name: str) -> dict[str, Any] | None:
        try:
            content = read_json(folder / name)
        except UserError as error:
            problems.append(str(error))
            return None
        return content if isinstance(content, dict) else None

    sessions = (record(RECORD) or {}).get("sessions")
    last = sessions[-1] if isinstance(sessions, list) and sessions else None
    if isinstance(last, dict) and isinstance(last.get("ended"), dict) and "reason" in last["ended"]:
        return str(last["ended"]["reason"])
    if is_local(folder):
        running = is_running(record(OWNER) or {})
    else:
        lease = record(LOCK)  # removed when a run ends, renewed while it runs
        running = lease is not None and is_running(lease)
    if running is None:
        return last_metrics
    return f"{'running' if running else 'not running'}; {last_metrics}"


def _lines(total: int | None, entries: list[dict[str, Any]], finished: bool) -> Iterator[str]:
    newest = max(entries, key=lambda entry: entry["step"])
    images = newest["images"]
    of = f" of {total:,} images ({images / total:.0%})" if total else " images"
    yield f"step        {newest['step']:,}, {images:,}{of}"
    yield f"running     {duration(entries[-1]['time'])}"
    perf = _last(entries, "perf")
    if (rate := _number(perf.get("images_per_second"))) is not None:
        left = (
            f", {duration(max(0.0, total - images) / rate)} left" if total and rate and not finished else ""
        )
        yield f"speed       {rate:,.0f} images/s{left}"
    train = _last(entries, "train")
    losses = {name.removeprefix("loss/"): v for name, v in train.items() if name.startswith("loss/")}
    if losses:
        shown = (f"{name.replace('_', ' ')} {_figure(value)}" for name, value in losses.items())
        yield "losses      " + ", ".join(shown)
    yield from _health(entries, train)
    measured = [
        e for e in entries if e["kind"] == "evaluation" and isinstance(e.get("frechet_distance"), float)
    ]
    if measured:
        best = min(
            measured, key=lambda entry: (math.isnan(entry["frechet_distance"]), entry["frechet_distance"])
        )
        yield f"distance    {_distance(measured[-1])}"
        yield f"best        {_distance(best)}"
    for role, title in ROLES.items():
        share = _number(perf.get(f"busy/{role}"))
        if share is not None:
            filled = round(min(1.0, max(0.0, share)) * BAR)
            yield f"{title:20}{'#' * filled}{'.' * (BAR - filled)} busy {share:.0%}{_also(perf, role)}"


def _health(entries: list[dict[str, Any]], train: Mapping[str, Any]) -> Iterator[str]:
    """The latest warning, and the samples left out since the last line but one."""
    if warnings := [entry for entry in entries if entry["kind"] == WARNING]:
        count, last = len(warnings), warnings[-1]
        yield f"warnings    {count}, the last at step {last['step']:,}: {last.get('text')}"
    bad = {role: _number(train.get(f"{role}/bad_samples")) for role in ("generator", "fake_score")}
    if any(bad.values()):
        listed = ", ".join(f"{role.replace('_', ' ')} {count:.3g}" for role, count in bad.items() if count)
        yield f"left out    samples of a step that are NaN or infinite: {listed}"


def _also(perf: Mapping[str, Any], role: str) -> str:
    """The rest of a role's line: number of scorers, shares of waiting."""
    parts = []
    if (count := _number(perf.get(f"replicas/{role}"))) is not None:
        parts.append(f"{count:.0f} scorer{'s' * (count != 1)}")
    if (waited := _number(perf.get(f"waited/{role}"))) is not None:
        parts.append(f"the step waited for it {waited:.0%} of the time")
    if role == "teacher" and (again := _number(perf.get("teacher_recomputes"))):
        parts.append(f"{again:.0f} microbatches computed again")
    if (waited := _number(perf.get(f"data_wait/{role}")) or 0.0) >= 0.001:
        parts.append(f"waited for images {waited:.1%}")
    return "".join(f", {part}" for part in parts)


def _last(entries: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((entry for entry in reversed(entries) if entry["kind"] == kind), {})


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _distance(entry: Mapping[str, Any]) -> str:
    others = {name: entry.get(name) for name in IN_A_LINE if name != "frechet_distance"}
    shown = [
        f"{FIGURES[name].title} {FIGURES[name].show(number)}"
        for name, value in others.items()
        if (number := _number(value)) is not None
    ]
    return ", ".join([f"{entry['frechet_distance']:.3f} after {entry['images']:,} images", *shown])
