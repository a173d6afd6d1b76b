"""Image zips as EDM's and StyleGAN's dataset tools write them: pictures, and `dataset.json` with their labels."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from raysid.data.source import Block, ImageSource, located
from raysid.errors import NotHere, UserError

LABELS = "dataset.json"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # what is decoded: not whatever a file turns out to be
ORDER_SEED = 0  # of the canonical order: such zips often lie sorted by class
MAX_PICTURE = 1 << 26  # bytes of a file, and as many pixels: far above what is trained on
MAX_LABELS = 1 << 30  # bytes of dataset.json; ImageNet's has 50 million

_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Index:
    """What a zip holds, in the canonical order.

    Attributes:
        names: of the pictures, (n,) str.
        labels: class of each, int64 (n,); zeros where there are none.
        num_classes: 0 where there are no labels.
    """

    names: NDArray[np.object_]
    labels: NDArray[np.int64]
    num_classes: int


class EDMZipSource(ImageSource):
    """The images of a zip, read in place; in a bucket by ranges.

    Args:
        path: of the zip; local, or gs://...
        images_per_shard: images that one read task reads.

    Raises:
        NotHere: there is no such file.
        UserError: it is no zip of images, or its labels are not classes.
    """

    pixel_max = 255

    def __init__(self, path: str, images_per_shard: int = 1024) -> None:
        self.name = path
        self.path = located(path)
        self.images_per_shard = images_per_shard
        index = _index(self.path)
        self.num_images, self.num_classes = len(index.names), index.num_classes
        self.num_shards = -(-self.num_images // images_per_shard)
        self.image_shape = _decoded(self.path, index.names[0]).shape  # type: ignore[assignment]

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """Images of each class, (num_classes,); all in one where there are no labels."""
        return np.bincount(_index(self.path).labels, minlength=self.num_classes).astype(np.int64)

    def read_shard(self, index: int) -> Iterator[Block]:
        """The images of one shard, in one block.

        Raises:
            UserError: one cannot be read, or is of another shape than the first; names it.
        """
        if not 0 <= index < self.num_shards:
            raise IndexError(f"{self.name} has shards 0..{self.num_shards - 1}, not {index}")
        listed = _index(self.path)
        rows = slice(index * self.images_per_shard, (index + 1) * self.images_per_shard)
        images = []
        for name in listed.names[rows]:
            images.append(image := _decoded(self.path, name))
            if image.shape != self.image_shape:
                raise UserError(
                    f"{name} in {self.name} has shape {image.shape}, the others {self.image_shape}: "
                    "make the zip with one size, as EDM's dataset_tool.py does with --resolution"
                )
        yield Block(image=np.stack(images), label=listed.labels[rows])


@lru_cache(maxsize=4)
def _open(path: str) -> zipfile.ZipFile:
    """The zip, kept open by the process; a file opened through fsspec is read by ranges."""
    try:
        return zipfile.ZipFile(UPath(path).open("rb"))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise NotHere(f"there is no file {path}") from None
    except (*_DAMAGED, ImportError) as error:
        raise UserError(f"data.source {path} cannot be read as a zip of images: {error}") from None


@lru_cache(maxsize=4)
def _index(path: str) -> _Index:
    """The list of a zip, kept by the process and not by the source, which has to pickle small."""
    archive = _open(path)
    names = sorted(n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in PICTURES)
    if not names:
        raise UserError(f"data.source {path} holds no images: a zip of {', '.join(PICTURES)} is needed")
    labels = _labels(path, archive, names)
    # Not Generator.permutation: NumPy keeps the raw words the same across versions, not its methods.
    order = np.argsort(np.random.Philox(ORDER_SEED).random_raw(len(names)), kind="stable")
    classes = 0 if labels is None else int(labels.max()) + 1
    numbers = np.zeros(len(names), np.int64) if labels is None else labels
    return _Index(np.array(names, dtype=object)[order], numbers[order], classes)


def _labels(path: str, archive: zipfile.ZipFile, names: list[str]) -> NDArray[np.int64] | None:
    """The class of each picture, by `dataset.json`: {"labels": [["00000/img00000000.png", 6], ...]}, or null."""
    if LABELS not in archive.namelist():
        return None
    where = f"{LABELS} in {path}"
    try:
        listed: Any = json.loads(_content(archive, LABELS, MAX_LABELS))["labels"]
        if listed is None:
            return None
        by_name = {str(name): label for name, label in listed}
    except (*_DAMAGED, KeyError, TypeError) as error:
        raise UserError(f"{where} is damaged: {error!r}") from None
    lacking = next((name for name in names if name not in by_name), None)
    if lacking is not None:
        raise UserError(f"{where} has no label for {lacking}")
    labels = [by_name[name] for name in names]
    odd = next((label for label in labels if type(label) is not int or not 0 <= label < 1_000_000), None)
    if odd is not None:
        raise UserError(f"{where} has the label {odd!r}: classes are integers from 0")
    return np.array(labels, np.int64)


def _content(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A file of the zip. Raises ValueError where it says that it is larger than `limit` bytes."""
    size = archive.getinfo(name).file_size
    if size > limit:
        raise ValueError(f"it has {size:,} bytes, and at most {limit:,} are read")
    return archive.read(name)


def _decoded(path: str, name: str) -> NDArray[np.uint8]:
    """A picture as (C, H, W): grey as one channel, everything else as RGB."""
    from PIL import Image

    try:
        content = io.BytesIO(_content(_open(path), name, MAX_PICTURE))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content, formats=FORMATS) as picture:
                image = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    except (*_DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} in {path} cannot be read as an image: {error}") from None
    return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))
