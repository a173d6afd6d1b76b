"""Zips of images in the form of EDM's and StyleGAN's dataset tools: pictures, and `dataset.json` with their labels."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.files import Found, damaged_file, described, reading_source
from raysid.data.labels import (
    DATASET_JSON,
    MAX_LABELS,
    Labels,
    class_labels,
    listed_labels,
    match_labels,
    names_listed,
)
from raysid.data.listing import HIDDEN, REQUESTS, is_hidden
from raysid.data.picture_source import ListedSource, left_out_note, new_pictures
from raysid.data.pictures import MAX_PICTURE, SUFFIXES, BadPicture
from raysid.data.source import ORDER_SEED, Texts, random_permutation
from raysid.errors import NotHere, RaysidError, UserError, printable
from raysid.storage import is_local, listed_path, open_file, storage_errors
from raysid.storage.failures import explain
from raysid.storage.s3 import in_one_request

FORM = "a zip of images"
HEADER, SIGNATURE = 30, b"PK\x03\x04"  # of a member, before its name (PKWARE's APPNOTE, section 4.3.7)
ENCRYPTED = 1  # of a member's flags
TOGETHER_BYTES = 1 << 26  # read from a bucket at a time
SPARE = 32  # bytes by which the extra field may be longer there than in the directory

LARGEST = 1 << 61  # of a zip's numbers, which may have 64 bits without a sign


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
        with _open(self.path) as archive, damaged_file(self.path, FORM):
            members = [member for member in archive.infolist() if _is_picture(member.filename)]
            members.sort(key=lambda member: member.filename)
            names = [member.filename for member in members]
            if not names:
                raise UserError(
                    f"data.source {self.path} holds no images: a zip of {', '.join(SUFFIXES)} is needed"
                )
            self.names = Texts(names)
            self.offsets = _numbers(member.header_offset for member in members)
            self.packed = _numbers(member.compress_size for member in members)
            self.sizes = _numbers(member.file_size for member in members)
            self.sums = _numbers(member.CRC for member in members)
            self.deflated = np.array([member.compress_type == zipfile.ZIP_DEFLATED for member in members])
            faults = {entry: _fault(member, MAX_PICTURE) for entry, member in enumerate(members)}
            self.faults = {entry: fault for entry, fault in faults.items() if fault is not None}
            self.faults |= dict.fromkeys(
                _misplaced(self, archive), "its place lies outside the zip or in another file of it"
            )
            with reading_source(self.name):
                self.labels = _labels(self.path, archive, names)
            if not self.labels.names and _dataset_json(self.path, archive) is None:
                self.notes += (f"no labels: there is no {DATASET_JSON} in {found.name}",)
            self.notes += left_out_note(_left_out(archive.namelist()) + found.not_read())
        longest = max(len(member.filename.encode()) + len(member.extra) for member in members)
        self.ahead = HEADER + longest + SPARE
        self.new_since_first = new_pictures(names)
        self.order = random_permutation(ORDER_SEED, len(names))

    def name_of(self, entry: int) -> str:
        return printable(f"{self.names[entry]} in {self.path}")

    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        usable = [entry for entry in entries.tolist() if entry not in self.faults]
        with reading_source(self.name):
            parts = _ranges(self.path, self.offsets[usable], self.packed[usable] + self.ahead)
            for entry in entries.tolist():
                if entry in self.faults:
                    yield BadPicture(f"cannot be read: {self.faults[entry]}")
                else:
                    yield self._unpacked(entry, next(parts))

    def _unpacked(self, entry: int, part: bytes) -> bytes | BadPicture:
        """Return the content of a member, from the bytes of the zip that begin at its header."""
        if not part.startswith(SIGNATURE) or len(part) < HEADER:
            return BadPicture("cannot be read: its header in the zip is damaged")
        # Its content begins after its name and its extra field, whose lengths end the header.
        begin = HEADER + sum(struct.unpack_from("<HH", part, HEADER - 4))
        end = begin + int(self.packed[entry])
        if len(part) < end:
            (part,) = _ranges(self.path, self.offsets[[entry]], np.array([end]))
        content = part[begin:end]
        if self.deflated[entry]:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, int(self.sizes[entry]) + 1)
            except zlib.error as error:
                return BadPicture(f"cannot be read: {error}")
        if len(content) != self.sizes[entry] or zlib.crc32(content) != self.sums[entry]:
            return BadPicture("cannot be read: its bytes do not match the zip's directory")
        return content


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.parts)


def _left_out(names: list[str]) -> Counter[str]:
    """The number of files in a zip that are no pictures, by the reason."""
    paths = [PurePosixPath(name.replace("\\", "/")) for name in names if not name.endswith("/")]
    others = [path for path in paths if not _is_picture(str(path)) and path.name != DATASET_JSON]
    return Counter(HIDDEN if is_hidden(path.parts) else described(path.suffix.lower()) for path in others)


def _ranges(path: str, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[bytes]:
    """Read parts of a file, in order, from a bucket several at a time. A part beyond the end of the file is shorter.

    Raises:
        StorageError: the disk or the bucket fails.
    """
    remote = listed_path(path)
    if is_local(remote):
        with storage_errors(path, "read"), open(remote.path, "rb", buffering=0) as file:
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                yield os.pread(file.fileno(), size, start)
        return
    ends = starts + sizes
    options = in_one_request(remote.fs.protocol)
    first = 0
    while first < len(starts):
        together = int(
            np.searchsorted(np.cumsum(sizes[first : first + REQUESTS]), TOGETHER_BYTES, side="right")
        )
        last = first + max(1, together)
        wanted = [starts[first:last].tolist(), ends[first:last].tolist()]
        with storage_errors(path, "read"):
            parts = remote.fs.cat_ranges([remote.path] * (last - first), *wanted, on_error="raise", **options)
        yield from parts
        first = last


def _open(path: str) -> zipfile.ZipFile:
    try:
        with damaged_file(path, FORM):
            return zipfile.ZipFile(open_file(path))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise NotHere(f"there is no file {path}") from None


def _numbers(values: Iterable[int]) -> NDArray[np.int64]:
    return np.array([min(max(value, -1), LARGEST) for value in values], np.int64)


def _misplaced(source: EDMZipSource, archive: zipfile.ZipFile) -> list[int]:
    """Find the entries that lie outside the zip or in another one, which could unpack the same bytes many times."""
    order = np.argsort(source.offsets, kind="stable")
    starts = source.offsets[order]
    end = archive.start_dir  # of the directory, which follows all members
    following = np.append(starts[1:], end)
    outside = (starts < 0) | (starts + HEADER + source.packed[order] > np.maximum(following, 0))
    return order[outside].tolist()


def _labels(path: str, archive: zipfile.ZipFile, names: list[str]) -> Labels:
    """Read the class of each picture from `dataset.json`, which may lie in a folder with all pictures."""
    member = _dataset_json(path, archive)
    if member is None:
        return class_labels([None] * len(names), path)
    where = f"{printable(member.filename)} in {path}"
    try:
        if (fault := _fault(member, MAX_LABELS)) is not None:
            raise ValueError(fault)
        with archive.open(member) as file:
            by_name = listed_labels(file.read(member.file_size + 1))
    except RaysidError:
        raise
    except Exception as error:
        raise UserError(f"{where} is damaged: {type(error).__name__}: {explain(error)}") from None
    return class_labels(match_labels(by_name, names, where), where)


def _dataset_json(path: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo | None:
    """Return the `dataset.json` that lies in the fewest folders. Raises UserError if there are several."""
    found: dict[int, set[str]] = {}
    for name in archive.namelist():
        *folders, base = name.replace("\\", "/").split("/")
        if base == DATASET_JSON and "__MACOSX" not in folders:
            found.setdefault(len(folders), set()).add(name)
    names = sorted(found[min(found)]) if found else []
    if len(names) > 1:
        raise UserError(f"{path} holds several {DATASET_JSON} ({names_listed(names)}): keep one of them")
    return archive.getinfo(names[0]) if names else None


def _fault(member: zipfile.ZipInfo, limit: int) -> str | None:
    """Return the reason why a member cannot be read, from the zip's directory; None if it can."""
    if member.flag_bits & ENCRYPTED:
        return "it is encrypted"
    # zipfile unpacks other methods whole, whatever size they claim.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is packed by method {member.compress_type}: only stored and deflated files are supported"
    if (size := max(member.file_size, member.compress_size)) > limit:
        return f"it has {size:,} bytes, more than the limit of {limit:,}"
    return None
