"""Pictures become images of one size and kind: modes, transparency, cropping, and those that are none."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raysid.data.pictures import BadPicture, Fit, decoded

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_without_loss_comes_through_as_it_is(kind: str) -> None:
    content = saved(Image.fromarray(COLOURS), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decoded(content, Fit()), COLOURS.transpose(2, 0, 1))


def test_a_jpeg_is_read_as_pillow_reads_it() -> None:
    content = saved(Image.fromarray(COLOURS), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decoded(content, Fit()), expected.transpose(2, 0, 1))


def test_grey_has_one_channel_or_the_sets_number() -> None:
    content = saved(Image.fromarray(GREYS))
    np.testing.assert_array_equal(decoded(content, Fit()), GREYS[None])
    np.testing.assert_array_equal(decoded(content, Fit(channels=3)), np.stack([GREYS] * 3))
    assert decoded(saved(Image.fromarray(COLOURS)), Fit(channels=1)).shape == (1, 6, 6)


def test_other_modes() -> None:
    np.testing.assert_array_equal(
        decoded(saved(Image.fromarray(GREYS).convert("1")), Fit())[0],
        np.asarray(Image.fromarray(GREYS).convert("1")) * 255,
    )
    palette = Image.fromarray(COLOURS).quantize(8)
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(saved(palette), Fit()), expected)
    deep = GREYS.astype(np.uint16) * 257
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(deep)), Fit())[0], GREYS)
    assert decoded(saved(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"), Fit()).shape == (3, 6, 6)


def test_transparent_pixels_are_drawn_on_white() -> None:
    alpha = np.full((6, 6), 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    image = decoded(saved(Image.fromarray(np.dstack([COLOURS, alpha]))), Fit())
    assert (image[:, 0] == 255).all()
    np.testing.assert_allclose(image[:, 1], (COLOURS[1].T + 255.0) / 2, atol=2)
    np.testing.assert_array_equal(image[:, 2:], COLOURS.transpose(2, 0, 1)[:, 2:])
    grey = decoded(saved(Image.fromarray(np.dstack([GREYS, alpha]))), Fit())
    assert grey.shape == (1, 6, 6) and (grey[0, 0] == 255).all()
    np.testing.assert_array_equal(grey[0, 2:], GREYS[2:])


@pytest.mark.parametrize("filter", ["lanczos", "box", "bicubic"])
def test_resizing_is_edms_center_crop_then_pillows_filter(filter: str) -> None:
    """The formula of EDM's dataset tool, written out."""
    pixels = np.random.default_rng(1).integers(0, 256, (21, 32, 3), dtype=np.uint8)
    side = 21
    cut = pixels[(21 - side) // 2 : (21 + side) // 2, (32 - side) // 2 : (32 + side) // 2]
    method = {"lanczos": Image.LANCZOS, "box": Image.BOX, "bicubic": Image.BICUBIC}[filter]
    expected = np.asarray(Image.fromarray(cut).resize((8, 8), method)).transpose(2, 0, 1)
    content = saved(Image.fromarray(pixels))
    np.testing.assert_array_equal(decoded(content, Fit(8, filter=filter)), expected)
    stretched = np.asarray(Image.fromarray(pixels).resize((8, 8), method)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(content, Fit(8, crop="none", filter=filter)), stretched)


def test_a_picture_of_the_wanted_size_is_not_touched() -> None:
    content = saved(Image.fromarray(COLOURS))
    np.testing.assert_array_equal(decoded(content, Fit(6)), COLOURS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"GIF89a but no picture", "is not a PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "is not a PNG, JPEG or WebP"),
        (saved(Image.fromarray(COLOURS))[:-25], "cannot be read as an image"),
        (saved(Image.fromarray(np.zeros((200, 200), np.uint8)), "JPEG")[:-300], "cannot be read as an image"),
        (
            saved(Image.fromarray(np.zeros((8_200, 8_200), np.uint8))),
            "is 8200x8200: more than 67,108,864 pixels",
        ),
        (saved(Image.new("1", (14_000, 14_000))), "could be decompression bomb"),
    ],
    ids=["empty", "another kind", "a program", "cut PNG", "cut JPEG", "large", "bomb"],
)
def test_a_file_that_is_no_picture_is_reported_with_a_reason(content: bytes, words: str) -> None:
    with pytest.raises(BadPicture, match=words):
        decoded(content, Fit())
