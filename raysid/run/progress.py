"""What a user sees while a run goes: a live line on a terminal, plain lines elsewhere, tables at the end."""

from __future__ import annotations

import io
import math
import os
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raysid.storage.failures import storage_error

# Seconds that the shown speed looks back, between plain lines, and between pictures of the live line.
_SPEED_WINDOW = 15.0
_PLAIN_INTERVAL = 10.0
_LIVE_INTERVAL = 0.5
# The narrowest and the widest bar.
_BAR = (8, 30)


class ProgressLine:
    """Shows how far a run is: how fast, its losses, the time left, its last evaluation.

    On a terminal one line that is redrawn; what is printed meanwhile, by Ray too, appears above it. Elsewhere
    (a file, CI, the log of a Ray job) a plain line every 10 seconds, whenever the note changes, and at the
    end, each readable by itself:

        distill  38% | step 610/1,600 | 78,080 images | 612 images/s | loss sid -12.3, fake score 45.6 | 3m 24s left

    A narrow terminal gets less: losses go first, then the long forms, the bar, the note, the speed.

    Args:
        title: what is being done, in a word.
        total_images: how many images there are to be in the end.
        start_images: how many there are already, from an earlier part of a resumed run; they do not count for
            the speed.
        batch_size: images a step, to count steps by; without it images are all that is counted.
        stream: where to, by default standard error.
    """

    def __init__(
        self,
        title: str,
        total_images: int,
        start_images: int = 0,
        batch_size: int | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._title = title
        self._batch_size = batch_size
        self._total = total_images
        self._start_images = start_images
        self._stream = stream
        self._images = start_images
        self._figures: Mapping[str, float] = {}
        self._note = ""
        self._printed: tuple[int, Mapping[str, float], str] | None = None  # what the last plain line was of
        self._live: Progress | None = None

    def __enter__(self) -> Self:
        self._out = self._stream or sys.stderr
        self._started = time.monotonic()
        self._next_sample = 0.0
        self._next_plain = 0.0
        # (time, images) of recent updates; from the first on, since the time before it (starting actors) says
        # nothing about the speed.
        self._recent: deque[tuple[float, int]] = deque()
        if _is_terminal(self._out):
            console = Console(file=self._out, force_terminal=True)
            column = _LineColumn(self, console)
            # Rich draws from a thread of its own, so `update` never waits for a terminal.
            self._live = Progress(column, console=console, refresh_per_second=1 / _LIVE_INTERVAL)
            self._live.add_task(self._title, total=self._total)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._printed not in (None, self._state()):
            self._print_plain()

    def update(self, images: int, figures: Mapping[str, float], note: str = "") -> None:
        """Tells how far the run is; as often as it likes, since nothing is drawn most of the time.

        Args:
            images: images so far, those before a resume too. Fewer than before: the run went back to a
                checkpoint.
            figures: losses by name; of `loss/fake_score` the last part is shown.
            note: what to know beside them, such as "last evaluation: distance 3.41"; stays until another is
                given.
        """
        now = time.monotonic()
        if images < self._images:
            self._recent = deque([(now, images)])
        self._images = images
        self._figures = dict(figures)
        if now >= self._next_sample:
            self._next_sample = now + 0.1
            self._sample(now)
        changed = bool(note) and note != self._note
        if changed:
            self._note = note
        if self._live is None and (changed or now >= self._next_plain):
            self._print_plain()

    def message(self, text: str) -> None:
        """Prints a line of its own."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _write(self._out, text + "\n")

    def _sample(self, now: float) -> None:
        recent = self._recent
        recent.append((now, self._images))
        while len(recent) > 2 and recent[1][0] < now - _SPEED_WINDOW:
            recent.popleft()

    def _speed(self) -> float:
        """Images a second of late; 0 while unknown."""
        if not self._recent:
            return 0.0
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def _print_plain(self) -> None:
        self._next_plain = time.monotonic() + _PLAIN_INTERVAL
        if self._printed != self._state():
            _write(self._out, f"{self._title} {self._text(len(self._figures))}\n")
            self._printed = self._state()

    def _state(self) -> tuple[int, Mapping[str, float], str]:
        """What a plain line tells, but for the time."""
        return self._images, self._figures, self._note

    def _text(self, losses: int, *, compact: bool = False, note: bool = True, speed: bool = True) -> str:
        """The line after its title, with the first `losses` of the losses."""
        images, total = self._images, self._total
        # Rounded down, so that 100% is said of what is done.
        percent = f"{min(100, 100 * images // max(1, total)):3d}%"
        done = images >= total
        seconds = time.monotonic() - self._started
        rate = (images - self._start_images) / seconds if done and seconds > 0 else self._speed()
        if self._batch_size:
            step, steps = images // self._batch_size, -(-total // self._batch_size)
            parts = [f"{percent} step {step}/{steps}"] if compact else [percent, f"step {step:,}/{steps:,}"]
            if not compact:
                parts.append(f"{images:,} images")
        elif compact:
            parts = [f"{percent} {_short_count(images)}/{_short_count(total)}"]
        else:
            parts = [percent, f"{images:,}/{total:,} images"]
        if speed and rate > 0:
            short = _short_count(round(rate)) if rate >= 1000 else short_number(rate)
            parts.append(f"{short}/s" if compact else f"{short_number(rate)} images/s")
        if losses:
            shown = list(self._figures.items())[:losses]
            text = ", ".join(f"{_short_name(name)} {short_number(value)}" for name, value in shown)
            parts.append(f"loss {text}")
        if done:
            parts.append(f"took {duration(seconds)}")
        elif rate > 0:
            parts.append(f"{duration((total - images) / rate)} left")
        if note and self._note:
            parts.append(self._note.rpartition(": ")[2] if compact else self._note)
        return " | ".join(parts)

    def _layouts(self) -> Iterator[tuple[str, bool]]:
        """Ways to write the live line, (text after the bar, whether there is a bar), the best first."""
        for losses in range(len(self._figures), -1, -1):
            yield self._text(losses), True
        for note in (True, False):
            for bar in (True, False):
                yield self._text(0, compact=True, note=note), bar
        yield self._text(0, compact=True, note=False, speed=False), False

    def _live_line(self, width: int) -> tuple[str, int]:
        """The text after the bar and the bar's width (0: none) for a line of `width` cells."""
        text = ""
        for text, bar in self._layouts():
            room = width - cell_len(self._title) - cell_len(text) - 2
            if bar and room > _BAR[0]:
                return text, min(room, _BAR[1])
            if not bar and room + 1 >= 0:
                return text, 0
        return text, 0


class _LineColumn(ProgressColumn):
    """The whole live line as rich's one column, since what fits depends on all of it."""

    def __init__(self, line: ProgressLine, console: Console) -> None:
        self._line = line
        self._console = console
        super().__init__()

    def render(self, task: Task) -> Table:
        line = self._line
        # One cell less than there are: some terminals wrap at the last.
        text, bar = line._live_line(self._console.width - 1)
        row = Table.grid(padding=(0, 1, 0, 0))
        cells: list[Text | ProgressBar] = [Text(line._title, "bold", no_wrap=True, overflow="crop")]
        if bar:
            cells.append(ProgressBar(line._total, min(line._images, line._total), width=bar))
        cells.append(Text(text, no_wrap=True, overflow="crop"))
        row.add_row(*cells)
        return row


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], stream: TextIO | None = None
) -> None:
    """Prints a table; columns of numbers stand to the right.

    Nothing is ever cut: headings and texts wrap at spaces where the terminal is narrow, and where even that
    is not enough the lines are longer than the terminal. None is printed as a dash, floats with four digits;
    give text for any other form.

    Args:
        stream: where to, by default standard output.
    """
    out = stream or sys.stdout
    terminal = _is_terminal(out)
    cells = [[_cell(value) for value in row] for row in rows]
    # With lines only where they help reading, a table survives any log viewer.
    style = box.SIMPLE_HEAD if _is_unicode(out) else box.ASCII
    table = Table(box=style)
    numeric = [all(row[i] is None or _is_number(row[i]) for row in rows) for i in range(len(columns))]
    # Two blanks beside each column, a line between two and at the edges.
    room = Console(file=out).width - 3 * len(columns) - 1 if terminal else None
    for i, width in enumerate(_column_widths(columns, cells, numeric, room)):
        table.add_column(Text(columns[i]), justify="right" if numeric[i] else "left", width=width)
    for row_cells in cells:
        table.add_row(*map(Text, row_cells))

    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=10_000, legacy_windows=False)
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print(table)
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    _write(out, "\n".join(lines) + "\n")


