"""Lay many images out as one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from upath import UPath

from raysid.storage import storage_errors

if TYPE_CHECKING:
    from torch import Tensor

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SEPARATOR = 1
"""Width of the line around images, in pixels of the picture."""
BACKGROUND = 0.0
"""Shade of that line and of empty cells, in the images' range [-1, 1]: the grey between black and white."""
GAP = 16
"""Pixels between two grids."""
CAPTION_PIXELS = 96
"""Least length of the shorter side of an image with a caption."""
CAPTION_LINES, CAPTION_HEIGHT = 3, 13
"""Lines below an image for its caption, and the height of one in pixels."""


def is_picture(shape: tuple[int, ...]) -> bool:
    """True if samples of this shape can be laid out as images: (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def image_grid(
    images: Tensor | np.ndarray, columns: int, min_pixels: int = 32, captions: Sequence[str] | None = None
) -> Image.Image:
    """Lay images out in rows.

    Args:
        images: (N, C, H, W), N at least 1, C 1 or 3, in [-1, 1]; values beyond are clipped, NaN becomes grey.
        columns: images in a row, at least 1; the last row may be shorter.
        min_pixels: least length of an image's shorter side; smaller images are enlarged by a whole factor.
        captions: a text below each image, in three lines at most; images are then enlarged to `CAPTION_PIXELS`.

    Returns:
        A picture of mode L (one channel) or RGB (three).

    Raises:
        ValueError: images of another shape, or fewer than one column.
    """
    pixels = images if isinstance(images, np.ndarray) else images.detach().cpu().float().numpy()
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"images must be (N, 1 or 3, H, W), none of them 0, got shape {pixels.shape}")
    if columns < 1:
        raise ValueError(f"a grid needs at least 1 column, got {columns}")
    shades = _shades(pixels.transpose(0, 2, 3, 1))
    if captions is not None:
        min_pixels = max(min_pixels, CAPTION_PIXELS)
    factor = max(1, -(-min_pixels // min(shades.shape[1:3])))
    shades = shades.repeat(factor, axis=1).repeat(factor, axis=2)

    count, height, width, channels = shades.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    below = 0 if captions is None else CAPTION_LINES * CAPTION_HEIGHT
    step_down, step_right = height + below + SEPARATOR, width + SEPARATOR
    grid = np.full(
        (rows * step_down + SEPARATOR, columns * step_right + SEPARATOR, channels),
        _shades(np.array(BACKGROUND)),
    )
    corners = [
        (SEPARATOR + index // columns * step_down, SEPARATOR + index % columns * step_right)
        for index in range(count)
    ]
    for image, (top, left) in zip(shades, corners, strict=True):
        grid[top : top + height, left : left + width] = image
    picture = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    if captions is not None:
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(CAPTION_HEIGHT - 3)
        for caption, (top, left) in zip(captions, corners, strict=False):
            _write_below(draw, font, caption, left, top + height, width)
    return picture


def _write_below(draw: ImageDraw.ImageDraw, font: Font, text: str, left: int, top: int, width: int) -> None:
    """Write a text in lines of a width, with an ellipsis where it does not fit."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    lines = [""]
    for word in shown.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], f"{lines[CAPTION_LINES - 1]} …"]
    below = (left, top, left + width - 1, top + CAPTION_LINES * CAPTION_HEIGHT - 1)
    draw.rectangle(below, fill=_BLACK[draw.mode])
    for number, line in enumerate(lines):
        while len(line) > 1 and draw.textlength(line, font) > width:
            line = f"{line[:-2]}…"
        draw.text((left + 1, top + number * CAPTION_HEIGHT), line, fill=_INK[draw.mode], font=font)


_INK: dict[str, Any] = {"L": 255, "RGB": (255, 255, 255)}
_BLACK: dict[str, Any] = {"L": 0, "RGB": (0, 0, 0)}


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures out from left to right on white."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    whole = Image.new(mode, (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    return whole


def save_grid(
    images: Tensor | np.ndarray,
    path: str | os.PathLike[str] | UPath,
    columns: int,
    min_pixels: int = 32,
    captions: Sequence[str] | None = None,
) -> None:
    """Write `image_grid` of the images as a PNG, for any ending of the path.

    Raises:
        StorageError: the path cannot be written.
        ValueError: as `image_grid`.
    """
    grid = image_grid(images, columns, min_pixels, captions)
    with storage_errors(path, "written"), UPath(path).open("wb") as file:
        grid.save(file, format="PNG")


def _shades(pixels: np.ndarray) -> np.ndarray:
    """Map [-1, 1] to 0..255."""
    finite = np.nan_to_num(pixels.astype(np.float32), nan=BACKGROUND, posinf=1, neginf=-1)
    return np.rint((finite.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
