"""A grid shows every image whole, in order, at a visible size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from raysid.run.image_grid import CAPTION_HEIGHT, CAPTION_LINES, CAPTION_PIXELS, image_grid, save_grid

GREY = 128


def test_small_images_are_enlarged_by_a_whole_factor_and_kept_apart() -> None:
    images = torch.linspace(-1, 1, 3 * 4).reshape(3, 1, 2, 2)
    grid = image_grid(images, columns=2, min_pixels=5)
    assert grid.mode == "L"
    assert grid.size == (2 * 7 + 1, 2 * 7 + 1)  # factor 3: 6 pixels each, one line of border
    pixels = np.asarray(grid)
    shades = np.rint((images.numpy() + 1) * 127.5).astype(np.uint8)
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        cell = pixels[1 + 7 * row : 7 + 7 * row, 1 + 7 * column : 7 + 7 * column]
        assert (cell == shades[index, 0].repeat(3, 0).repeat(3, 1)).all()
    assert (pixels[:, [0, 7, 14]] == GREY).all() and (pixels[[0, 7, 14]] == GREY).all()
    assert (pixels[8:14, 8:14] == GREY).all()  # the empty cell


def test_colour_keeps_its_channels_and_large_images_their_size() -> None:
    images = np.full((1, 3, 40, 48), -1.0)
    images[:, 0] = 1
    grid = image_grid(images, columns=5)
    assert (grid.mode, grid.size) == ("RGB", (50, 42))
    assert grid.getpixel((1, 1)) == (255, 0, 0)


def test_values_outside_the_range_are_clipped_and_nan_is_grey() -> None:
    images = torch.tensor([-3.0, 3.0, float("nan"), float("inf")]).reshape(4, 1, 1, 1)
    pixels = np.asarray(image_grid(images, columns=4, min_pixels=1))
    assert pixels[1, 1::2].tolist() == [0, 255, GREY, 255]


def test_tensors_with_a_graph_and_half_precision_are_taken() -> None:
    images = torch.zeros(1, 1, 8, 8, requires_grad=True)
    assert image_grid(images, 1).size == image_grid(images.to(torch.bfloat16), 1).size == (34, 34)


@pytest.mark.parametrize("shape", [(8, 8), (0, 1, 8, 8), (2, 2, 8, 8), (1, 1, 0, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        image_grid(torch.zeros(shape), 1)


def test_a_grid_without_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 column"):
        image_grid(torch.zeros(1, 1, 8, 8), 0)


def test_save_writes_a_png_whatever_the_ending(tmp_path) -> None:
    path = tmp_path / "grid.image"
    save_grid(torch.zeros(4, 1, 8, 8), path, columns=2)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (67, 67))


def test_captions_are_below_their_images_and_long_ones_are_cut() -> None:
    images = torch.full((3, 1, 8, 8), -1.0)
    plain = image_grid(images, columns=2, min_pixels=CAPTION_PIXELS)
    captioned = image_grid(images, columns=2, captions=["a fox", "\x1b[31m" + "very long words " * 20, ""])
    below = CAPTION_LINES * CAPTION_HEIGHT
    assert captioned.size == (plain.width, plain.height + 2 * below)
    pixels = np.asarray(captioned)
    text = pixels[1 + CAPTION_PIXELS : 1 + CAPTION_PIXELS + below]
    short, long = text[:, 1 : 1 + CAPTION_PIXELS], text[:, 2 + CAPTION_PIXELS : 2 + 2 * CAPTION_PIXELS]
    assert (short > 200).any() and (long[-CAPTION_HEIGHT:] > GREY).any()  # the third line is used
    assert (pixels[1 : 1 + CAPTION_PIXELS] <= GREY).all()
    assert (pixels[-below:-1, 1 : 1 + CAPTION_PIXELS] == 0).all()
