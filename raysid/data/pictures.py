"""Decoding of pictures: files of PNG, JPEG and other formats as uint8 images of one size and number of channels."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raysid.config import DataSettings

COMMON = (".png", ".jpg", ".jpeg", ".webp")  # suffixes that are a picture's whatever else a source holds
SUFFIXES = (
    *COMMON,
    *(".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"),
    *(".avif", ".jp2", ".j2k", ".jpx"),
)
# The only formats that are decoded: none that runs other programs, or that any file could be.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PICTURE = 1 << 26  # limit of a file's bytes, and of its pixels: far larger than any training image
TOO_LARGE = f"has more than {MAX_PICTURE:,} bytes"
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N")

# Pillow's own limit is higher and only warns; turning its warning into an error would affect all threads at once.
warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")

# Pillow's errors for damaged files, depending on the format.
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
    Image.DecompressionBombError,
)


class BadPicture(Exception):
    """A picture that cannot be used; the text is the reason, without the picture's name."""


@dataclass(frozen=True)
class Fit:
    """The crop, size and channels of all images: fields of `DataSettings`."""

    resolution: int | None = None
    crop: str = "center"
    filter: str = "lanczos"
    channels: int | None = None

    @classmethod
    def from_settings(cls, data: DataSettings) -> Fit:
        return cls(data.resolution, data.crop, data.filter, data.channels)


def decoded(content: bytes, fit: Fit) -> NDArray[np.uint8]:
    """Decode a picture to uint8 (C, H, W): one channel for grey ones, RGB for all others, or according to `fit`.

    Transparent pixels are blended with white. A picture that has the right size is not resampled.

    Raises:
        BadPicture: it is damaged, too large, or not a picture.
    """
    if not content:
        raise BadPicture("is empty (0 bytes)")
    if len(content) > MAX_PICTURE:
        raise BadPicture(TOO_LARGE)
    with _opened(content) as picture:
        image = np.asarray(_resized(_in_mode(picture, fit.channels), fit))
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def as_stored(content: bytes) -> tuple[tuple[int, int], str]:
    """Return the width, height and Pillow's mode of a picture, without decoding it. Raises BadPicture."""
    with _opened(content) as picture:
        return picture.size, picture.mode


@contextmanager
def _opened(content: bytes) -> Iterator[Any]:
    """Open a picture with Pillow. Raises BadPicture if it is too large, or found to be damaged inside the block."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PICTURE:
                raise BadPicture(f"is {width}x{height}: more than {MAX_PICTURE:,} pixels")
            yield picture
    except Image.UnidentifiedImageError:
        raise BadPicture("is not a PNG, JPEG or WebP") from None
    except _DAMAGED as error:
        raise BadPicture(f"cannot be read as an image: {' '.join(str(error).split())}") from None


def _in_mode(picture: Any, channels: int | None) -> Any:
    """Convert a picture to L or RGB."""
    mode = picture.mode
    if mode in ("I", "F"):
        raise BadPicture(f"has mode {mode}: only 8 or 16 bits a channel are supported")
    wanted = "L" if channels == 1 or (channels is None and mode in GREY) else "RGB"
    if mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return picture if picture.mode == wanted else picture.convert(wanted)


def _resized(picture: Any, fit: Fit) -> Any:
    """Crop and resize a picture as EDM's dataset tool does."""
    if fit.resolution is None or picture.size == (fit.resolution, fit.resolution):
        return picture
    width, height = picture.size
    if fit.crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    size = (fit.resolution, fit.resolution)
    return picture.resize(size, Image.Resampling[fit.filter.upper()])


def printable(name: str) -> str:
    """Return a name that can be printed and stored: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
