"""Sources of prompts, and their stream: every format, order, resume, columns with weights, scores, bad rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysid.data.prompts.source import first_prompts
from raysid.errors import NotHere, RunFailed, UserError
from tests.support.bucket_server import BUCKET, bucket_environment, bucket_server, in_bucket
from tests.support.prompt_files import (
    NUMBERED,
    WRITERS,
    every_format,
    opened,
    stream_of,
    write_jsonl,
    write_parquet,
    write_tar,
    write_text,
)


@every_format
def test_an_epoch_has_every_prompt_once_in_another_order(tmp_path: Path, suffix: str) -> None:
    file = WRITERS[suffix](tmp_path / f"prompts{suffix}", NUMBERED)
    with stream_of(file) as stream:
        first, second = stream.read(0, 1000), stream.read(1000, 1000)
    assert sorted(first) == sorted(second) == sorted(NUMBERED)
    assert first != NUMBERED and first != second
    with stream_of(file, seed=1) as other:
        assert other.read(0, 1000) != first


@every_format
@pytest.mark.parametrize("window", [100, 10_000])
def test_a_read_anywhere_equals_the_uninterrupted_stream(tmp_path: Path, suffix: str, window: int) -> None:
    file = WRITERS[suffix](tmp_path / f"prompts{suffix}", NUMBERED)
    with stream_of(file, shuffle_window=window) as stream:
        whole = stream.read(0, 2200)
    assert Counter(whole[:1000]) == Counter(NUMBERED)
    for start in (0, 7, 999, 1000, 1503, 2190):
        with stream_of(file, shuffle_window=window) as resumed:
            assert resumed.read(start, 10) == whole[start : start + 10]


@every_format
def test_ray_data_reads_the_same(ray_cluster: None, tmp_path: Path, suffix: str) -> None:
    file = WRITERS[suffix](tmp_path / f"prompts{suffix}", NUMBERED)
    with stream_of(file) as here, stream_of(file, ray=True) as through_ray:
        assert through_ray.read(990, 20) == here.read(990, 20)


@pytest.mark.parametrize("named", ["folder", "glob", "list", "braces"])
def test_files_are_named_as_those_of_images_are(tmp_path: Path, named: str) -> None:
    for part in range(3):
        write_text(tmp_path / f"part-{part}.txt", NUMBERED[part * 300 : part * 300 + 300])
    source: Any = {
        "folder": str(tmp_path),
        "glob": str(tmp_path / "*.txt"),
        "list": [str(tmp_path / f"part-{part}.txt") for part in range(3)],
        "braces": str(tmp_path / "part-{0..2}.txt"),
    }[named]
    with stream_of(source) as stream:
        assert sorted(stream.read(0, 900)) == sorted(NUMBERED[:900])


def test_prompts_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_server() as server:
        for name, value in bucket_environment(server, "gs").items():
            monkeypatch.setenv(name, value)
        for suffix, write in WRITERS.items():
            file = write(tmp_path / f"prompts{suffix}", NUMBERED)
            in_bucket(server, f"gs://{BUCKET}/p/prompts{suffix}").write_bytes(file.read_bytes())
            with stream_of(f"gs://{BUCKET}/p/prompts{suffix}") as stream:
                assert sorted(stream.read(0, 1000)) == sorted(NUMBERED)


RECAP = {
    "url": ["u"] * 400,
    "re_caption": [f"long {number}" for number in range(400)],
    "org_caption": [f"short {number}" if number % 4 else None for number in range(400)],
    "sha256": ["0"] * 400,
    "re_clip_score": [number / 400 if number % 7 else None for number in range(400)],
}


def test_a_column_is_drawn_by_its_weight_among_those_that_have_a_text(tmp_path: Path) -> None:
    pq.write_table(pa.table(RECAP), tmp_path / "train-0000.parquet", row_group_size=128)
    weights = {"re_caption": 0.8, "org_caption": 0.2}
    with stream_of(tmp_path / "train-*.parquet", column=weights) as stream:
        drawn, again = stream.read(0, 400), stream.read(400, 400)
    numbers = [prompt.partition(" ")[2] for prompt in drawn]
    assert sorted(numbers, key=int) == [str(number) for number in range(400)]
    assert 0.7 < sum(prompt.startswith("long") for prompt in drawn) / 400 < 0.95
    assert all(prompt.startswith("long") for prompt in drawn if int(prompt.partition(" ")[2]) % 4 == 0)
    assert {*drawn} != {*again}  # another draw in each epoch
    with stream_of(tmp_path / "train-*.parquet", column=weights) as resumed:
        assert resumed.read(300, 200) == [*drawn[300:], *again[:100]]
    with stream_of(tmp_path / "train-*.parquet", column=weights, shuffle_window=50) as other:
        order = other.read(0, 400)
    assert order != drawn and {*order} == {
        *drawn
    }  # a draw belongs to the row and the epoch, not to the position


def test_rows_below_a_score_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table(RECAP), tmp_path / "train-0000.parquet", row_group_size=128)
    jsonl = tmp_path / "rows.jsonl"
    rows = [dict(zip(RECAP, row, strict=True)) for row in zip(*RECAP.values(), strict=True)]
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = {f"long {n}" for n in range(400) if n % 7 and n / 400 >= 0.3}
    for file in (tmp_path / "train-0000.parquet", jsonl):
        given = {"column": "re_caption", "min": {"re_clip_score": 0.3}}
        with stream_of(file, **given) as stream:
            assert {*stream.read(0, 400)} == good
            assert not stream.faults
        assert first_prompts(opened(file, **given)[0], 2) == ("long 120", "long 121")


@pytest.mark.parametrize(
    ("window", "rows_of_a_group", "most"), [(2000, 2000, 2), (1000, 2000, 2), (300, 2000, 8), (300, 250, 8)]
)
def test_a_long_run_that_is_left_out_does_not_repeat_one_prompt(
    tmp_path: Path, window: int, rows_of_a_group: int, most: int
) -> None:
    """Scores are sorted, so half of the rows are left out in one run: in windows of 300 some have no good row."""
    rows = {"text": [f"p{number}" for number in range(2000)], "score": range(2000)}
    file = tmp_path / "sorted.parquet"
    pq.write_table(pa.table(rows), file, row_group_size=rows_of_a_group)
    given: dict[str, Any] = {"min": {"score": 1000}, "shuffle_window": window}
    with stream_of(file, **given) as stream:
        whole = stream.read(0, 4000)
    first, second = Counter(whole[:2000]), Counter(whole[2000:])
    for epoch in (first, second):
        assert {*epoch} == {*rows["text"][1000:]} and max(epoch.values()) <= most
    assert whole[:2000] != whole[2000:]
    for start in (5, 1990, 3100):
        with stream_of(file, **given) as resumed:
            assert resumed.read(start, 20) == whole[start : start + 20]


def test_blank_lines_are_left_out_and_bad_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\n\r\n  \nsecond\r\nbroken \xff\xfe\nthird")
    with stream_of(file, max_bad_fraction=0.5) as stream:
        assert {*stream.read(0, 6)} == {"first", "second", "third"}
        assert [*stream.faults.values()] == [f"line 5 of {file} is not UTF-8 (invalid start byte)"]
    with stream_of(file) as strict, pytest.raises(RunFailed) as failure:
        strict.read(0, 6)
    assert "1 of 6 prompts cannot be used, which is more than prompts.max_bad_fraction = 0.01" in str(
        failure.value
    )


def test_empty_and_foreign_cells_are_named(tmp_path: Path) -> None:
    lines = ['{"text": "good"}', '{"text": 3}', "[1]", '{"text": " "}', "not json", '{"other": "x"}']
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(lines))
    with stream_of(file, max_bad_fraction=1.0) as stream:
        assert {*stream.read(0, 6)} == {"good"}
        assert [fault.replace(str(file), "FILE") for fault in stream.faults.values()] == [
            "line 2 of FILE is a number, not a text",
            "line 3 of FILE is no JSON object",
            "line 4 of FILE is empty",
            "line 5 of FILE is no JSON object",
            "line 6 of FILE is empty",
        ]


@pytest.mark.parametrize(
    ("write", "settings", "message"),
    [
        (lambda at: None, {}, "there is no file or folder"),
        (lambda at: (at / "x.csv").write_text("a"), {}, "holds no prompts (.txt, .jsonl, .parquet or .tar)"),
        (
            lambda at: [write_text(at / "a.txt", ["x"]), write_jsonl(at / "b.jsonl", ["x"])],
            {},
            "holds text and jsonl: give prompts.format",
        ),
        (lambda at: (at / "a.txt").write_text(""), {}, "holds no lines"),
        (lambda at: write_text(at / "a.txt", ["x"]), {"column": "text"}, "is text, which has no columns"),
        (
            lambda at: write_parquet(at / "a.parquet", ["x"]),
            {"column": "re_caption"},
            "prompts.column: {at}/a.parquet has no column re_caption; columns: url, text",
        ),
        (
            lambda at: write_parquet(at / "a.parquet", ["x"]),
            {"min": {"score": 1}},
            "prompts.min: {at}/a.parquet has no column score; columns: url, text",
        ),
        (
            lambda at: pq.write_table(pa.table({"text": [1, 2]}), at / "a.parquet"),
            {},
            "prompts.column text of {at}/a.parquet holds int64: prompts are texts",
        ),
        (
            lambda at: pq.write_table(pa.table({"text": ["a"], "prompt": ["b"]}), at / "a.parquet"),
            {},
            "has several (text, prompt) of the usual columns of prompts",
        ),
        (
            lambda at: (at / "a.parquet").write_bytes(b"PAR1 no PAR1"),
            {},
            "{at}/a.parquet cannot be read as Parquet",
        ),
        (lambda at: (at / "a.jsonl").write_text("hello\n"), {}, "line 1 of {at}/a.jsonl is no JSON object"),
        (lambda at: write_tar(at / "a.tar", ["x"]), {"column": "caption"}, "holds no .caption members"),
        (
            lambda at: (at / "a.txt").write_bytes(b"x" * (1 << 25)),
            {},
            "is longer than 16,777,216 bytes: is it text?",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_prompts_that_cannot_be_used_are_refused_in_a_line(
    tmp_path: Path, write: Any, settings: dict[str, Any], message: str
) -> None:
    write(tmp_path)
    source = tmp_path / "missing" if "no file" in message else tmp_path
    with pytest.raises((UserError, NotHere)) as refused:
        opened(source, **settings)
    assert message.format(at=tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_long_text_file_is_read_in_shards_of_whole_lines(tmp_path: Path) -> None:
    prompts = [f"{number} " + "word " * (number % 50) for number in range(60_000)]
    source, _ = opened(write_text(tmp_path / "long.txt", prompts))
    assert len(source.shard_sizes) > 5 and source.num_prompts == len(prompts)
    read = [text for block in source.blocks() for text in block["image"]]
    assert read == [prompt.strip() for prompt in prompts]


def test_damaged_pages_cost_their_rows_and_not_the_process(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "p.parquet", NUMBERED)
    group = pq.ParquetFile(file).metadata.row_group(1).column(1)
    content = bytearray(file.read_bytes())
    begin = group.dictionary_page_offset or group.data_page_offset
    content[begin : begin + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    file.write_bytes(content)
    with stream_of(file, max_bad_fraction=0.5) as stream:
        assert {*stream.read(0, 1000)} == {*NUMBERED[:300], *NUMBERED[600:]}
        assert len(stream.faults) == 300
        assert stream.faults[300].startswith(f"row 300 of {file} cannot be read: ")
    with stream_of(file) as strict, pytest.raises(RunFailed, match="300 of 1,000 prompts cannot be used"):
        strict.read(0, 1000)


def test_texts_that_have_no_utf_8_are_named(tmp_path: Path) -> None:
    jsonl = tmp_path / "p.jsonl"
    jsonl.write_text('{"text": "good"}\n{"text": "half \\ud800"}\n')
    parquet = tmp_path / "p.parquet"
    binary = pa.array([b"good", b"bad \xff"], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, binary.buffers())}), parquet)
    for file, row in ((jsonl, "line 2"), (parquet, "row 1")):
        with stream_of(file, max_bad_fraction=0.5) as stream:
            assert stream.read(0, 2) == ["good", "good"]
            assert [*stream.faults.values()] == [f"{row} of {file} is not UTF-8"]
