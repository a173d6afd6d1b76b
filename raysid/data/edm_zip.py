"""Zips of images in the form of EDM's and StyleGAN's dataset tools: pictures, and `dataset.json` with their labels."""

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
from raysid.data.picture_source import Labels, ListedSource, class_labels
from raysid.data.pictures import MAX_PICTURE, SUFFIXES, BadPicture, printable
from raysid.data.source import Texts, shuffled_once
from raysid.errors import NotHere, StorageError, UserError
from raysid.storage import open_file

LABELS = "dataset.json"
MAX_LABELS = 1 << 27  # bytes of dataset.json; ImageNet's has 50 million
HEADER, SIGNATURE = 30, b"PK\x03\x04"  # of a member, before its name (PKWARE's APPNOTE, section 4.3.7)
ENCRYPTED = 1  # of a member's flags
SPARE = 32  # bytes by which the extra field may be longer there than in the directory

# What zipfile raises for damaged files and for what it does not support.
_DAMAGED = (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class EDMZipSource(ListedSource):
    """The images of a zip, read in place; from a bucket by ranges.

    The list is sorted by name and read in an order that is shuffled once, because such zips are often sorted by class.
    The zip's directory, read once, locates its members: opening a member with zipfile takes as long as decoding it.

    Raises:
        NotHere: there is no such file.
        UserError: it is not a zip of images, or its labels are not classes.
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
            faults = {entry: _fault(member, MAX_PICTURE) for entry, member in enumerate(members)}
            self.faults = {entry: fault for entry, fault in faults.items() if fault is not None}
            with reading_source(self.name):
                self.labels = _labels(self.path, archive, names)
        longest = max(len(member.filename.encode()) + len(member.extra) for member in members)
        self.ahead = HEADER + longest + SPARE
        self.order = shuffled_once(len(names))

    def name_of(self, entry: int) -> str:
        return printable(f"{self.names[entry]} in {self.path}")

    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        usable = [entry for entry in entries.tolist() if entry not in self.faults]
        with reading_source(self.name):
            parts = ranges_of(self.path, self.offsets[usable], self.packed[usable] + self.ahead)
            for entry in entries.tolist():
                if entry in self.faults:
                    yield BadPicture(f"cannot be read: {self.faults[entry]}")
                else:
                    yield self._unpacked(entry, next(parts))

    def _unpacked(self, entry: int, part: bytes) -> bytes | BadPicture:
        """The content of a member, from the bytes of the zip that begin at its header."""
        if not part.startswith(SIGNATURE) or len(part) < HEADER:
            return BadPicture("cannot be read: its header in the zip is damaged")
        # Its content begins after its name and its extra field, whose lengths end the header.
        begin = HEADER + sum(struct.unpack_from("<HH", part, HEADER - 4))
        end = begin + int(self.packed[entry])
        if len(part) < end:
            (part,) = ranges_of(self.path, self.offsets[[entry]], np.array([end]))
        content = part[begin:end]
        if self.deflated[entry]:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, int(self.sizes[entry]) + 1)
            except zlib.error as error:
                return BadPicture(f"cannot be read: {error}")
        if len(content) != self.sizes[entry] or zlib.crc32(content) != self.sums[entry]:
            return BadPicture("cannot be read: its bytes do not match the zip's directory")
        return content


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(open_file(path))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise NotHere(f"there is no file {path}") from None
    except (*_DAMAGED, StorageError) as error:
        raise UserError(f"data.source {path} cannot be read as a zip of images: {error}") from None


def _labels(path: str, archive: zipfile.ZipFile, names: list[str]) -> Labels:
    """The class of each picture from `dataset.json`: {"labels": [["00000/img00000000.png", 6], ...]}, or null."""
    where = f"{LABELS} in {path}"
    by_name: dict[str, Any] = {}
    if LABELS in archive.namelist():
        member = archive.getinfo(LABELS)
        try:
            if (fault := _fault(member, MAX_LABELS)) is not None:
                raise ValueError(fault)
            with archive.open(member) as file:
                listed: Any = json.loads(file.read(member.file_size + 1))["labels"]
            by_name = {} if listed is None else {str(name): label for name, label in listed}
        except (*_DAMAGED, KeyError, TypeError) as error:
            raise UserError(f"{where} is damaged: {error!r}") from None
    return class_labels([by_name.get(name) for name in names], where)


def _fault(member: zipfile.ZipInfo, limit: int) -> str | None:
    """Why a member cannot be read, from the zip's directory; None if it can."""
    if member.flag_bits & ENCRYPTED:
        return "it is encrypted"
    # zipfile unpacks other methods whole, whatever size they claim.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is packed by method {member.compress_type}: only stored and deflated files are supported"
    if (size := max(member.file_size, member.compress_size)) > limit:
        return f"it has {size:,} bytes, more than the limit of {limit:,}"
    return None
