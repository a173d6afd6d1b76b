"""Tables in a terminal or a log."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysid.errors import printable
from raysid.run.output import drawing
from raysid.run.text import is_terminal, is_unicode, write_text


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], stream: TextIO | None = None
) -> None:
    """Print a table, with columns of numbers aligned to the right.

    Nothing is cut: headings and texts wrap at spaces where the terminal is narrow, and where that is not enough the
    lines are longer than the terminal. None is printed as a dash, a float with four digits, a text as it is.

    Args:
        stream: the output, by default standard output.
    """
    out = stream or sys.stdout
    terminal = is_terminal(out)
    title, columns = printable(title), [printable(column) for column in columns]
    cells = [[_cell(value) for value in row] for row in rows]
    # Few lines, which survive any log viewer.
    style = box.SIMPLE_HEAD if is_unicode(out) else box.ASCII
    table = Table(box=style)
    numeric = [all(row[i] is None or _is_number(row[i]) for row in rows) for i in range(len(columns))]
    # Each column has two blanks beside it, and a line between two columns and at the edges.
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
    write_text(drawing(out), "\n".join(lines) + "\n")


def _column_widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool], room: int | None
) -> list[int]:
    """Column widths at which no word and no number is broken, as wide as `room` cells allow.

    (Rich breaks words when it shrinks a table, in columns that have a minimum width.)
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


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return printable(str(value))


def _is_number(value: Any) -> bool:
    try:
        float(str(value).rstrip("%").replace(",", ""))
    except ValueError:
        return value == "-"
    return True
