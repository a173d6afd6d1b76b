"""Control characters of names and messages do not reach the terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from raysid.cli import cli
from raysid.cli.errors import Commands
from raysid.errors import UserError, printable
from raysid.run.output import PrintableStream, drawing
from raysid.run.progress import ProgressLine
from raysid.run.table import print_table
from tests.support.picture_files import digit_pictures

EVIL = "a\x1b[31mb\x1b]0;t\x07\x9b2Jc\u202ed\u2028e\udc80"


def is_plain(text: str) -> bool:
    return printable(text.replace("\n", "").replace("\t", "")) == text.replace("\n", "").replace("\t", "")


def test_names_become_one_line_that_can_be_read() -> None:
    assert printable("a\nb\tc\x1b[2J\x85") == r"a\nb\tc\x1b[2J\x85"
    assert printable("\u202ereversed \udcff \ud800") == r"\u202ereversed \xff \ud800"
    for name in (
        "é 日本 \N{FAMILY}",
        "می\u200cخواهم",
        "a\u00a0b",
    ):  # letters, a joiner, a space that is not broken
        assert printable(name) == name


@click.group(cls=Commands)
def evil() -> None:
    """A command whose output holds control characters."""


@evil.command()
@click.argument("how")
def speak(how: str) -> None:
    if how == "refuse":
        raise UserError(EVIL)
    click.echo(EVIL)
    click.echo(EVIL, err=True)
    print(EVIL, file=sys.stderr)
    print_table(EVIL, [EVIL, "x\ny"], [[EVIL, "1\n2"]])
    with ProgressLine("work", 10) as line:
        line.update(5, {f"loss/{EVIL}": 1.0}, EVIL + "\n")
        line.message(EVIL)


@pytest.mark.parametrize(
    "arguments", [["speak", "loud"], ["speak", "refuse"], ["speak", "--" + EVIL], [EVIL]]
)
def test_all_output_of_a_command_is_escaped(arguments: list[str]) -> None:
    before = sys.stdout
    result = CliRunner().invoke(evil, arguments)
    assert is_plain(result.output) and r"\x9b2Jc\u202ed" in result.output
    assert sys.stdout is before and not isinstance(result.exception, UnicodeError)


def test_a_newline_in_a_cell_does_not_add_a_row() -> None:
    out = io.StringIO()
    print_table("t\nt", ["name\nx"], [["a\nb"], ["c"]], stream=out)
    lines = out.getvalue().split("\n")
    assert [line.strip() for line in lines if "\\n" in line] == [r"t\nt", r"name\nx", r"a\nb"]
    assert len(lines) == 8


def test_a_stream_that_draws_passes_only_sequences_that_draw() -> None:
    out = io.StringIO()
    stream = PrintableStream(out)
    stream.write("\x1b[1mbold\x1b[0m \x1b[2K")
    assert out.getvalue() == "bold \\x1b[2K"
    out.truncate(out.seek(0))
    drawing(stream).write("\r\x1b[2K\x1b[1mbold\x9b\x1b]0;t\x07")  # type: ignore[arg-type]
    assert out.getvalue() == "\r\x1b[2K\x1b[1mbold\\x9b\\x1b]0;t\\x07"


def test_letters_that_the_stream_lacks_are_escaped() -> None:
    content = io.BytesIO()
    stream = PrintableStream(io.TextIOWrapper(content, "ascii"))
    stream.write("é日\n")
    stream.flush()
    assert content.getvalue() == rb"\xe9\u65e5" + b"\n"


def test_files_with_control_characters_in_their_names_are_listed_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content, _ in digit_pictures(20):
        path = tmp_path / "pictures" / f"{name[0]}\x1b[2J\n" / f"{name[2:]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (path.parent / "bad\x1b]0;t\x07\u202e.png").write_bytes(b"none")
    result = CliRunner().invoke(cli, ["data", "check", "pictures", "--data.max-bad-fraction", "0.1"])
    assert result.exit_code == 0, result.output
    assert is_plain(result.output)
    assert r"classes  10: 0\x1b[2J\n (2)" in result.output
    assert r"bad\x1b]0;t\x07\u202e.png is not a" in result.output
