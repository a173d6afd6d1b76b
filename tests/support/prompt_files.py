"""Files of prompts in every format, and their streams."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysid.config.prompts import PromptSettings
from raysid.data import ray_blocks
from raysid.data.prompts import PromptSource, PromptStream, open_prompts

NUMBERED = [f"prompt {number}, été" for number in range(1000)]


def write_text(file: Path, prompts: list[str]) -> Path:
    file.write_text("\n".join(prompts), encoding="utf-8")
    return file


def write_jsonl(file: Path, prompts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"caption": prompt, "n": 1}) + "\n" for prompt in prompts))
    return file


def write_parquet(file: Path, prompts: list[str]) -> Path:
    pq.write_table(pa.table({"url": ["u"] * len(prompts), "text": prompts}), file, row_group_size=300)
    return file


def write_tar(file: Path, prompts: list[str]) -> Path:
    with tarfile.open(file, "w") as archive:
        for number, prompt in enumerate(prompts):
            for name, content in ((f"{number:06}.jpg", b"a picture"), (f"{number:06}.txt", prompt.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


WRITERS = {".txt": write_text, ".jsonl": write_jsonl, ".parquet": write_parquet, ".tar": write_tar}
every_format = pytest.mark.parametrize("suffix", WRITERS)


def opened(source: Any, **settings: Any) -> tuple[PromptSource, PromptSettings]:
    found = PromptSettings(source=str(source) if isinstance(source, Path) else source, **settings)
    return open_prompts(found), found


def stream_of(
    source: Any, seed: int = 0, batch_size: int = 8, ray: bool = False, **settings: Any
) -> PromptStream:
    prompts, found = opened(source, **settings)
    return PromptStream(prompts, found, seed, batch_size, *([ray_blocks] if ray else []))
