"""The same real images in files of every format, so that tests can compare what is read."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of pixels (H, W) or (H, W, 3), uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def digit_pictures(count: int) -> list[tuple[str, bytes, int]]:
    """Name without suffix, PNG and class of the digits, sorted by name: class by class, as folders list them."""
    digits = load_digits()
    pixels = np.rint(digits.images[:count] * (255 / 16)).astype(np.uint8)
    listed = [
        (f"{label}/{i:05d}", encoded(image), int(label))
        for i, (image, label) in enumerate(zip(pixels, digits.target[:count], strict=True))
    ]
    return sorted(listed)


def write_folder(root: Path, pictures: Sequence[tuple[str, bytes, int]]) -> str:
    for name, content, _ in pictures:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def write_zip(path: Path, pictures: Sequence[tuple[str, bytes, int]]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, _ in pictures:
            archive.writestr(f"{name}.png", content)
        archive.writestr("dataset.json", json.dumps({"labels": [[f"{n}.png", c] for n, _, c in pictures]}))
    return str(path)


def write_parquet(
    path: Path, pictures: Sequence[tuple[str, bytes | None, Any]], group: int = 100, struct: bool = True
) -> str:
    """Write one Parquet file: images as structs, as Hugging Face datasets store them, or as plain bytes."""
    contents: list[Any] = [content for _, content, _ in pictures]
    if struct:
        contents = [{"bytes": content, "path": f"{name}.png"} for name, content, _ in pictures]
    table = pa.table({"image": contents, "label": [label for _, _, label in pictures]})
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a dictionary a repeated image is stored each time, as different images are.
    pq.write_table(table, path, row_group_size=group, use_dictionary=False)
    return str(path)


def write_tars(
    folder: Path, pictures: Sequence[tuple[str, bytes, Any]], per_tar: int, label: str = "cls"
) -> str:
    """Write WebDataset shards, labels in `.cls` members or in a field of `.json`; return a glob of all shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pictures), per_tar):
        with tarfile.open(folder / f"digits-{start // per_tar:04d}.tar", "w") as tar:
            for name, content, number in pictures[start : start + per_tar]:
                key = name.replace("/", "_")
                add(tar, f"{key}.png", content)
                content = str(number) if label == "cls" else json.dumps({label: number})
                add(tar, f"{key}.{'cls' if label == 'cls' else 'json'}", content.encode())
    return str(folder / "digits-*.tar")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
