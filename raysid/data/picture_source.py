"""Sources of encoded pictures: each format locates the pictures; decoding is shared."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.labels import Labels
from raysid.data.picture_captions import joined_captions
from raysid.data.pictures import COMMON, BadPicture, Fit, decoded
from raysid.data.source import Block, ImageSource, Piece, even_shards
from raysid.errors import RaysidError, UserError, printable
from raysid.storage.failures import explain

SAMPLED = 16  # pictures that set the size and the channels of all
IMAGES_PER_SHARD = 1024  # if a list can be split anywhere
BLOCK_BYTES = 1 << 25


@dataclass(slots=True)
class Content:
    """A picture of a source, encoded.

    Attributes:
        entry: its number in what the source lists, which `PictureSource.name_of` takes.
        index: its index in the source's list of images; after a conversion, in the list that was converted.
        label: its class; -1 if it has none and others have one.
        data: its bytes, or the reason why they cannot be read.
        caption: its caption or captions, where the source has them; whatever the file holds in their place.
    """

    entry: int
    index: int
    label: int
    data: bytes | BadPicture
    caption: object = None

    def picture(self) -> bytes:
        """Return its bytes. Raises BadPicture if they cannot be read."""
        if isinstance(self.data, BadPicture):
            # Another one: with its traceback it would hold the frames that hold it, and the files that they read.
            raise BadPicture(*self.data.args)
        return self.data


class PictureSource(ImageSource):
    """A source of encoded pictures. A format implements `contents` and `name_of`.

    Attributes:
        fit: how pictures become images.
        labels: the labels of its list.
        caption_column: the column of the captions, or the kind of file, where there are captions.
    """

    pixel_max = 255
    caption_column = ""
    fit: Fit
    labels: Labels

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return len(self.labels.names)

    @property
    def label_counts(self) -> NDArray[np.int64]:
        numbers, classes = self.labels.numbers, self.num_classes
        return np.bincount(numbers[numbers >= 0], minlength=classes)[:classes]

    @abstractmethod
    def contents(self, piece: Piece) -> Iterator[Content]:
        """Read the pictures of a part of a shard, in order."""

    @abstractmethod
    def name_of(self, entry: int) -> str:
        """Return the name of a picture in messages."""

    def read(self, piece: Piece) -> Iterator[Block]:
        """Read and decode a part of a shard; pictures that cannot be used have a fault."""
        most = max(1, BLOCK_BYTES // int(np.prod(self.image_shape)))
        contents = self.contents(piece)
        missing = piece.size
        while missing > 0:
            size = min(most, missing)
            images = np.empty((size, *self.image_shape), np.uint8)
            labels, indices = np.empty(size, np.int64), np.empty(size, np.int64)
            faults = np.full(size, "", object)
            captions = np.full(size, "", object)
            row = -1
            # Decode one at a time: a photograph may have a thousand times the bytes of its image.
            for row, content in enumerate(islice(contents, size)):
                try:
                    images[row] = self.image_of(content)
                    if self.captioned:
                        captions[row] = joined_captions(content.caption)
                except BadPicture as error:
                    images[row] = 0
                    faults[row] = f"{self.name_of(content.entry)} {error}"
                labels[row], indices[row] = max(content.label, 0), content.index
            there = slice(row + 1)
            block = Block(image=images[there], label=labels[there], index=indices[there], fault=faults[there])
            if self.captioned:
                block["caption"] = captions[there]
            yield block
            missing = missing - size if row + 1 == size else 0

    def settle(self, data: DataSettings) -> None:
        """Set the size and the channels of all images from the first pictures; call it before reading images.

        Raises:
            UserError: no picture can be read, or they have several sizes and `data.resolution` is not given.
        """
        self.fit = Fit.from_settings(data)
        shapes: dict[tuple[int, ...], str] = {}
        reason = ""
        seen = 0
        for content in self.contents(Piece(0, 0, int(self.shard_sizes[0]))):
            try:
                shapes.setdefault(decoded(content.picture(), self.fit).shape, self.name_of(content.entry))
            except BadPicture as error:
                reason = reason or f"{self.name_of(content.entry)} {error}"
            seen += 1
            if seen >= SAMPLED and shapes:
                break
        if not shapes:
            raise UserError(f"none of the first {seen:,} pictures of {self.name} can be used: {reason}")
        sizes = {shape[1:]: name for shape, name in shapes.items()}
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise UserError(
                f"the pictures of {self.name} have several sizes ({first}: {_size(one)}, {second}: {_size(other)}): "
                "give data.resolution, to which all are cropped and resized"
            )
        channels = max(shape[0] for shape in shapes)
        if channels == 3:
            self.fit = replace(self.fit, channels=3)
        self.image_shape = (channels, *next(iter(sizes)))  # type: ignore[assignment]

    def image_of(self, content: Content) -> NDArray[np.uint8]:
        """Decode a picture to an image of this source. Raises BadPicture if it cannot be trained on."""
        if content.label < 0:
            raise BadPicture("has no label")
        image = decoded(content.picture(), self.fit)
        if image.shape != self.image_shape:
            raise BadPicture(_odd(image.shape, self.image_shape))
        return image


class ListedSource(PictureSource):
    """Pictures that can be read one by one, from a list that can be split into shards anywhere.

    Attributes:
        order: entries of the list, in the order in which they are read.
        per_shard: images per shard.
    """

    per_shard = IMAGES_PER_SHARD
    cut_freely = True
    order: NDArray[np.int64]

    @abstractmethod
    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        """Read the encoded pictures of some entries of the list, in the given order."""

    def captions(self, entries: NDArray[np.int64]) -> Iterable[object]:
        """Return the captions of some entries, as in `Content`."""
        return repeat(None, len(entries))

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return even_shards(len(self.order), self.per_shard)

    def contents(self, piece: Piece) -> Iterator[Content]:
        start = piece.shard * self.per_shard
        entries = self.order[start + piece.first : start + piece.last]
        labels = self.labels.numbers[entries].tolist()
        found = zip(entries.tolist(), labels, self._all_fetched(entries), self.captions(entries), strict=True)
        for entry, label, data, caption in found:
            yield Content(entry, entry, label, data, caption)

    def _all_fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        """Like `fetched`; a picture whose reading raises is a bad one, and those after it are read."""
        done = 0
        while done < len(entries):
            try:
                for data in self.fetched(entries[done:]):
                    yield data
                    done += 1
                return
            except RaysidError:  # the whole source cannot be read
                raise
            except Exception as error:
                yield BadPicture(f"cannot be read: {explain(error)}")
                done += 1


def left_out_note(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the note on what a source leaves out, given the number of files by the reason; none if it is nothing."""
    listed = ", ".join(f"{reason} ({count:,})" for reason, count in sorted(counts.items()) if count)
    return (f"left out: {listed}",) if listed else ()


def new_pictures(names: Iterable[str], linked: int = 0) -> str:
    """Describe the pictures that release 0.1.0 left out, as in `ImageSource.new_since_first`.

    Args:
        names: of all pictures; if none has a suffix that it read, it refused the source.
        linked: linked folders that it did not follow.
    """
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in names)
    new = sorted(suffix for suffix in suffixes if suffix not in COMMON)
    if len(new) == len(suffixes):
        return ""
    parts = [f"pictures {', '.join(map(printable, new))}"] * bool(new) + ["linked folders"] * bool(linked)
    return " and ".join(parts)


def _odd(shape: tuple[int, ...], wanted: tuple[int, int, int]) -> str:
    if shape[1:] != wanted[1:]:
        return f"is {_size(shape[1:])}, the others {_size(wanted[1:])} (data.resolution makes them one size)"
    return "is in colour, the others in grey (data.channels makes them of one kind)"


def _size(shape: tuple[int, ...]) -> str:
    height, width = shape
    return f"{width}x{height}"
