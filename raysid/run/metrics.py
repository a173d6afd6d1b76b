"""metrics.jsonl: a run's record, one JSON object per line.

Every line has `kind`, `step`, `images` (generated or seen so far), `time` (seconds of running since the run's start,
without the time between a kill and a resume and without work that a kill threw away) and `unix_time`; then, by kind:

- `train`, `perf`, `evaluation`: the figures by name. Numbers that are not finite are the strings "nan", "inf" and
  "-inf", which `read_metrics` turns back into floats; a figure that does not apply is null.
- `bad_images`: `names` of real images that are skipped, each with its fault; an image is named once.
- `warning`: `text`, about the run's health.
- `samples`: `path`, a picture's path in the run's folder.
- `table`: `rows`, the run's final figures, a list of objects.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from upath import UPath

from raysid.storage import read_whole
from raysid.storage.plain_json import parse_json

METRICS, WARNING = "metrics.jsonl", "warning"
COMMON_KEYS = frozenset({"kind", "step", "images", "time", "unix_time"})
"""Keys of every line, which no figure may be named after."""
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read_metrics(folder: UPath | str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl, in order; an empty list where there is none.

    Numbers that are not finite become floats. A line that a kill cut off is skipped.
    """
    return [with_floats(entry) for _, entry in read_lines(UPath(folder) / METRICS)]


def read_lines(path: UPath) -> list[tuple[bytes, dict[str, Any]]]:
    """Read the whole lines of a file of JSON objects, as bytes and parsed; none where there is no file."""
    try:
        return parse_lines(read_whole(path))
    except FileNotFoundError:
        return []


def parse_lines(content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines that are JSON objects, as bytes and parsed."""
    lines = []
    for line in content.split(b"\n"):
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            lines.append((line, entry))
    return lines


def json_ready(value: Any) -> Any:
    """`value` in strict JSON: numbers of numpy and torch as plain ones, those that are not finite as strings."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return json_ready(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def with_floats(value: Any) -> Any:
    """The inverse of `json_ready` for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_floats(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
