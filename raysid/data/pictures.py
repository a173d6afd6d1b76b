"""Encoded pictures as images: decoded, cut and resized to one size and kind; those that cannot be, with the reason."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raysid.config import DataSettings

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # what is decoded: not whatever a file turns out to be
MAX_PICTURE = 1 << 26  # bytes of a file, and its pixels: far above what is trained on
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
