"""What a run writes down while it goes: metrics.jsonl, sample grids, TensorBoard events.

`metrics.jsonl` and `samples/` are the record; `tensorboard/` is a view of them. On resume the record is cut
back to the checkpoint and the view is written anew from it, so that the two always agree and nothing is in
either twice, however the run ended and whichever of TensorBoard's loaders reads it. (TensorBoard's own means,
a session start with `purge_step`, is not heeded by its default, fast loader; and events that a kill left
unflushed would be missing.)
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import yaml
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import hparams as torch_hparams
from torch.utils.tensorboard.summary import text as text_summary
from upath import UPath

from raysid.run.image_grid import image_grid
from raysid.storage import append_whole, make_folder, read_whole, remove_file, write_whole

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SAMPLES = "samples"

# The kinds of lines whose numbers are curves, and the TensorBoard prefix of each.
_CURVES = {"train": "train", "perf": "perf", "evaluation": "eval"}
# Keys that every line has, which a figure may therefore not be called.
_OWN_KEYS = frozenset({"kind", "step", "images", "time", "unix_time"})
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SAMPLE_NAME = re.compile(r"step-(\d+)\.png")
# Between fakes and reals, in pixels.
_GAP = 16
# Bytes of TensorBoard's events that are written together.
_CHUNK = 1 << 20


class Tracker:
    """Keeps a run's metrics, sample grids and TensorBoard events.

    Every line of `metrics.jsonl` is one strict JSON object with `kind`, `step`, `images` (generated or seen
    so far), `time` (seconds of running since the run's start; the time between a kill and a resume and the
    work thrown away by it do not count) and `unix_time`; then, by kind:

    - `train`, `perf`, `evaluation`: the figures by name. Numbers that are not finite are the strings "nan",
      "inf" and "-inf", which `read_metrics` turns back; a figure that does not apply is null.
    - `bad_images`: `names` of real images that are skipped, each with its fault; an image is named once.
    - `samples`: `path`, a picture's path within the run's folder.
    - `table`: `rows`, the run's final figures, a list of objects.

    A line is handed to the system whole as soon as it is given, and TensorBoard's event after it, so a killed
    process loses none that was recorded. (TensorBoard's own writer does so in a thread, which a full disk ends with
    a traceback.)

    Args:
        folder: the run's folder, on this machine; made when missing.
        hyperparameters: the run's settings, nested mappings as they are; shown in TensorBoard's HParams tab
            under dotted names, and as text.
        resume_step: the checkpoint's step that the run goes on from; what was recorded of later steps is
            removed. None: the run starts, and everything recorded in the folder is removed.
        name: what the run is called among others; its folder when not given.
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
        self._hyperparameters: dict[str, Any] = _json_ready(hyperparameters)
        self._events: Path | None = None  # TensorBoard's file
        self._pending = io.BytesIO()  # what is to be appended to it
        self.cut_back(-1 if resume_step is None else resume_step)

    def cut_back(self, step: int) -> None:
        """Removes what was recorded of steps after `step`, to go on from there.

        For a run that restores its learners from a checkpoint without ending; a new Tracker does it itself.
        The table of a finished run goes too, since it is no longer the last word. What is already recorded of
        `step` itself stays, and recording it again changes nothing.
        """
        self.close()
        for kind in (SAMPLES, TENSORBOARD):
            make_folder(UPath(self.folder / kind))
        kept = [
            (line, entry)
            for line, entry in _read_lines(UPath(self.folder / METRICS))
            if _OWN_KEYS <= entry.keys() and entry["kind"] != "table" and entry["step"] <= step
        ]
        write_whole(UPath(self.folder / METRICS), b"".join(line + b"\n" for line, _ in kept))
        for picture in list((self.folder / SAMPLES).iterdir()):
            match = _SAMPLE_NAME.fullmatch(picture.name)
            if match and int(match[1]) > step:
                remove_file(UPath(picture))

        entries = [entry for _, entry in kept]
        last = entries[-1] if entries else {}
        self._time_before = float(last.get("time", 0.0))
        self._started = time.monotonic()
        self._position = (int(last.get("step", 0)), int(last.get("images", 0)))
        self._recorded = {
            (entry["kind"], name)
            for entry in entries
            if entry["step"] == step and entry["kind"] != "bad_images"  # which are known by their names
            for name in entry
        }
        self._recorded_step = step
        self._bad_images = {
            name for entry in entries if entry["kind"] == "bad_images" for name in entry["names"]
        }
        self._open_tensorboard(entries)

    def train(self, step: int, images: int, figures: Mapping[str, Any]) -> None:
        """Records losses, learning rates, gradient norms: `train/<name>` in TensorBoard."""
        self._record("train", step, images, figures)

    def perf(self, step: int, images: int, figures: Mapping[str, Any]) -> None:
        """Records speed, busy shares, recomputations: `perf/<name>` in TensorBoard."""
        self._record("perf", step, images, figures)

    def evaluation(self, step: int, images: int, figures: Mapping[str, Any]) -> None:
        """Records the figures of an evaluation: `eval/<name>` in TensorBoard."""
        self._record("evaluation", step, images, figures)

    def bad_images(self, step: int, images: int, names: Sequence[str]) -> None:
        """Records real images that are skipped, but for those that are recorded already."""
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
    ) -> Path:
        """Writes a picture of generated images, beside real ones, and shows it as `eval/samples`.

        Args:
            generated, real: (N, C, H, W) in [-1, 1].
            columns: images in a row; about as many as rows when not given.

        Returns:
            The picture's path, `samples/step-<8 digits>.png`.
        """
        grids = [_grid(side, columns) for side in (generated, real) if side is not None]
        png = io.BytesIO()
        _beside(grids).save(png, "PNG")
        name = f"{SAMPLES}/step-{step:08d}.png"
        # The picture before the line that names it.
        write_whole(UPath(self.folder / name), png.getvalue())
        self._record("samples", step, images, {"path": name})
        return self.folder / name

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records the run's final figures and, for TensorBoard, that the run has ended well.

        Args:
            rows: the first text of a row is its name; its numbers become `final/<name>/<key>`, which the
                HParams tab compares among runs.
        """
        step, images = self._position
        self._record("table", step, images, {"rows": [dict(row) for row in rows]})

    def close(self) -> None:
        """Ends the recording: nothing can be recorded after."""
        self._events = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _record(self, kind: str, step: int, images: int, figures: Mapping[str, Any]) -> None:
        if self._events is None:
            raise ValueError("this tracker is closed")
        if clash := _OWN_KEYS & figures.keys():
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
            **_json_ready(figures),
        }
        line = json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n"
        append_whole(self.folder / METRICS, line.encode())
        self._show(entry)
        self._flush()

    def _open_tensorboard(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Starts TensorBoard's events: settings, then `entries`."""
        logs = self.folder / TENSORBOARD
        for old in list(logs.glob("events.out.tfevents.*")):
            # Emptied now and removed the next time: a TensorBoard that is reading a file does not get over
            # its removal.
            if old.stat().st_size:
                old.write_bytes(b"")
            else:
                old.unlink()
        # TensorBoard reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._events, self._pending = logs / name, io.BytesIO()
        self._add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A TensorBoard that is open meanwhile forgets what it had read: all of it follows again.
        self._add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        # No summary of the experiment: it would fix the columns, and one run's would serve for every run
        # under a storage folder. Without it TensorBoard finds the columns in all of them.
        parameters = dict(_dotted(self._hyperparameters))
        self._add(hparams_pb(parameters, trial_id=self._name), 0)
        settings = yaml.safe_dump(self._hyperparameters, sort_keys=False, allow_unicode=True)
        self._add(text_summary("config", "```yaml\n" + settings + "```"), 0)
        for entry in entries:
            self._show(entry)
            if self._pending.tell() > _CHUNK:
                self._flush()
        self._flush()

    def _show(self, entry: Mapping[str, Any]) -> None:
        """Gives one line of metrics.jsonl to TensorBoard."""
        kind, images, unix_time = entry["kind"], entry["images"], entry["unix_time"]
        if kind in _CURVES:
            prefix = _CURVES[kind]
            figures = {name: value for name, value in entry.items() if name not in _OWN_KEYS}
            self._add(_scalars(prefix, figures), images, unix_time)
        elif kind == "samples":
            picture = self.folder / entry["path"]
            if picture.exists():
                self._add(_picture("eval/samples", picture.read_bytes()), images, unix_time)
        elif kind == "table":
            self._add(text_summary("table", _markdown(entry["rows"])), images, unix_time)
            for row in entry["rows"]:
                self._add(_scalars(f"final/{_row_tag(row)}", row), images, unix_time)
            _, _, ended_well = torch_hparams({}, {})
            self._add(ended_well, images, unix_time)

    def _add(self, summary: Summary, images: int, unix_time: float | None = None) -> None:
        wall_time = time.time() if unix_time is None else unix_time
        self._add_event(Event(wall_time=wall_time, step=images, summary=summary))

    def _add_event(self, event: Event) -> None:
        RecordWriter(self._pending).write(event.SerializeToString())

    def _flush(self) -> None:
        """Hands TensorBoard what was added."""
        assert self._events is not None
        append_whole(self._events, self._pending.getvalue())
        self._pending = io.BytesIO()


