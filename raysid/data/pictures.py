"""Encoded pictures as images: decoded, cut and resized to one size and kind; those that cannot be, with the reason."""

from __future__ import annotations

import io
import warnings
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raysid.config import DataSettings
from raysid.data.labels import Labels
from raysid.data.source import Block, ImageSource, Piece, even_shards
from raysid.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # what is decoded: not whatever a file turns out to be
MAX_PICTURE = 1 << 26  # bytes of a file, and its pixels: far above what is trained on
SAMPLED = 16  # pictures looked at for the size and the kind of all
IMAGES_PER_SHARD = 1024  # where a list can be cut anywhere
BLOCK_BYTES = 1 << 25
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")

# Pillow's own limit is higher, and only warns: as errors its warnings would be for all threads at once, or for none.
warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")

# What Pillow raises for files that are damaged, each in its own way.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    SyntaxError,
    IndexError,
    KeyError,
    TypeError,
    zlib.error,
)


class BadPicture(Exception):
    """A picture that cannot be used; says why."""


@dataclass(slots=True)
class Content:
    """A picture as a source holds it.

    Attributes:
        place: its place in what is listed, by which the source names it.
        index: its place in the source's list.
        label: its class; -1 where it has none and others have one.
    """

    place: int
    index: int
    label: int
    data: bytes | BadPicture


@dataclass(frozen=True)
class Fit:
    """How pictures become images of one size and kind; as `DataSettings` has them."""

    resolution: int | None = None
    crop: str = "center"
    filter: str = "lanczos"
    channels: int | None = None

    @classmethod
    def of(cls, data: DataSettings) -> Fit:
        return cls(data.resolution, data.crop, data.filter, data.channels)


def decoded(content: bytes, fit: Fit) -> NDArray[np.uint8]:
    """A picture as (C, H, W): grey as one channel and everything else as RGB, or as `fit` has it.

    What is transparent is laid on white. One that has the size already is not touched.

    Raises:
        BadPicture: it is none, or damaged, or too large.
    """
    if not content:
        raise BadPicture("is empty (0 bytes)")
    if len(content) > MAX_PICTURE:
        raise BadPicture(f"has more than {MAX_PICTURE:,} bytes")
    try:
        with _opened(content) as picture:
            image = np.asarray(_resized(_in_mode(picture, fit.channels), fit))
    except Image.UnidentifiedImageError:
        raise BadPicture("is no PNG, JPEG or WebP") from None
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise BadPicture(f"cannot be read as an image: {' '.join(str(error).split())}") from None
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def as_stored(content: bytes) -> tuple[tuple[int, int], str]:
    """Width and height of a picture, and Pillow's name of its mode, without decoding it. Raises BadPicture."""
    try:
        with _opened(content) as picture:
            return picture.size, picture.mode
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise BadPicture(f"cannot be read as an image: {' '.join(str(error).split())}") from None


def _opened(content: bytes) -> Any:
    """A picture of Pillow's that is not decoded yet. Raises BadPicture where it is too large to be."""
    picture = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = picture.size
    if width * height > MAX_PICTURE:
        raise BadPicture(f"is {width}x{height}: more than {MAX_PICTURE:,} pixels")
    return picture


def _in_mode(picture: Any, channels: int | None) -> Any:
    """A picture of Pillow's as L or RGB."""
    mode = picture.mode
    if mode in ("I", "F"):
        raise BadPicture(f"has mode {mode}: pictures of 8 or 16 bits a channel are read")
    wanted = "L" if channels == 1 or (channels is None and mode in GREY) else "RGB"
    if mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return picture if picture.mode == wanted else picture.convert(wanted)


def _resized(picture: Any, fit: Fit) -> Any:
    """Cut and resized as EDM's dataset tool does it."""
    if fit.resolution is None or picture.size == (fit.resolution, fit.resolution):
        return picture
    width, height = picture.size
    if fit.crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    size = (fit.resolution, fit.resolution)
    return picture.resize(size, Image.Resampling[fit.filter.upper()])


