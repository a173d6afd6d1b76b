"""Messages about prompts name the setting of prompts, also where the same readers read images."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysid.errors import RunFailed, UserError
from tests.support.prompt_files import NUMBERED, WRITERS, every_format, opened, stream_of, write_text


def refused(source: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        opened(source, **settings)
    assert "\n" not in str(error.value) and "data.source" not in str(error.value)
    return str(error.value)


@every_format
def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"prompts{suffix}")
    assert refused(tmp_path / f"prompts{suffix}") == (
        f"prompts.source: {tmp_path}/prompts{suffix} is not a file, but a pipe, a device or a folder"
    )
    assert "prompts.source: /dev/null is not a file" in refused("/dev/null", format="text")


def test_a_source_without_files_is_refused(tmp_path: Path) -> None:
    assert refused([]) == "prompts.source is an empty list: give files, or null for none"
    for kind in ("text", "jsonl", "parquet", "webdataset"):
        assert refused(tmp_path, format=kind) == f"prompts.source {tmp_path} holds no files"


@pytest.mark.parametrize("braces", ["{1..999999}", "{1..999}{1..999}"])
def test_too_many_files_are_refused(tmp_path: Path, braces: str) -> None:
    line = refused(f"{tmp_path}/{braces}.txt")
    assert line.startswith("prompts.source") and line.endswith("stands for more than 100,000 files")


@every_format
def test_a_file_that_cannot_be_read_any_more_stops_the_run(tmp_path: Path, suffix: str) -> None:
    file = WRITERS[suffix](tmp_path / f"prompts{suffix}", NUMBERED)
    with stream_of(file) as stream:
        file.unlink()
        file.mkdir()
        with pytest.raises(RunFailed) as failed:
            stream.read(0, 8)
    assert str(failed.value).startswith(f"prompts.source {file} cannot be read: Is a directory")


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "prompts.tar", "w:gz"):
        pass
    line = refused(tmp_path / "prompts.tar")
    assert "is a compressed tar, whose members cannot be read one by one: unpack it" in line


def test_a_file_that_became_shorter_yields_too_few_prompts(tmp_path: Path) -> None:
    file = write_text(tmp_path / "prompts.txt", NUMBERED)
    with stream_of(file) as stream:
        write_text(file, NUMBERED[:3])
        with pytest.raises(ValueError, match=f"^of {re.escape(str(file))} Piece.* yielded 3 prompts$"):
            stream.read(0, 8)


def test_a_minimum_that_leaves_nothing_is_named(tmp_path: Path) -> None:
    rows = {"text": ["a", "b", "", "d"], "score": [0.1, 0.2, 0.9, 0.4]}
    file = tmp_path / "prompts.parquet"
    pq.write_table(pa.table(rows), file)
    with stream_of(file, min={"score": 1}) as stream, pytest.raises(RunFailed) as failed:
        stream.read(0, 4)
    assert str(failed.value) == (
        "none of 4 consecutive prompts can be used: 4 are left out (blank, or a score below prompts.min): give a lower "
        "minimum"
    )
    with stream_of(file, min={"score": 0.5}) as stream, pytest.raises(RunFailed) as failed:
        stream.read(0, 4)
    assert str(failed.value) == (
        "none of 4 consecutive prompts can be used: 3 are left out (blank, or a score below prompts.min): "
        "`raysid data check` names the others"
    )


def test_an_error_of_a_read_task_speaks_of_prompts(ray_cluster: None, tmp_path: Path) -> None:
    file = write_text(tmp_path / "prompts.txt", NUMBERED)
    with stream_of(file, ray=True) as stream:
        write_text(file, NUMBERED[:3])
        with pytest.raises(
            RuntimeError, match=r"^reading the prompts failed: ValueError: of .* yielded 3 prompts"
        ):
            stream.read(0, 8)
