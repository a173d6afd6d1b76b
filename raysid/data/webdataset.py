"""WebDataset: tar files in which members with the same base name are a sample, such as `0001.jpg` and `0001.cls`."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.files import Found, in_threads, reading_source
from raysid.data.picture_source import ListedSource, class_labels
from raysid.data.pictures import MAX_PICTURE, SUFFIXES, TOO_LARGE, BadPicture, printable
from raysid.data.source import Texts
from raysid.errors import UserError
from raysid.storage import open_file

MAX_LABEL = 1 << 20  # bytes of a cls or json member, and of a header that extends another
_EXTENDING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Sample(NamedTuple):
    """A picture in a tar: its member's name, the position of its bytes, its label."""

    name: str
    offset: int
    size: int
    label: int | str | None


class _Header(tarfile.TarInfo):
    """A member's header. Raises tarfile.ReadError for sizes with which tarfile would never end or read everything."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError(f"a member has {count} bytes")
        return super()._block(count)  # type: ignore[misc]

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDING and self.size > MAX_LABEL:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


class WebDatasetSource(ListedSource):
    """The pictures of tar files, in the order of the files' names and of their members.

    Opening it reads the headers and labels of all files, several at a time; a picture is read on its own, at its
    offset. Such files are shuffled when they are made; the stream shuffles within its window.

    The label is the sample's `.cls` member, or the field of its `.json` that `data.label_column` names.

    Raises:
        UserError: a file is not a tar, none holds a picture, or labels are not classes.
    """

    def __init__(self, found: Found, data: DataSettings) -> None:
        self.name = found.name
        paths = [file.path for file in found.files]
        with reading_source(found.name):
            listed = list(in_threads(partial(_samples, label_field=data.label_column), paths))
        samples = [sample for file in listed for sample in file]
        if not samples:
            raise UserError(
                f"data.source {found.name} holds no samples with a picture ({', '.join(SUFFIXES)})"
            )
        self.paths = Texts(paths)
        self.file = np.repeat(np.arange(len(paths)), [len(file) for file in listed])
        self.names = Texts(sample.name for sample in samples)
        self.offsets = np.array([sample.offset for sample in samples], np.int64)
        self.sizes = np.array([sample.size for sample in samples], np.int64)
        self.labels = class_labels([sample.label for sample in samples], found.name)
        self.order = np.arange(len(samples))

    def name_of(self, entry: int) -> str:
        return printable(f"{self.names[entry]} in {self.paths[int(self.file[entry])]}")

    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        with reading_source(self.name):
            for number, group in groupby(entries.tolist(), lambda entry: int(self.file[entry])):
                with open_file(self.paths[number]) as file:
                    for entry in group:
                        yield self._read(file, entry)

    def _read(self, file: Any, entry: int) -> bytes | BadPicture:
        size = int(self.sizes[entry])
        if size > MAX_PICTURE:
            return BadPicture(TOO_LARGE)
        file.seek(int(self.offsets[entry]))
        data = file.read(size)
        return data if len(data) == size else BadPicture("is cut off: the tar ends before it")


def _samples(path: str, label_field: str) -> list[_Sample]:
    """Read the samples of a tar that have a picture.

    Raises:
        UserError: it is not a tar.
    """
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int | str | None] = {}
    try:
        with (
            open_file(path) as file,
            tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive,  # type: ignore[call-overload]
        ):
            for member in archive:
                # The bytes of a sparse member, or of one with a size in an extended header, do not lie at its offset.
                if not member.isfile() or member.issparse() or member.size < 0:
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                key, kind = f"{folder}/{stem}", f".{kind.lower()}"
                if kind.endswith(SUFFIXES):
                    pictures.setdefault(key, (member.name, member.offset_data, member.size))
                elif kind in (".cls", ".json") and member.size <= MAX_LABEL:
                    text = archive.extractfile(member).read()  # type: ignore[union-attr]
                    label = _class(text) if kind == ".cls" else _field(text, label_field)
                    if label is not None:
                        labels[key] = label
    except (tarfile.TarError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{path} cannot be read as a tar (uncompressed): {error}") from None
    return [_Sample(*picture, labels.get(key)) for key, picture in pictures.items()]


def _class(text: bytes) -> int | str | None:
    """The label of a .cls member: a number or a name. A number with more digits than any class has is a name, too."""
    label = text.decode("utf-8", "replace").strip()
    return int(label) if label.isascii() and label.isdigit() and len(label) < 20 else label or None


def _field(text: bytes, name: str) -> int | str | None:
    """A field of a .json member; None if it is missing, or the member is damaged."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    label = fields.get(name) if isinstance(fields, dict) else None
    return label if type(label) in (int, str) else None
