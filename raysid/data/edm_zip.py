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

from raysid.config import DataSettings
from raysid.data.fetching import ranges_of
from raysid.data.files import Found, reading_source
from raysid.data.labels import Labels, class_labels
from raysid.data.picture_source import ListedSource
from raysid.data.pictures import MAX_PICTURE, SUFFIXES, BadPicture, shown
from raysid.data.source import Texts, shuffled_once
from raysid.errors import NotHere, StorageError, UserError
from raysid.storage import open_file

LABELS = "dataset.json"
MAX_LABELS = 1 << 27  # bytes of dataset.json; ImageNet's has 50 million
HEADER, SIGNATURE = 30, b"PK\x03\x04"  # of a member, before its name; PKWARE's APPNOTE 4.3.7
ENCRYPTED = 1  # of a member's flags
SPARE = 32  # bytes: what is extra may be longer there than in the directory

# What zipfile raises for damage and for what it does not know.
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
            self.deflated = np.array([member.compress_type == zipfile.ZIP_DEFLATED for member in members])
            faults = {place: _fault(member, MAX_PICTURE) for place, member in enumerate(members)}
            self.faults = {place: fault for place, fault in faults.items() if fault is not None}
            with reading_source(self.name):
                self.labels = _labels(self.path, archive, names)
        longest = max(len(member.filename.encode()) + len(member.extra) for member in members)
        self.ahead = HEADER + longest + SPARE
        self.order = shuffled_once(len(names))

    def name_of(self, place: int) -> str:
        return shown(f"{self.names[place]} in {self.path}")

    def fetched(self, places: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        usable = [place for place in places.tolist() if place not in self.faults]
        with reading_source(self.name):
            parts = ranges_of(self.path, self.offsets[usable], self.packed[usable] + self.ahead)
            for place in places.tolist():
                if place in self.faults:
                    yield BadPicture(f"cannot be read: {self.faults[place]}")
                else:
                    yield self._unpacked(place, next(parts))

    def _unpacked(self, place: int, part: bytes) -> bytes | BadPicture:
        """A member's content, from the bytes at its place in the zip on."""
        if not part.startswith(SIGNATURE) or len(part) < HEADER:
            return BadPicture("cannot be read: its header in the zip is damaged")
        begin = HEADER + sum(struct.unpack_from("<HH", part, HEADER - 4))  # after its name, and what is extra
        end = begin + int(self.packed[place])
        if len(part) < end:
            (part,) = ranges_of(self.path, self.offsets[[place]], np.array([end]))
        content = part[begin:end]
        if self.deflated[place]:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, int(self.sizes[place]) + 1)
            except zlib.error as error:
                return BadPicture(f"cannot be read: {error}")
        if len(content) != self.sizes[place] or zlib.crc32(content) != self.sums[place]:
            return BadPicture("cannot be read: its bytes are not what the zip says of them")
        return content


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(open_file(path))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise NotHere(f"there is no file {path}") from None
    except (*_DAMAGED, StorageError) as error:
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
    """A file of the zip. Raises ValueError where it is not read."""
    info = archive.getinfo(name)
    if (fault := _fault(info, limit)) is not None:
        raise ValueError(fault)
    with archive.open(info) as file:
        return file.read(info.file_size + 1)


def _fault(member: zipfile.ZipInfo, limit: int) -> str | None:
    """Why a member is not read, by what the zip's directory says of it."""
    if member.flag_bits & ENCRYPTED:
        return "it is encrypted"
    # What is packed in other ways is unpacked whole, however much it says to be.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is packed by method {member.compress_type}: stored and deflated files are read"
    if (size := max(member.file_size, member.compress_size)) > limit:
        return f"it has {size:,} bytes, and at most {limit:,} are read"
    return None
