"""The live progress line, its plain form, and tables."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import time
from types import SimpleNamespace

import pytest

from raysid.run import progress
from raysid.run.progress import ProgressLine
from raysid.run.table import print_table
from raysid.run.text import duration, short_number

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A stand-in for the module's `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def run_in_terminal(code: str, columns: int, **environment: str) -> str:
    """The output of a Python program in a terminal of that width, with escape sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    without = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # on Linux this means that the other end is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode()


def visible_lines(written: str) -> list[str]:
    lines = re.split(r"[\r\n]+", ESCAPES.sub("", written))
    return [line for line in lines if line.strip()]


def test_plain_lines_come_every_ten_seconds_and_can_each_be_read_alone(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressLine("distill", 204_800, stream=stream) as line:
        for step in range(1, 306):
            clock.now += 0.1
            line.update(step * 64, {"loss/generator": -12.345, "loss/fake_score": 45.61})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5  # at once, after 10, 20 and 30 seconds, at the end
    assert lines[0] == "distill   0% | 64/204,800 images | loss generator -12.3, fake score 45.6"
    assert lines[2] == (
        "distill   6% | 12,864/204,800 images | 640 images/s"
        " | loss generator -12.3, fake score 45.6 | 5m 00s left"
    )
    assert "19,520/204,800" in lines[-1]


def test_a_new_note_is_printed_at_once_and_stays(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressLine("distill", 1000, stream=stream) as line:
        line.update(10, {})
        clock.now += 1
        line.update(20, {}, note="last evaluation: distance 3.41, accuracy 97.2%")
        clock.now += 1
        line.update(30, {}, note="last evaluation: distance 3.41, accuracy 97.2%")
        clock.now += 9
        line.update(1000, {})
    lines = stream.getvalue().splitlines()
    assert [line.split(" images")[0] for line in lines] == [
        "distill   1% | 10/1,000",
        "distill   2% | 20/1,000",
        "distill 100% | 1,000/1,000",
    ]
    assert lines[-1].endswith("| took 11s | last evaluation: distance 3.41, accuracy 97.2%")


def test_the_speed_is_recent_and_does_not_count_images_before_a_resume(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressLine("distill", 2_000_000, start_images=1_000_000, stream=stream) as line:
        clock.now += 60  # actors start
        images = 1_000_000
        for rate in (1000, 100):
            for _ in range(40):
                clock.now += 1
                images += rate
                line.update(images, {})
    lines = stream.getvalue().splitlines()
    assert "1,044,000/2,000,000 images | 100 images/s" in lines[-1]
    assert any("| 1,000 images/s" in line for line in lines)
    assert not any(re.search(r"\| \d\d,\d{3} images/s", line) for line in lines)


def test_going_back_to_a_checkpoint_does_not_show_a_negative_speed(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressLine("distill", 10_000, stream=stream) as line:
        for images in (1000, 2000, 3000, 500, 600, 700):
            clock.now += 10
            line.update(images, {})
    assert "-" not in stream.getvalue()
    assert "700/10,000 images | 10.0 images/s" in stream.getvalue()


def test_messages_are_lines_of_their_own(clock: Clock) -> None:
    stream = io.StringIO()
    with ProgressLine("distill", 100, stream=stream) as line:
        line.message("a teacher [0] was lost")
    assert stream.getvalue() == "a teacher [0] was lost\n"


def test_an_update_that_draws_nothing_is_cheap() -> None:
    with ProgressLine("distill", 10**9, stream=io.StringIO()) as line:
        line.update(1, {})
        started = time.process_time()
        for images in range(10_000):
            line.update(images + 2, {"loss/generator": 1.0, "loss/fake_score": 2.0})
        assert (time.process_time() - started) / 10_000 < 50e-6


def test_a_stream_with_a_narrow_encoding_gets_plain_characters() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with ProgressLine("distill", 100, stream=stream) as line:
        line.update(50, {}, note="Fréchet distance 3.4 → 2.1")
    print_table("Fréchet distance", ["model", "Fréchet distance"], [["teacher", 0.72]], stream=stream)
    text = raw.getvalue().decode("ascii")
    assert "Frechet distance 3.4 ? 2.1" in text
    assert "0.72" in text


LIVE = """
    import sys, time
    from raysid.run.progress import ProgressLine
    with ProgressLine("distill", 204800) as line:
        for step in range(1, 41):
            time.sleep(0.05)
            note = "last evaluation: distance 3.41, accuracy 97.2%" if step > 25 else ""
            line.update(step * 5120, {"loss/generator": -12.34, "loss/fake_score": 45.6}, note)
            if step == 15:
                line.message("a message [of] mine")
                print("a naked print")
"""


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_the_live_line_never_wraps(columns: int) -> None:
    lines = visible_lines(run_in_terminal(LIVE, columns))
    drawn = [line.rstrip() for line in lines if line.startswith("distill")]
    assert len(drawn) > 3
    assert max(map(len, drawn)) < columns
    assert "a message [of] mine" in lines and "a naked print" in lines
    assert all("%" in line for line in drawn)
    if columns >= 80:
        assert any("images/s" in line and "left" in line for line in drawn)
        assert "distance 3.41, accuracy 97.2%" in drawn[-1] and "100%" in drawn[-1]
    assert any("loss generator -12.3, fake score 45.6" in line for line in drawn) == (columns == 160)


def test_the_live_line_respects_no_color() -> None:
    written = run_in_terminal(LIVE, 80, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3\d(;|m)", written)
    assert "distill" in written


def test_force_color_does_not_make_a_log_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with ProgressLine("distill", 100, stream=stream) as line:
        line.update(50, {})
    print_table("t", ["a"], [[1]], stream=stream)
    assert "\x1b" not in stream.getvalue()


COLUMNS = ["model", "Fréchet distance", "label accuracy", "milliseconds per image"]
ROWS = [
    ["teacher, 35 network evaluations", 0.7234, "98.1%", 1234.5],
    ["generator, before distillation", 12345.678, None, 0.0123],
]


def test_a_table_in_a_log() -> None:
    stream = io.StringIO()
    print_table("digits-sida", COLUMNS, ROWS, stream=stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "digits-sida"
    assert [re.split(r"\s{2,}", line.strip()) for line in lines if "," in line] == [
        ["teacher, 35 network evaluations", "0.7234", "98.1%", "1,234"],
        ["generator, before distillation", "12,346", "-", "0.0123"],
    ]
    (heading,) = (line for line in lines if "Fréchet" in line)
    (teacher,) = (line for line in lines if "teacher" in line)
    for name, number in (("Fréchet distance", "0.7234"), ("milliseconds per image", "1,234")):
        assert heading.index(name) + len(name) == teacher.index(number) + len(number)


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_a_table_in_a_narrow_terminal_keeps_its_numbers_whole(columns: int) -> None:
    code = f"from raysid.run.table import print_table; print_table('digits-sida', {COLUMNS!r}, {ROWS!r})"
    text = "\n".join(visible_lines(run_in_terminal(code, columns)))
    for number in ("0.7234", "12,346", "1,234", "0.0123", "98.1%", "milliseconds"):
        assert number in text
    assert "…" not in text
    if columns >= 60:
        assert max(map(len, text.splitlines())) <= columns


def test_numbers_and_durations_are_short() -> None:
    numbers = [-12.345, 45.6, 9.999, 0.045, 1.23e-5, 1234.6, 999.7, 0.0, float("nan"), float("-inf"), 3]
    assert [short_number(number) for number in numbers] == [
        *("-12.3", "45.6", "10.0", "0.0450", "1.23e-05", "1,235", "1,000", "0", "nan", "-inf", "3.00")
    ]
    seconds = [0.2, 45, 59.9, 204, 3725, 183_600]
    assert [duration(value) for value in seconds] == ["0s", "45s", "1m 00s", "3m 24s", "1h 02m", "2d 03h"]


def test_counts_steps_where_the_batch_size_is_known() -> None:
    stream = io.StringIO()
    with ProgressLine("distill", 1000, batch_size=64, stream=stream) as line:
        line.update(320, {})
    assert stream.getvalue().startswith("distill  32% | step 5/16 | 320 images")
