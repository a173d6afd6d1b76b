"""The progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Self, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raysid.errors import printable
from raysid.run.output import drawing, printable_lines
from raysid.run.text import duration, is_terminal, short_number, write_text

_SPEED_WINDOW = 15.0  # seconds over which the speed is averaged
_PLAIN_INTERVAL = 10.0  # seconds between plain lines
_LIVE_INTERVAL = 0.5  # seconds between redraws of the live line
_BAR = (8, 30)  # cells of the narrowest and the widest bar


class ProgressLine:
    """Shows a run's progress, speed, losses, time left and last evaluation.

    On a terminal it redraws one line; other output, Ray's included, appears above it. Elsewhere (a file, CI, the log
    of a Ray job) it prints a plain line every 10 seconds, whenever the note changes, and at the end:

        distill  38% | step 610/1,600 | 78,080 images | 612 images/s | loss sid -12.3, fake score 45.6 | 3m 24s left

    A narrow terminal gets less: losses go first, then the long forms, the bar, the note, the speed.

    Args:
        title: one word for the work.
        total_images: number of images at the end.
        start_images: number of images at the start of a resumed run; they do not count for the speed.
        batch_size: images per step; without it the line counts only images.
        unit: what is counted.
        stream: the output, by default standard error.
    """

    def __init__(
        self,
        title: str,
        total_images: int,
        start_images: int = 0,
        batch_size: int | None = None,
        unit: str = "images",
        stream: TextIO | None = None,
    ) -> None:
        self._title = title
        self._batch_size = batch_size
        self._total = total_images
        self._unit = unit
        self._start_images = start_images
        self._stream = stream
        self._images = start_images
        self._figures: Mapping[str, float] = {}
        self._note = ""
        self._printed: tuple[int, Mapping[str, float], str] | None = None  # the state of the last plain line
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._out = self._stream or sys.stderr
        self._started = time.monotonic()
        self._next_sample = 0.0
        self._next_plain = 0.0
        # (time, images) of recent updates. It begins with the first update: before that actors start.
        self._recent: deque[tuple[float, int]] = deque()
        if is_terminal(self._out):
            console = Console(file=drawing(self._out), force_terminal=True)
            # Rich draws from a separate thread, so `update` never waits for a terminal.
            self._live = Live(
                console=console,
                refresh_per_second=1 / _LIVE_INTERVAL,
                # One cell less than there are: some terminals wrap at the last.
                get_renderable=lambda: self._live_row(console.width - 1),
            )
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._printed not in (None, self._state()):
            self._print_plain()

    def update(self, images: int, figures: Mapping[str, float], note: str = "") -> None:
        """Set the progress. It may be called at every step: most calls draw nothing.

        Args:
            images: images so far, with those before a resume. Fewer than before: the run went back to a checkpoint.
            figures: losses by name; the line shows the last part of `loss/fake_score`.
            note: a text such as "last evaluation: distance 3.41", which stays until the next one.
        """
        now = time.monotonic()
        if images < self._images:
            self._recent = deque([(now, images)])
        self._images = images
        self._figures = dict(figures)
        if now >= self._next_sample:
            self._next_sample = now + 0.1
            self._recent.append((now, images))
            while len(self._recent) > 2 and self._recent[1][0] < now - _SPEED_WINDOW:
                self._recent.popleft()
        changed = bool(note) and note != self._note
        if changed:
            self._note = note
        if self._live is None and (changed or now >= self._next_plain):
            self._print_plain()

    def message(self, text: str) -> None:
        """Print a separate line."""
        if self._live is not None:
            self._live.console.print(printable_lines(text), markup=False, highlight=False, soft_wrap=True)
        else:
            write_text(self._out, printable_lines(text) + "\n")

    def _speed(self) -> float:
        """Images per second over the last seconds; 0 while unknown."""
        if not self._recent:
            return 0.0
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def _print_plain(self) -> None:
        self._next_plain = time.monotonic() + _PLAIN_INTERVAL
        if self._printed != self._state():
            write_text(self._out, f"{self._title} {self._text(len(self._figures))}\n")
            self._printed = self._state()

    def _state(self) -> tuple[int, Mapping[str, float], str]:
        """The contents of a plain line except the time."""
        return self._images, self._figures, self._note

    def _text(self, losses: int, *, compact: bool = False, note: bool = True, speed: bool = True) -> str:
        """The line after its title, with the first `losses` of the losses."""
        images, total = self._images, self._total
        # Rounded down, so that 100% means finished.
        percent = f"{min(100, 100 * images // max(1, total)):3d}%"
        done = images >= total
        seconds = time.monotonic() - self._started
        rate = (images - self._start_images) / seconds if done and seconds > 0 else self._speed()
        if self._batch_size:
            step, steps = images // self._batch_size, -(-total // self._batch_size)
            parts = [f"{percent} step {step}/{steps}"] if compact else [percent, f"step {step:,}/{steps:,}"]
            if not compact:
                parts.append(f"{images:,} {self._unit}")
        elif compact:
            parts = [f"{percent} {_short_count(images)}/{_short_count(total)}"]
        else:
            parts = [percent, f"{images:,}/{total:,} {self._unit}"]
        if speed and rate > 0:
            short = _short_count(round(rate)) if rate >= 1000 else short_number(rate)
            parts.append(f"{short}/s" if compact else f"{short_number(rate)} {self._unit}/s")
        if losses:
            figures = list(self._figures.items())[:losses]
            named = ((name.rpartition("/")[2].replace("_", " "), value) for name, value in figures)
            parts.append("loss " + ", ".join(f"{name} {short_number(value)}" for name, value in named))
        if done:
            parts.append(f"took {duration(seconds)}")
        elif rate > 0:
            parts.append(f"{duration((total - images) / rate)} left")
        if note and self._note:
            parts.append(self._note.rpartition(": ")[2] if compact else self._note)
        return printable(" | ".join(parts))

    def _layouts(self) -> Iterator[tuple[str, bool]]:
        """Ways to write the live line, (text after the bar, whether there is a bar), the best first."""
        for losses in range(len(self._figures), -1, -1):
            yield self._text(losses), True
        for note in (True, False):
            for bar in (True, False):
                yield self._text(0, compact=True, note=note), bar
        yield self._text(0, compact=True, note=False, speed=False), False

    def _live_row(self, width: int) -> Table:
        """The live line, of at most `width` cells: the title, a bar if there is room, the text."""
        cells: list[Text | ProgressBar] = [Text(self._title, "bold", no_wrap=True, overflow="crop")]
        text = ""
        for text, bar in self._layouts():
            room = width - cell_len(self._title) - cell_len(text) - 2
            if bar and room > _BAR[0]:
                done, length = min(self._images, self._total), min(room, _BAR[1])
                cells.append(ProgressBar(self._total, done, width=length))
                break
            if not bar and room + 1 >= 0:
                break
        cells.append(Text(text, no_wrap=True, overflow="crop"))
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(*cells)
        return row


def _short_count(count: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count)