def read_metrics(folder: UPath | str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order; numbers that are not finite as floats.

    A line that was cut off by a kill is skipped. A run without metrics has no lines.
    """
    return [_with_floats(entry) for _, entry in _read_lines(UPath(folder) / METRICS)]


def _read_lines(path: UPath) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a file of JSON objects, as they stand and parsed."""
    try:
        content = read_whole(path)
    except FileNotFoundError:
        return []
    lines = []
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            lines.append((line, entry))
    return lines


def _json_ready(value: Any) -> Any:
    """`value` as strict JSON has it: numbers of numpy and torch plain, those not finite as strings."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return _json_ready(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _with_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, bool | float | str]]:
    """The leaves of nested settings under dotted names, as TensorBoard takes them; null is left out."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _scalars(prefix: str, figures: Mapping[str, Any]) -> Summary:
    """The numbers among `figures` as one summary."""
    numbers = {name: _with_floats(value) for name, value in figures.items()}
    return Summary(
        value=[
            Summary.Value(tag=f"{prefix}/{name}", simple_value=value)
            for name, value in numbers.items()
            if isinstance(value, bool | int | float)
        ]
    )


def _picture(tag: str, png: bytes) -> Summary:
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
        channels = len(picture.getbands())
    image = Summary.Image(width=width, height=height, colorspace=channels, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _grid(images: np.ndarray | Tensor, columns: int | None) -> Image.Image:
    return image_grid(images, columns or math.ceil(math.sqrt(len(images))))


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures from left to right on white."""
    if len(pictures) == 1:
        return pictures[0]
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    whole = Image.new(mode, (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + _GAP
    return whole


def _row_tag(row: Mapping[str, Any]) -> str:
    """The first text of a table's row, as a part of a tag."""
    name = next((value for value in row.values() if isinstance(value, str)), "run")
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def cell(value: Any) -> str:
        if value is None:
            return ""
        return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")

    lines = [columns, ["---"] * len(columns)] + [[cell(row.get(c)) for c in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
