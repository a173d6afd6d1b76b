"""Text for people: writing to a stream, short numbers and durations."""

from __future__ import annotations

import math
import os
import unicodedata
from typing import TextIO

from raysid.storage.failures import storage_error


def is_terminal(stream: TextIO) -> bool:
    """True if a stream is a terminal that can redraw a line."""
    # Rich takes a log for a terminal where FORCE_COLOR is set, as CI services do.
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_unicode(stream: TextIO) -> bool:
    """True if a stream can write any letter."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")


def write_text(stream: TextIO, text: str) -> None:
    """Write text, in ASCII where the stream has no other letters."""
    if not is_unicode(stream):
        plain = unicodedata.normalize("NFKD", text)
        text = "".join(c if c.isascii() else "" if unicodedata.combining(c) else "?" for c in plain)
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:  # click ends the command quietly
        raise
    except OSError as error:
        raise storage_error(error, getattr(stream, "name", "the output"), "written") from error


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
    """Seconds in short form: 45s, 3m 24s, 1h 02m, 2d 03h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}h"
    if hours:
        return f"{hours}h {minute:02d}m"
    return f"{minutes}m {second:02d}s" if minutes else f"{second}s"
