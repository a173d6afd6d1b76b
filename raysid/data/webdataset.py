"""WebDataset: tar files in which members with the same base name are a sample, such as `0001.jpg` and `0001.cls`."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.files import Found, damaged_file, reading_source
from raysid.data.json_fields import Field, label_field, nested, read_fields
from raysid.data.labels import (
    LABEL_COLUMN,
    class_labels,
    names_listed,
    no_labels,
    number_or_name,
    numbers_of_texts,
)
from raysid.data.listing import HIDDEN, in_threads, is_hidden
from raysid.data.picture_source import ListedSource, left_out_note, new_pictures
from raysid.data.pictures import COMMON, MAX_PICTURE, SUFFIXES, TOO_LARGE, BadPicture
from raysid.data.source import NOT_UTF8, Texts
from raysid.data.splits import splits_note
from raysid.data.tar_headers import FORM, tar_members
from raysid.errors import UserError, printable
from raysid.storage import open_file

TXT = "txt"
MOST_FIELDS = 100  # whose names are kept for a message
MAX_LABEL = 1 << 20  # bytes of a cls or json member


class _Sample(NamedTuple):
    """A picture in a tar: its member's name, the position of its bytes."""

    name: str
    offset: int
    size: int


class _Contents(NamedTuple):
    """The contents of a tar.

    Attributes:
        samples: those with a picture.
        captions: the place of the caption of each, of size -1 if it has none.
        labels: the label of each, and the field of its .json that holds it; the field "" is its .cls.
        fields: names of fields that .json members have.
        left_out: the number of members that are left out, by the reason.
    """

    samples: list[_Sample]
    captions: list[_Sample]
    labels: list[Field | None]
    fields: dict[str, None]
    left_out: Counter[str]


class WebDatasetSource(ListedSource):
    """The pictures of tar files, in the order of the files' names and of their members.

    Opening it reads the headers and labels of all files, several at a time; a picture is read on its own, at its
    offset. Such files are shuffled when they are made; the stream shuffles within its window.

    The label is the sample's `.cls` member, or the field of its `.json` that `data.label_column` names. If a sample has
    several pictures, `data.image_column` names the kind to read, such as `png` or `input.png`.

    Args:
        captioned: read captions, the members of the kind `data.caption_column` (`txt`), in place of labels.

    Raises:
        UserError: a file is not a tar, none holds a picture, a sample has several, or labels are not classes.
    """

    def __init__(self, found: Found, data: DataSettings, captioned: bool = False) -> None:
        self.captioned = captioned
        self.name = found.name
        paths = [file.path for file in found.files]
        with reading_source(found.name):
            listed = list(in_threads(partial(_read_tar, data=data), paths))
        samples = [sample for tar in listed for sample in tar.samples]
        left_out = sum((tar.left_out for tar in listed), Counter[str]())
        if not samples:
            raise UserError(
                f"data.source {found.name} holds no samples with a picture ({', '.join(SUFFIXES)})"
                + "".join(f"; {note}" for note in left_out_note(left_out))
            )
        self.paths = Texts(paths)
        self.file = np.repeat(np.arange(len(paths)), [len(tar.samples) for tar in listed])
        self.names = Texts(sample.name for sample in samples)
        self.offsets = np.array([sample.offset for sample in samples], np.int64)
        self.sizes = np.array([sample.size for sample in samples], np.int64)
        if captioned:
            self.caption_column = _caption_kind(data)
            captions = [caption for tar in listed for caption in tar.captions]
            self.caption_offsets = np.array([caption.offset for caption in captions], np.int64)
            self.caption_sizes = np.array([caption.size for caption in captions], np.int64)
            if not (self.caption_sizes >= 0).any():
                raise UserError(
                    f"data.source {found.name} has no captions .{self.caption_column} beside its pictures: give "
                    "data.caption_column, the ending of their names"
                )
            self.labels = no_labels(len(samples))
        else:
            values, self.notes = _labels(listed, found.name, data.label_column)
            self.labels = class_labels(values, found.name)
        self.notes += splits_note(found.files) + left_out_note(left_out + found.not_read())
        self.new_since_first = new_pictures(sample.name for sample in samples)
        self.order = np.arange(len(samples))

    def name_of(self, entry: int) -> str:
        return printable(f"{self.names[entry]} in {self.paths[int(self.file[entry])]}")

    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        with reading_source(self.name):
            for number, group in groupby(entries.tolist(), lambda entry: int(self.file[entry])):
                with open_file(self.paths[number]) as file:
                    for entry in group:
                        yield self._read(file, entry)

    def captions(self, entries: NDArray[np.int64]) -> Iterator[object]:
        if not self.captioned:
            yield from super().captions(entries)
            return
        with reading_source(self.name):
            for number, group in groupby(entries.tolist(), lambda entry: int(self.file[entry])):
                with open_file(self.paths[number]) as file:
                    for entry in group:
                        yield self._caption(file, entry)

    def _caption(self, file: Any, entry: int) -> object:
        """Read a caption: a text, `NOT_UTF8`, or None if there is none."""
        size = int(self.caption_sizes[entry])
        if not 0 <= size <= MAX_LABEL:
            return None
        file.seek(int(self.caption_offsets[entry]))
        try:
            return file.read(size).decode("utf-8-sig")
        except UnicodeDecodeError:
            return NOT_UTF8

    def _read(self, file: Any, entry: int) -> bytes | BadPicture:
        size = int(self.sizes[entry])
        if size > MAX_PICTURE:
            return BadPicture(TOO_LARGE)
        file.seek(int(self.offsets[entry]))
        data = file.read(size)
        return data if len(data) == size else BadPicture("is cut off: the tar ends before it")


