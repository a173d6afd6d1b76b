"""Image zips as EDM's and StyleGAN's dataset tools write them: pictures, and `dataset.json` with their labels."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from raysid.config import DataSettings
from raysid.data.files import Found, Texts, ranges_of, reaching_source
from raysid.data.labels import Labels, class_labels
from raysid.data.pictures import MAX_PICTURE, SUFFIXES, BadPicture, ListedSource
from raysid.data.source import shuffled_once
from raysid.errors import NotHere, UserError

LABELS = "dataset.json"
MAX_LABELS = 1 << 27  # bytes of dataset.json; ImageNet's has 50 million
HEADER, SIGNATURE = 30, b"PK\x03\x04"  # of a member, before its name; PKWARE's APPNOTE 4.3.7
SPARE = 32  # bytes: what is extra may be longer there than in the directory

# What zipfile raises for damage and for what it does not know. An OSError is the disk's or the network's.
_DAMAGED = (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class EDMZipSource(ListedSource):
    """The images of a zip, read in place; in a bucket by ranges.

    The list is sorted by name and read in an order that is shuffled once, since such zips often lie sorted by class.
    Members are found by the zip's directory, which is read once: to open one zipfile takes as long as its decoding.

    Raises:
        NotHere: there is no such file.
        UserError: it is no zip of images, or its labels are not classes.
    """

    def __init__(self, found: Found, data: DataSettings) -> None:
        self.name = found.name
        if len(found.files) > 1:
            raise UserError(f"data.source {found.name} is {len(found.files)} zips: give one")
        self.path = found.files[0].path
        with _open(self.path) as archive:
            names = sorted(n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in SUFFIXES)
            if not names:
                raise UserError(
                    f"data.source {self.path} holds no images: a zip of {', '.join(SUFFIXES)} is needed"
                )
            self.names = Texts(names)
            members = [archive.getinfo(name) for name in names]
            self.offsets = np.array([member.header_offset for member in members], np.int64)
            self.packed = np.array([member.compress_size for member in members], np.int64)
            self.sizes = np.array([member.file_size for member in members], np.int64)
            self.sums = np.array([member.CRC for member in members], np.int64)
            self.methods = np.array([member.compress_type for member in members], np.int16)
            self.locked = np.array([bool(member.flag_bits & 1) for member in members])
            with reaching_source(self.name):
                self.labels = _labels(self.path, archive, names)
        longest = max(len(member.filename.encode()) + len(member.extra) for member in members)
        self.ahead = HEADER + longest + SPARE
        self.order = shuffled_once(len(names))

    def fetched(self, places: NDArray[np.int64]) -> Iterator[tuple[str, bytes | BadPicture]]:
        usable = [place for place in places if self._fault(place) is None]
        sizes = self.packed[usable] + self.ahead
        with reaching_source(self.name):
            parts = ranges_of(self.path, self.offsets[usable], sizes)
            for place in places:
                fault = self._fault(place)
                data = self._unpacked(place, next(parts)) if fault is None else BadPicture(fault)
                yield f"{self.names[place]} in {self.path}", data

    def _fault(self, place: np.int64) -> str | None:
        """Why a member is not read, by what the directory says of it."""
        if self.locked[place]:
            return "cannot be read: it is encrypted"
        return _too_large_or_odd(self.methods[place], max(self.sizes[place], self.packed[place]), MAX_PICTURE)

    def _unpacked(self, place: np.int64, part: bytes) -> bytes | BadPicture:
        """A member's content, from the bytes at its place in the zip on."""
        if not part.startswith(SIGNATURE) or len(part) < HEADER:
            return BadPicture("cannot be read: its header in the zip is damaged")
        begin = HEADER + sum(struct.unpack_from("<HH", part, HEADER - 4))  # after its name, and what is extra
        end = begin + int(self.packed[place])
        if len(part) < end:
            (part,) = ranges_of(self.path, self.offsets[[place]], np.array([end]))
        content = part[begin:end]
        if self.methods[place] == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, int(self.sizes[place]) + 1)
            except zlib.error as error:
                return BadPicture(f"cannot be read: {error}")
        if len(content) != self.sizes[place] or zlib.crc32(content) != self.sums[place]:
            return BadPicture("cannot be read: its bytes are not what the zip says of them")
        return content


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(UPath(path).open("rb"))  # type: ignore[arg-type]
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
    if (
        fault := _too_large_or_odd(info.compress_type, max(info.file_size, info.compress_size), limit)
    ) is not None:
        raise ValueError(fault)
    with archive.open(info) as file:
        return file.read(info.file_size + 1)


def _too_large_or_odd(method: int, size: int, limit: int) -> str | None:
    """What is packed in other ways is unpacked whole, however much it says to be."""
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"cannot be read: it is packed by method {method}: stored and deflated files are read"
    return f"cannot be read: it has {size:,} bytes, and at most {limit:,} are read" if size > limit else None
