"""Decoding of pictures: files of PNG, JPEG and other formats as uint8 images of one size and number of channels."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raysid.config import DataSettings
from raysid.storage.failures import explain

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

SOI, EOI, SOS, TEM = 0xD8, 0xD9, 0xDA, 0x01  # markers of a JPEG (ITU-T T.81, table B.1)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not what scans contain: stuffed bytes and restarts

# Pillow's own limit is higher and only warns; turning its warning into an error would affect all threads at once.
warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")

# Decoders of some formats hold several copies of the pixels.
MAX_PIXELS = dict.fromkeys(FORMATS, MAX_PICTURE) | {"WEBP": 1 << 25, "AVIF": 1 << 25, "JPEG2000": 1 << 24}
# A progressive JPEG may have any number of scans (ten are usual), and each passes over all pixels again.
MAX_SCANNED = 1 << 30  # limit of pixels times scans
ROWS_AT_A_TIME = 256  # of a transparent picture, so that its copies do not exceed the memory


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
    with _damage():
        image = np.asarray(_resized(_in_mode(_opened(content), fit.channels), fit))
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def as_stored(content: bytes) -> tuple[tuple[int, int], str]:
    """Return the width, height and Pillow's mode of a picture, without decoding it. Raises BadPicture."""
    with _damage():
        picture = _opened(content)
        return picture.size, picture.mode


@contextmanager
def _damage() -> Iterator[None]:
    """Raise BadPicture for all that Pillow raises inside the block.

    Which class of exception a damaged file raises depends on the format and on the place of the damage: Pillow's
    assertions fail, too, and a claimed size may exceed the memory.
    """
    try:
        yield
    except BadPicture:
        raise
    except Image.UnidentifiedImageError:
        raise BadPicture("is not a PNG, JPEG or WebP") from None
    except Exception as error:
        raise BadPicture(f"cannot be read as an image: {explain(error)}") from None


def _opened(content: bytes) -> Any:
    """Open a picture with Pillow, which has not decoded it yet. Raises BadPicture if it is too large."""
    picture: Any = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = picture.size
    if width * height > (most := MAX_PIXELS.get(picture.format, MAX_PICTURE)):
        raise BadPicture(f"is {width}x{height}: more than {most:,} pixels")
    if picture.format == "JPEG" and (scans := _scans(content)) * width * height > MAX_SCANNED:
        raise BadPicture(f"is a JPEG of {scans:,} scans, each of {width}x{height}: too much to decode")
    return picture


def _scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG, without decoding it."""
    scans, place = 0, 2
    # As libjpeg does, pass over what is no marker: the data of a scan, and damage.
    while (marker := _MARKER.search(jpeg, place)) is not None and (kind := jpeg[marker.end() - 1]) != EOI:
        scans += kind == SOS
        place = marker.end()
        if kind not in (SOI, TEM):  # all others begin with their length
            place += int.from_bytes(jpeg[place : place + 2])
    return scans


def _in_mode(picture: Any, channels: int | None) -> Any:
    """Convert a picture to L or RGB."""
    mode = picture.mode
    if mode in ("I", "F"):
        raise BadPicture(f"has mode {mode}: only 8 or 16 bits a channel are supported")
    wanted = "L" if channels == 1 or (channels is None and mode in GREY) else "RGB"
    if mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = _on_white(picture)
    return picture if picture.mode == wanted else picture.convert(wanted)


def _on_white(picture: Any) -> Any:
    """Blend a picture with white, to RGB."""
    blended = Image.new("RGB", picture.size)
    width, height = picture.size
    for top in range(0, height, ROWS_AT_A_TIME):
        rows = picture.crop((0, top, width, min(height, top + ROWS_AT_A_TIME))).convert("RGBA")
        blended.paste(
            Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows).convert("RGB"), (0, top)
        )
    return blended


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
