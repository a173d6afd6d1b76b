"""`raysid data check` of prompts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.command_line import raysid
from tests.support.tiny_pipeline import tiny_pipeline


def test_text_is_described(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red fox in the snow\n\na cat\n" + "a " * 40 + "\n")
    result = raysid("data", "check", file)
    assert result.exit_code == 0, result.output
    assert f"{file}: 4 prompts\n" in result.stdout
    assert "columns  line (3)\n" in result.stdout and "left out 1 (blank" in result.stdout
    assert "words    median 6, 95% below 37, longest 40\n" in result.stdout
    assert "line:    a red fox in the snow\n" in result.stdout
    assert "prompts/s" in result.stderr or "prompts" in result.stderr


def test_the_share_that_a_text_encoder_cuts_is_counted(tmp_path: Path) -> None:
    tiny_pipeline(tmp_path / "pipeline")
    file = tmp_path / "prompts.txt"
    file.write_text("a red fox\n" + "a " * 40 + "\n")
    result = raysid("data", "check", file, "--tokenizer", tmp_path / "pipeline")
    assert "too long 1 (50.0%), cut at 12 tokens\n" in result.stdout


def test_parquet_without_pictures_is_prompts(tmp_path: Path) -> None:
    rows = {"text": [f"prompt {n}" for n in range(10)], "score": [n / 10 for n in range(10)]}
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    result = raysid("data", "check", tmp_path / "p.parquet")
    assert "columns  text (10)\n" in result.stdout, result.output
    result = raysid("data", "check", tmp_path / "p.parquet", "--prompts.min", "{score: 0.5}")
    assert "columns  text (5)\n" in result.stdout and "left out 5 " in result.stdout
    recap = pa.table({"re_caption": ["long"] * 4, "org_caption": ["short"] * 4})
    pq.write_table(recap, tmp_path / "r.parquet")
    result = raysid("data", "check", tmp_path / "r.parquet")
    assert result.exit_code == 2
    assert (
        "or, if it is of prompts: " in result.stderr and "columns: re_caption, org_caption" in result.stderr
    )
    weights = "{re_caption: 0.8, org_caption: 0.2}"
    result = raysid("data", "check", tmp_path / "r.parquet", "--prompts.column", weights)
    assert "columns  re_caption (4), org_caption (4)\n" in result.stdout


def test_bad_prompts_are_named_and_too_many_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"text": "good"}\n{"text": 3}\n')
    result = raysid("data", "check", file)
    assert f"bad      line 2 of {file} is a number, not a text\n" in result.stdout
    assert result.exit_code == 2 and "1 of 2 prompts cannot be used" in result.stderr
    empty = tmp_path / "e.jsonl"
    empty.write_text('{"text": ""}\n')
    assert "holds no prompt that can be used" in raysid("data", "check", empty).stderr