def _read_tar(path: str, data: DataSettings) -> _Contents:
    """Read the samples of a tar that have a picture.

    Raises:
        UserError: it is not a tar, or a sample has several pictures or labels.
    """
    gathered = _Gathered(path, data.label_column, _caption_kind(data))
    with damaged_file(path, FORM):  # a label may be cut off
        for member, archive in tar_members(path):
            gathered.add(member, archive)
    return gathered.contents(data.image_column)


def _caption_kind(data: DataSettings) -> str:
    return (data.caption_column or TXT).lower().removeprefix(".")


class _Gathered:
    """The members of a tar by the sample's key: the name up to its first dot, as in WebDataset.

    Attributes:
        pictures: the pictures of each sample, by their kind: the rest of the name.
        labels: the label of each sample.
        captions: the member with the caption of each sample.
        others: the kinds of each sample's other members.
    """

    def __init__(self, path: str, label_column: str, caption_kind: str) -> None:
        self.path, self.label_column, self.caption_kind = path, label_column, f".{caption_kind}"
        self.captions: dict[str, _Sample] = {}
        self.pictures: dict[str, dict[str, _Sample]] = {}
        self.labels: dict[str, Field] = {}
        self.others: dict[str, str] = {}
        self.fields: dict[str, None] = {}
        self.left_out: Counter[str] = Counter()

    def add(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        """Add a member. Raises UserError if it holds several labels."""
        folder, _, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        key, kind = f"{folder}/{stem}", f".{kind.lower()}"
        is_picture = kind.endswith(SUFFIXES)
        if is_hidden((*folder.split("/"), base)):
            self.left_out[HIDDEN] += is_picture
        # The bytes of a sparse member, or of one with a size in an extended header, do not lie at its offset.
        elif not member.isfile() or member.issparse() or member.size < 0:
            self.left_out["links or sparse files"] += is_picture
        elif is_picture:
            kinds = self.pictures.setdefault(key, {})
            self.left_out["pictures with the name of an earlier one"] += kind in kinds
            kinds.setdefault(kind, _Sample(member.name, member.offset_data, member.size))
        else:
            self.others.setdefault(key, kind)
            if kind == self.caption_kind:
                self.captions.setdefault(key, _Sample(member.name, member.offset_data, member.size))
            label = self._label(member, archive, kind) if member.size <= MAX_LABEL else None
            if label is not None and label.value is not None:
                self.labels[key] = label

    def _label(self, member: tarfile.TarInfo, archive: tarfile.TarFile, kind: str) -> Field | None:
        if kind not in (".cls", ".json"):
            return None
        content: bytes = archive.extractfile(member).read()  # type: ignore[union-attr]
        if kind == ".cls":
            return Field("", number_or_name(content.decode("utf-8", "replace")))
        found = read_fields(content)
        if len(self.fields) < MOST_FIELDS:
            self.fields |= dict.fromkeys(field.name for field in islice(nested(found), MOST_FIELDS))
        try:
            return label_field(found, self.label_column)
        except UserError as error:
            raise UserError(f"{printable(member.name)} in {self.path} has {error}") from None

    def contents(self, kind: str | None) -> _Contents:
        """Return the samples.

        Args:
            kind: the kind of picture to read; None if no sample has several.

        Raises:
            UserError: a sample has several pictures, and `kind` is None.
        """
        samples: dict[str, _Sample] = {}
        for key, kinds in self.pictures.items():
            sample = self._only(kinds) if kind is None else kinds.get(f".{kind.lower().removeprefix('.')}")
            if sample is not None:
                samples[key] = sample
        self.left_out["pictures of another kind"] += sum(map(len, self.pictures.values())) - len(samples)
        for other in (kind for key, kind in self.others.items() if key not in self.pictures):
            self.left_out[f"samples without a picture, but with {printable(other)}"] += 1
        captions = [self.captions.get(key, _Sample("", 0, -1)) for key in samples]
        return _Contents(
            [*samples.values()],
            captions,
            [self.labels.get(key) for key in samples],
            self.fields,
            +self.left_out,
        )

    def _only(self, kinds: dict[str, _Sample]) -> _Sample:
        """The picture of a sample: the only one, or the only one of a common format."""
        common = [sample for kind, sample in kinds.items() if kind.endswith(COMMON)]
        first = (common or [*kinds.values()])[0]
        if len(common or kinds) > 1:
            named = names_listed([kind.removeprefix(".") for kind in kinds])
            raise UserError(
                f"{printable(first.name)} in {self.path} is one of {len(kinds)} pictures of a sample ({named}): give "
                "data.image_column, the kind to read; or, if they are samples of their own, names with a single dot: "
                "a sample's name ends at the first one"
            )
        return first


def _labels(tars: list[_Contents], name: str, column: str) -> tuple[list[Any], tuple[str, ...]]:
    """Return the samples' labels, and notes on them.

    Raises:
        UserError: the field was given, but no sample has it; or several nested fields have its name.
    """
    labels = [label for tar in tars for label in tar.labels]
    used = sorted({label.name for label in labels if label is not None})
    fields = list(dict.fromkeys(field for tar in tars for field in tar.fields))
    listed = f"no .json with the field {column}; fields: {names_listed(fields)}"
    if column != LABEL_COLUMN and not any(used):
        raise UserError(f"data.source {name} has {listed}: correct data.label_column")
    if not used:
        if not fields:
            return [None] * len(labels), ()
        return [None] * len(labels), (f"no labels: there is {listed} (data.label_column names it)",)
    elsewhere = [field for field in used if field not in ("", column)]
    notes: tuple[str, ...] = ()
    if len(elsewhere) == len(used):
        if len(used) > 1:
            raise UserError(
                f"data.source {name} has several fields {column} ({names_listed(used)}): give data.label_column"
            )
        notes = (f"labels are the field {used[0]}",)
        elsewhere = []
    values = [None if label is None or label.name in elsewhere else label.value for label in labels]
    return numbers_of_texts(values), notes
