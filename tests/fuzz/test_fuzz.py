"""The fuzzers find what they must find, and find nothing in raysid for a minute."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysid.errors import UserError
from tests.fuzz import children
from tests.fuzz.children import Results, read_inputs
from tests.fuzz.readers import READERS, Reader, suffix


@pytest.mark.parametrize("name", READERS)
def test_the_inputs_that_are_mutated_are_accepted_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate(READERS[name].samples()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / f"input{suffix(name)}"
        path.write_bytes(content)
        try:
            READERS[name].read(path)
        except UserError as error:
            assert name == "path", error


def _fail(path: Path) -> None:
    raise ZeroDivisionError("a fault\nof raysid")


def _hold(path: Path) -> None:
    assert bytearray(2 << 30)


def _refuse(path: Path) -> None:
    raise UserError("no")


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_fail, "finding: ZeroDivisionError: a fault of raysid"),
        (_hold, "finding: 2,"),
        (lambda path: os.kill(os.getpid(), signal.SIGSEGV), "finding: the process ended by signal 11"),
        (lambda path: os.system("true"), "finding: executed os.system"),
        (_refuse, None),
        (len, "finding: TypeError"),
    ],
)
def test_faults_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, outcome: str | None
) -> None:
    monkeypatch.setitem(children.READERS, "made", Reader(lambda: [b"x"], read))
    results = Results()
    read_inputs("made", [b"x"], 0, range(3), results, tmp_path)
    assert results.inputs == 3
    assert results.counts == ({"refused": 3} if outcome is None else {"finding": 3})
    assert all(found.startswith(outcome or "") for found in results.findings.values())
    assert len(results.findings) == (3 if outcome else 0) == len(list(tmp_path.iterdir()))


@pytest.mark.slow
def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "60", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
