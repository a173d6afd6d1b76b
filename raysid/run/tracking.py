"""Record a run's metrics and sample grids, and show them in TensorBoard.

`metrics.jsonl` and `samples/` are the record; `tensorboard/` is a view of them. On resume the record is cut back to
the checkpoint and the view is written anew from it, so that the two always agree and nothing is in either twice,
however the run ended and whichever of TensorBoard's loaders reads it. (TensorBoard's own means, a session start with
`purge_step`, is ignored by its default, fast loader, and events that a kill left unflushed would be missing.)
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor
from upath import UPath

from raysid.run.events import TENSORBOARD, Events
from raysid.run.image_grid import beside, image_grid
from raysid.run.metrics import COMMON_KEYS, METRICS, WARNING, json_ready, read_lines
from raysid.storage import append_whole, children, make_folder, remove_file, write_whole

SAMPLES = "samples"
_SAMPLE_NAME = re.compile(r"step-(\d+)\.png")


class Tracker:
    """Records a run's metrics and sample grids, and writes them as TensorBoard events.

    A line is given to the operating system whole, and TensorBoard's event after it: a kill loses nothing that was
    recorded.

    Args:
        folder: the run's folder, on this machine; made when missing.
        hyperparameters: the run's settings, nested mappings.
        resume_step: step of the checkpoint that the run resumes from; the record of later steps is removed. None: the
            run starts, and the whole record in the folder is removed.
        name: the run's name in TensorBoard; its folder when not given.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        hyperparameters: Mapping[str, Any],
        resume_step: int | None = None,
        name: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._name = name or str(folder)
        self._hyperparameters: dict[str, Any] = json_ready(hyperparameters)
        self._events: Events | None = None
        self.cut_back(-1 if resume_step is None else resume_step)

    def cut_back(self, step: int) -> None:
        """Remove the record of steps after `step`, to resume from there.

        For a run that restores its learners from a checkpoint without ending; a new Tracker does it itself. The table
        of a finished run is removed, too. The record of `step` itself stays, and recording it again changes nothing.
        """
        self.close()
        for kind in (SAMPLES, TENSORBOARD):
            make_folder(UPath(self.folder / kind))
        kept = [
            (line, entry)
            for line, entry in read_lines(UPath(self.folder / METRICS))
            if COMMON_KEYS <= entry.keys() and entry["kind"] != "table" and entry["step"] <= step
        ]
        write_whole(UPath(self.folder / METRICS), b"".join(line + b"\n" for line, _ in kept))
        for picture in children(UPath(self.folder / SAMPLES)):
            match = _SAMPLE_NAME.fullmatch(picture.name)
            if match and int(match[1]) > step:
                remove_file(picture)

        entries = [entry for _, entry in kept]
        last = entries[-1] if entries else {}
        self._time_before = float(last.get("time", 0.0))
        self._started = time.monotonic()
        self._position = (int(last.get("step", 0)), int(last.get("images", 0)))
        self._recorded = {
            (entry["kind"], name)
            for entry in entries
            if entry["step"] == step and entry["kind"] != "bad_images"  # `_bad_images` has these
            for name in entry
        }
        self._recorded_step = step
        self._bad_images = {
            name for entry in entries if entry["kind"] == "bad_images" for name in entry["names"]
        }
        self._events = Events(self.folder, self._name, self._hyperparameters, entries)

    def train(self, step: int, images: int, figures: Mapping[str, Any]) -> None:
        """Record losses, learning rates, gradient norms: `train/<name>` in TensorBoard."""
        self._record("train", step, images, figures)

    def perf(self, step: int, images: int, figures: Mapping[str, Any]) -> None:
        """Record speed, busy shares, recomputations: `perf/<name>` in TensorBoard."""
        self._record("perf", step, images, figures)

    def evaluation(self, step: int, images: int, figures: Mapping[str, Any]) -> None:
        """Record the figures of an evaluation: `eval/<name>` in TensorBoard."""
        self._record("evaluation", step, images, figures)

    def warning(self, step: int, images: int, text: str) -> None:
        """Record a warning about the run's health: `warnings` in TensorBoard's texts."""
        self._record(WARNING, step, images, {"text": text})

    def bad_images(self, step: int, images: int, names: Sequence[str]) -> None:
        """Record real images that are skipped, except those that are recorded already."""
        if new := [name for name in names if name not in self._bad_images]:
            self._bad_images.update(new)
            self._record("bad_images", step, images, {"names": new})

    def sample_grid(
        self,
        step: int,
        images: int,
        generated: np.ndarray | Tensor,
        real: np.ndarray | Tensor | None = None,
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        """Write a picture of generated images, beside real ones, and show it as `eval/samples`.

        Args:
            generated, real: (N, C, H, W) in [-1, 1].
            columns: images in a row; about as many as rows when not given.
            captions: a text below each generated image.

        Returns:
            The picture's path, `samples/step-<8 digits>.png`.
        """
        grids = [
            image_grid(side, columns or math.ceil(math.sqrt(len(side))), captions=below)
            for side, below in ((generated, captions), (real, None))
            if side is not None
        ]
        png = io.BytesIO()
        beside(grids).save(png, "PNG")
        name = f"{SAMPLES}/step-{step:08d}.png"
        # The picture before the line that names it.
        write_whole(UPath(self.folder / name), png.getvalue())
        self._record("samples", step, images, {"path": name})
        return self.folder / name

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record the final figures of a finished run.

        Args:
            rows: the first text of a row is its name; its numbers become `final/<name>/<key>`, which the HParams tab
                compares among runs.
        """
        step, images = self._position
        self._record("table", step, images, {"rows": [dict(row) for row in rows]})

    def close(self) -> None:
        """End the recording."""
        self._events = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _record(self, kind: str, step: int, images: int, figures: Mapping[str, Any]) -> None:
        if self._events is None:
            raise ValueError("this tracker is closed")
        if clash := COMMON_KEYS & figures.keys():
            raise ValueError(f"a figure cannot be called {', '.join(sorted(clash))}: every line has that key")
        self._position = (step, images)
        if step == self._recorded_step:
            # A checkpoint may lie before or after its step's evaluation: done again, it must not show twice.
            figures = {name: value for name, value in figures.items() if (kind, name) not in self._recorded}
            if not figures:
                return
        entry = {
            "kind": kind,
            "step": step,
            "images": images,
            "time": round(self._time_before + time.monotonic() - self._started, 3),
            "unix_time": round(time.time(), 3),
            **json_ready(figures),
        }
        line = json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n"
        append_whole(self.folder / METRICS, line.encode())
        self._events.write(entry)