def shown(name: str) -> str:
    """A name as it can be printed and stored: bytes that are no UTF-8 as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class PictureSource(ImageSource):
    """A source of encoded pictures: says where they lie, and the rest is done here.

    Attributes:
        fit: how they become images.
        labels: of its list.
    """

    pixel_max = 255
    fit: Fit
    labels: Labels

    @abstractmethod
    def contents(self, piece: Piece) -> Iterator[Content]:
        """The pictures of a part of a shard, in order."""

    @abstractmethod
    def name_of(self, place: int) -> str:
        """What to call a picture to the user."""

    def read(self, piece: Piece) -> Iterator[Block]:
        """Images of a part of a shard, with what is wrong with those that cannot be used."""
        most = max(1, BLOCK_BYTES // int(np.prod(self.image_shape)))
        contents = self.contents(piece)
        missing = piece.size
        while missing > 0:
            size = min(most, missing)
            images = np.empty((size, *self.image_shape), np.uint8)
            labels, indices = np.empty(size, np.int64), np.empty(size, np.int64)
            faults = np.full(size, "", object)
            row = -1
            # Decoded as they come: a photograph may have a thousand times the bytes of the image that it becomes.
            for row, content in enumerate(islice(contents, size)):
                try:
                    images[row] = self.image_of(content)
                except BadPicture as error:
                    images[row] = 0
                    faults[row] = f"{self.name_of(content.place)} {error}"
                labels[row], indices[row] = max(content.label, 0), content.index
            there = slice(row + 1)
            yield Block(image=images[there], label=labels[there], index=indices[there], fault=faults[there])
            missing = missing - size if row + 1 == size else 0

    def settle(self, data: DataSettings) -> None:
        """Find the size and the kind of all images from the first pictures, before any is read as an image.

        Raises:
            UserError: none can be read, or they have several sizes and `data.resolution` is not given.
        """
        self.fit = Fit.of(data)
        shapes: dict[tuple[int, ...], str] = {}
        reason = ""
        seen = 0
        for content in self.contents(Piece(0, 0, int(self.shard_sizes[0]))):
            try:
                shapes.setdefault(_image(content, self.fit).shape, self.name_of(content.place))
            except BadPicture as error:
                reason = reason or f"{self.name_of(content.place)} {error}"
            seen += 1
            if seen >= SAMPLED and shapes:
                break
        if not shapes:
            raise UserError(f"of the first {seen:,} pictures of {self.name} none can be used: {reason}")
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
        """A picture as an image of this source. Raises BadPicture where it is none that can be trained on."""
        if content.label < 0:
            raise BadPicture("has no label")
        image = _image(content, self.fit)
        if image.shape != self.image_shape:
            raise BadPicture(_odd(image.shape, self.image_shape))
        return image


class ListedSource(PictureSource):
    """Pictures that can be read one by one, from a list that can be cut into shards anywhere.

    Attributes:
        order: places in the list, in the order in which they are read.
        per_shard: images of a shard.
    """

    per_shard = IMAGES_PER_SHARD
    cut_freely = True
    order: NDArray[np.int64]

    @abstractmethod
    def fetched(self, places: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        """The encoded pictures of some places in the list, in their order."""

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return len(self.labels.names)

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return even_shards(len(self.order), self.per_shard)

    @property
    def label_counts(self) -> NDArray[np.int64]:
        return self.labels.counts

    def contents(self, piece: Piece) -> Iterator[Content]:
        start = piece.shard * self.per_shard
        places = self.order[start + piece.first : start + piece.last]
        labels = self.labels.numbers[places].tolist()
        for place, label, data in zip(places.tolist(), labels, self.fetched(places), strict=True):
            yield Content(place, place, label, data)


def _image(content: Content, fit: Fit) -> NDArray[np.uint8]:
    if isinstance(content.data, BadPicture):
        raise content.data
    return decoded(content.data, fit)


def _odd(shape: tuple[int, ...], wanted: tuple[int, int, int]) -> str:
    if shape[1:] != wanted[1:]:
        return f"is {_size(shape[1:])}, the others {_size(wanted[1:])} (data.resolution makes them one size)"
    return "is in colour, the others in grey (data.channels makes them of one kind)"


def _size(shape: tuple[int, ...]) -> str:
    height, width = shape
    return f"{width}x{height}"
