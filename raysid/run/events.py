"""TensorBoard's view of a run: its metrics as events, written in this process.

TensorBoard's own writer works in a separate thread, which a full disk ends with a traceback and a kill ends with
events unwritten.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams as torch_hparams
from torch.utils.tensorboard.summary import text as text_summary
from upath import UPath

from raysid.run.metrics import COMMON_KEYS, WARNING, with_floats
from raysid.storage import append_whole, read_whole, storage_errors

TENSORBOARD = "tensorboard"
# The kinds of lines whose numbers are curves, and the prefix of each.
_CURVES = {"train": "train", "perf": "perf", "evaluation": "eval"}
_CHUNK = 1 << 20  # bytes of events that are written together
# A larger file is left as it is, and another begins: a bucket gets a changed file whole.
_FILE_BYTES = 1 << 20


class Events:
    """New files of events in a run's `tensorboard/`; older files are removed.

    Args:
        folder: the run's folder, on this machine.
        name: the run's name in TensorBoard's list of runs.
        hyperparameters: the run's settings, nested; the HParams tab shows them under dotted names.
        entries: the lines of metrics.jsonl so far.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        hyperparameters: Mapping[str, Any],
        entries: Iterable[Mapping[str, Any]],
    ) -> None:
        self._folder = folder
        logs = folder / TENSORBOARD
        with storage_errors(logs, "written"):
            for old in list(logs.glob("events.out.tfevents.*")):
                # Emptied now and removed the next time: a TensorBoard that is reading a file does not survive its
                # removal.
                old.write_bytes(b"") if old.stat().st_size else old.unlink()
        self._pending = io.BytesIO()
        self._begin_file()
        # At a session's start an open TensorBoard forgets the events that it has read: all of them follow again.
        self._add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        # No summary of the experiment: it would fix the HParams tab's columns, for every run under a storage folder.
        # Without it TensorBoard finds the columns in all of them.
        self._add(hparams_pb(dict(_dotted(hyperparameters)), trial_id=name), 0)
        settings = yaml.safe_dump(dict(hyperparameters), sort_keys=False, allow_unicode=True)
        self._add(text_summary("config", "```yaml\n" + settings + "```"), 0)
        for entry in entries:
            self._add_entry(entry)
            if self._pending.tell() > _CHUNK:
                self._flush()
        self._flush()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Write one line of metrics.jsonl as events."""
        self._add_entry(entry)
        self._flush()

    def _add_entry(self, entry: Mapping[str, Any]) -> None:
        kind, images, unix_time = entry["kind"], entry["images"], entry["unix_time"]
        if kind in _CURVES:
            figures = {name: value for name, value in entry.items() if name not in COMMON_KEYS}
            self._add(_scalars(_CURVES[kind], figures), images, unix_time)
        elif kind == "samples":
            with suppress(FileNotFoundError):
                png = read_whole(UPath(self._folder / entry["path"]))
                self._add(_picture("eval/samples", png), images, unix_time)
        elif kind == WARNING:
            self._add(text_summary("warnings", entry["text"]), images, unix_time)
        elif kind == "table":
            self._add(text_summary("table", _markdown(entry["rows"])), images, unix_time)
            for row in entry["rows"]:
                self._add(_scalars(f"final/{_row_tag(row)}", row), images, unix_time)
            _, _, success = torch_hparams({}, {})
            self._add(success, images, unix_time)

    def _add(self, summary: Summary, images: int, unix_time: float | None = None) -> None:
        wall_time = time.time() if unix_time is None else unix_time
        self._add_event(Event(wall_time=wall_time, step=images, summary=summary))

    def _add_event(self, event: Event) -> None:
        RecordWriter(self._pending).write(event.SerializeToString())

    def _flush(self) -> None:
        append_whole(self._file, self._pending.getvalue())
        self._written += self._pending.tell()
        self._pending = io.BytesIO()
        if self._written > _FILE_BYTES:
            self._begin_file()

    def _begin_file(self) -> None:
        """Write what follows to another file. TensorBoard reads a folder's files in the order of their names."""
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file, self._written = self._folder / TENSORBOARD / name, 0
        self._add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, bool | float | str]]:
    """The leaves of nested settings under dotted names, in TensorBoard's types; null is left out."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _scalars(prefix: str, figures: Mapping[str, Any]) -> Summary:
    """The numbers among `figures` as one summary."""
    numbers = {name: with_floats(value) for name, value in figures.items()}
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


def _row_tag(row: Mapping[str, Any]) -> str:
    """The first text of a table's row, as part of a tag."""
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
