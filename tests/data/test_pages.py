"""Pages of Parquet files that end the process that reads them: this process lives, and the file is named.

No damage is known that aborts the pinned pyarrow in a page: of 200,000 mutated files none did. Here the reading process
aborts itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysid.config import DataSettings
from raysid.data import ImageStream, Piece, open_source, pages, ray_blocks
from raysid.data.parquet import ParquetSource
from raysid.data.picture_source import Content
from raysid.errors import RunFailed, StorageError, UserError
from raysid.storage.files import OpenFile
from tests.support.picture_files import digit_pictures, write_parquet

COUNT, GROUP = 60, 10


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A Parquet file of six row groups."""
    return write_parquet(tmp_path / "images.parquet", digit_pictures(COUNT), group=GROUP)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes and installs a reading process that runs a statement before it reads a batch of some row groups."""

    def write(statement: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(
            "import os, signal, sys\n"
            "from raysid.data import page_reader\n"
            "whole = page_reader._batches\n"
            "def batches(file, groups, columns, rows, skip):\n"
            "    for batch in whole(file, groups, columns, rows, skip):\n"
            f"        {statement}\n"
            "        yield batch\n"
            "page_reader._batches = batches\n"
            "page_reader.main(sys.stdin.buffer, sys.stdout.buffer)\n"
        )
        monkeypatch.setattr(pages, "PROGRAM", str(file))
        made.append(pages._Pool())
        monkeypatch.setattr(pages, "_made", made[-1])
        return str(file)

    made: list[pages._Pool] = []
    yield write
    for pool in made:
        pool.close()


def dying_in(group: int, number: str = "SIGABRT") -> str:
    return f"if groups == [{group}]: os.kill(os.getpid(), signal.{number})"


def faults_of(source: Any) -> list[str]:
    blocks = list(source.blocks())
    assert sum(len(block["label"]) for block in blocks) == source.num_images
    return [fault for block in blocks for fault in block["fault"] if fault]


@pytest.mark.parametrize("number", ["SIGABRT", "SIGSEGV"])
def test_a_row_group_that_kills_its_reader_is_named_and_the_others_are_read(
    path: str, program: Callable[[str], str], number: str
) -> None:
    expected = np.concatenate([block["image"] for block in open_source(path).blocks()])
    program(dying_in(2, number))
    source = open_source(path)
    faults = faults_of(source)
    assert len(faults) == GROUP
    assert faults[0] == (
        f"row 20 of {path} cannot be read: row group 2 is damaged, and kills a process that reads it ({number}): write "
        "the file again, or leave it out"
    )
    images = np.concatenate([block["image"] for block in source.blocks()])
    np.testing.assert_array_equal(np.delete(images, range(20, 30), 0), np.delete(expected, range(20, 30), 0))


def test_a_run_ends_with_the_name_of_the_file(path: str, program: Callable[[str], str]) -> None:
    program(dying_in(3))
    source = open_source(path)
    with (
        ImageStream(source.blocks, source.shard_sizes, seed=0, window=COUNT) as stream,
        pytest.raises(
            RunFailed, match=rf"10 of 60 real images cannot be used.*row 30 of {path} .*row group 3"
        ),
    ):
        stream.read(0, 10)


def test_a_read_task_of_ray_data_lives_on(
    path: str, program: Callable[[str], str], ray_cluster: object
) -> None:
    class Dying(ParquetSource):
        """Its reading process is another program, in any process."""

        program = ""

        def contents(self, piece: Piece) -> Iterator[Content]:
            pages.PROGRAM, pages._made = self.program, None
            return super().contents(piece)

    source = Dying.__new__(Dying)
    source.__dict__.update(vars(open_source(path)), program=program(dying_in(3)))
    with (
        ImageStream(ray_blocks(source), source.shard_sizes, seed=0, window=COUNT) as stream,
        pytest.raises(RunFailed, match=rf"row 30 of {path} cannot be read: row group 3 is damaged"),
    ):
        stream.read(0, 10)


def test_labels_whose_pages_kill_their_reader_name_the_file(path: str, program: Callable[[str], str]) -> None:
    program("if columns == ['label']: os.abort()")
    with pytest.raises(UserError) as refused:
        open_source(path)
    assert str(refused.value) == (
        f"{path} cannot be read as Parquet: one of its 6 row groups is damaged, and kills a process that reads it "
        "(SIGABRT): write the file again, or leave it out"
    )


def test_a_reader_that_is_killed_once_is_replaced(
    path: str, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """As by the system when memory runs out: what was read stays, the rest is read by the next one."""
    expected = np.concatenate([block["image"] for block in open_source(path).blocks()])
    first = tmp_path / "first"
    first.touch()
    program(
        f"if groups == [4] and os.path.exists({str(first)!r}): os.remove({str(first)!r}); os.kill(os.getpid(), 9)"
    )
    source = open_source(path)
    assert first.exists()
    images = np.concatenate([block["image"] for block in source.blocks()])
    np.testing.assert_array_equal(images, expected)
    assert not first.exists()


def test_a_reader_that_is_killed_again_is_no_bad_picture(path: str, program: Callable[[str], str]) -> None:
    program(dying_in(2, "SIGKILL"))
    source = open_source(path)
    with pytest.raises(
        UserError,
        match=rf"{path} cannot be read: the process that reads its pages was ended \(SIGKILL\) .*group 2",
    ):
        faults_of(source)


def test_a_disk_that_fails_is_no_damage(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(path)
    read = OpenFile.read

    def failing(self: OpenFile, size: int = -1) -> bytes:
        if size != 65536 and self.tell() > 4:  # not the footer
            raise StorageError(path, "read", "the disk is gone")
        return read(self, size)

    with monkeypatch.context() as patched:
        patched.setattr(OpenFile, "read", failing)
        with pytest.raises(UserError, match="the disk is gone"):
            faults_of(source)
    assert faults_of(source) == []


def test_files_can_be_read_in_turns_in_one_thread(path: str) -> None:
    source = open_source(path)
    whole = [list(source.contents(Piece(0, 0, COUNT))) for _ in range(2)]
    turns = zip(*(source.contents(Piece(0, 0, COUNT)) for _ in range(3)), strict=True)
    for expected, found in zip(whole[0], turns, strict=True):
        assert [content.data for content in found] == [expected.data] * 3
    # Half of a file, and then another part.
    half = source.contents(Piece(0, 0, COUNT))
    for _ in range(15):
        next(half)
    half.close()  # type: ignore[attr-defined]
    assert [content.data for content in source.contents(Piece(0, 35, 41))] == [
        content.data for content in whole[1][35:41]
    ]


def test_a_killed_process_leaves_no_reader(path: str) -> None:
    program = (
        "import os, sys\nfrom raysid.data import open_source, pages\n"
        f"source = open_source({path!r})\n"
        "(reader,) = pages._pool()._free\nprint(reader._running.pid, flush=True)\nsys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    reader = int(owner.stdout.readline())
    os.kill(reader, 0)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    end = time.monotonic() + 30
    while _runs(reader):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_text_that_is_no_utf_8_does_not_matter(tmp_path: Path) -> None:
    """A picture's path is not read where its bytes are there."""
    path = Path(write_parquet(tmp_path / "p.parquet", digit_pictures(5)))
    content = path.read_bytes()
    assert b"0/00000.png" in content
    path.write_bytes(content.replace(b"0/00000.png", b"\xff/00000.png"))
    source = open_source(DataSettings(source=str(path)))
    assert faults_of(source) == []