def _column_widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool], room: int | None
) -> list[int]:
    """Widths at which no word and no number is broken, as near to unwrapped as `room` cells allow.

    Rich's own way to shrink a table breaks words in columns that have a least width.
    """
    least, widest = [], []
    for i, heading in enumerate(columns):
        texts = [row[i] for row in cells]
        unbroken = texts if numeric[i] else [word for text in texts for word in text.split()]
        least.append(max(map(cell_len, ["", *unbroken, *heading.split()])))
        widest.append(max(map(cell_len, [*texts, heading])))
    if room is None:
        return widest
    spare = max(0, room - sum(least))
    widths = []
    for low, high in zip(least, widest, strict=True):
        more = min(high - low, spare)
        widths.append(low + more)
        spare -= more
    return widths


def short_number(value: float) -> str:
    """A number with three significant digits: -12.3, 0.0450, 1,235, 1.20e-05."""
    if not math.isfinite(value):
        return str(float(value))
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 999.5:
        return f"{value:,.0f}" if size < 1e6 else f"{value:.2e}"
    if size < 1e-3:
        return f"{value:.2e}"
    # Through %e, so that 9.999 is 10.0 and not 10.00.
    exponent = int(f"{size:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def duration(seconds: float) -> str:
    """Seconds for people: 45s, 3m 24s, 1h 02m, 2d 03h."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}h"
    if hours:
        return f"{hours}h {minute:02d}m"
    return f"{minutes}m {second:02d}s" if minutes else f"{second}s"


def _short_count(count: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count)


def _short_name(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def _is_number(value: Any) -> bool:
    try:
        float(str(value).rstrip("%").replace(",", ""))
    except ValueError:
        return value == "-"
    return True


def _is_terminal(stream: TextIO) -> bool:
    # Not rich's answer: FORCE_COLOR, which CI services set, makes it take a log for a terminal.
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _is_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")


def _write(stream: TextIO, text: str) -> None:
    """Writes text, in plain letters where the stream has no others."""
    if not _is_unicode(stream):
        plain = unicodedata.normalize("NFKD", text)
        text = "".join(c if c.isascii() else "" if unicodedata.combining(c) else "?" for c in plain)
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:  # click ends the command quietly
        raise
    except OSError as error:
        raise storage_error(error, getattr(stream, "name", "the output"), "written") from error
