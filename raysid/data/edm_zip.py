"""Image zips as EDM's and StyleGAN's dataset tools write them: pictures, and `dataset.json` with their labels."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from raysid.config import DataSettings
from raysid.data.files import Found, Texts, reaching_source
from raysid.data.labels import Labels, class_labels
from raysid.data.pictures import MAX_PICTURE, SUFFIXES, BadPicture, ListedSource
from raysid.data.source import shuffled_once
from raysid.errors import NotHere, UserError
from raysid.storage import is_local, of_a_bucket

LABELS = "dataset.json"
MAX_LABELS = 1 << 27  # bytes of dataset.json; ImageNet's has 50 million
READ_AHEAD = 1 << 16  # bytes that a bucket is asked for at least: pictures are read in a shuffled order

# What zipfile raises for damage and for what it does not know. An OSError is the disk's or the network's.
_DAMAGED = (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class EDMZipSource(ListedSource):
    """The images of a zip, read in place; in a bucket by ranges.

    The list is sorted by name and read in an order that is shuffled once, since such zips often lie sorted by class.

    Raises:
        NotHere: there is no such file.
        UserError: it is no zip of images, or its labels are not classes.
    """

    def __init__(self, found: Found, data: DataSettings) -> None:
        self.name = found.name
        if len(found.files) > 1:
            raise UserError(f"data.source {found.name} is {len(found.files)} zips: give one")
        self.path = found.files[0].path
        archive = _open(self.path)
        names = sorted(n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in SUFFIXES)
        if not names:
            raise UserError(
                f"data.source {self.path} holds no images: a zip of {', '.join(SUFFIXES)} is needed"
            )
        self.names = Texts(names)
        with reaching_source(self.name):
            self.labels = _labels(self.path, archive, names)
        self.order = shuffled_once(len(names))

    def fetched(self, places: NDArray[np.int64]) -> Iterator[tuple[str, bytes | BadPicture]]:
        with reaching_source(self.name):
            for place in places:
                name = self.names[place]
                try:
                    data: bytes | BadPicture = _content(_open(self.path), name, MAX_PICTURE)
                except (*_DAMAGED, KeyError) as error:
                    if of_a_bucket(error):
                        raise
                    data = BadPicture(f"cannot be read: {error}")
                yield f"{name} in {self.path}", data


@lru_cache(maxsize=4)
def _open(path: str) -> zipfile.ZipFile:
    """The zip, kept open by the process; a file opened through fsspec is read by ranges."""
    place = UPath(path)
    ahead = {} if is_local(place) else {"cache_type": "readahead", "block_size": READ_AHEAD}
    try:
        return zipfile.ZipFile(place.open("rb", **ahead))  # type: ignore[arg-type, call-overload]
    except FileNotFoundError:
        raise NotHere(f"there is no file {path}") from None
    except (*_DAMAGED, OSError, ImportError) as error:
        raise UserError(f"data.source {path} cannot be read as a zip of images: {error}") from None


def _labels(path: str, archive: zipfile.ZipFile, names: list[str]) -> Labels:
    """The class of each picture, by `dataset.json`: {"labels": [["00000/img00000000.png", 6], ...]}, or null."""
    where = f"{LABELS} in {path}"
    by_name: dict[str, Any] = {}
    if LABELS in archive.namelist():
        try:
            listed: Any = json.loads(_content(archive, LABELS, MAX_LABELS))["labels"]
            by_name = {} if listed is None else {str(name): label for name, label in listed}
        except (*_DAMAGED, KeyError, TypeError) as error:
            raise UserError(f"{where} is damaged: {error!r}") from None
    return class_labels([by_name.get(name) for name in names], where)


def _content(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A file of the zip. Raises ValueError where it is larger than `limit` bytes, or not packed as others pack."""
    info = archive.getinfo(name)
    # What is packed in other ways is unpacked whole, however much it says to be.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"it is packed by method {info.compress_type}: stored and deflated files are read")
    if (size := max(info.file_size, info.compress_size)) > limit:
        raise ValueError(f"it has {size:,} bytes, and at most {limit:,} are read")
    with archive.open(info) as file:
        return file.read(info.file_size + 1)
