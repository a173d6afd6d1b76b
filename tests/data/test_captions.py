"""Captions of digits: true of their images, read back as they were written, some words held out."""

from __future__ import annotations

import numpy as np
import pytest

from raysid.data import open_source
from raysid.data.captions import (
    ATTRIBUTES,
    PER_PICTURE,
    WORDS,
    digit_captions,
    levels_of,
    measures_of,
    read_caption,
    write_caption,
)


def digits() -> tuple[np.ndarray, np.ndarray]:
    blocks = [*open_source("digits").blocks()]
    return np.concatenate([b["image"] for b in blocks]) / 16, np.concatenate([b["label"] for b in blocks])


def test_every_caption_is_true_of_its_image() -> None:
    images, labels = digits()
    levels = levels_of(images, labels)
    captions = digit_captions()
    assert len(captions) == len(labels) and {len(own) for own in captions} == {PER_PICTURE}
    for own, label, level in zip(captions, labels, levels, strict=True):
        for caption in own:
            meaning = read_caption(caption)
            assert meaning.digit == label
            assert all(level[ATTRIBUTES.index(name)] == said for name, said in meaning.levels.items())


def test_each_attribute_is_named_for_about_as_many_images_as_are_low_or_high() -> None:
    meanings = [read_caption(caption) for own in digit_captions() for caption in own]
    for name in ATTRIBUTES:
        for level in (-1, 1):
            share = sum(meaning.levels.get(name) == level for meaning in meanings) / len(meanings)
            assert share == pytest.approx(0.6 / 3, abs=0.02)


def test_the_measures_follow_the_picture() -> None:
    stroke = np.zeros((4, 1, 8, 8))
    stroke[0, 0, :, 3] = 1
    stroke[1, 0, :, 3:5] = 1
    stroke[2, 0, np.arange(8), np.arange(8)] = 1  # falls to the right: its top leans left
    stroke[3, 0, np.arange(8), 7 - np.arange(8)] = 1
    ink, width, slant = measures_of(stroke).T
    assert ink[1] == 2 * ink[0] and width[1] > width[0] and abs(slant[0]) < 1e-9
    assert slant[2] == pytest.approx(-1) and slant[3] == pytest.approx(1)


def test_held_out_words_are_in_no_caption_and_are_understood() -> None:
    said = {caption for own in digit_captions() for caption in own}
    held_out = [known[-1] for words in WORDS.values() for known in words.values()]
    assert not [caption for caption in said for word in held_out if word in caption]
    caption = write_caption(8, (1, -1, 1), 0, 3, held_out=True)
    assert caption in (
        "a thick slender eight inclined to the right",
        "a thick slender 8 inclined to the right",
    )
    assert read_caption(caption).levels == {"ink": 1, "width": -1, "slant": 1}


def test_articles_fit_the_word_that_follows() -> None:
    captions = {write_caption(8, (0, 0, 0), 0, number) for number in range(20)}
    assert captions == {"an eight", "an 8"}
    assert {write_caption(1, (0, 0, 0), 0, number) for number in range(20)} == {"a one", "a 1"}


@pytest.mark.parametrize("caption", ["a digit", "a 3 and a four"])
def test_a_caption_of_no_digit_or_of_several_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="names .* digits, where one is needed"):
        read_caption(caption)
