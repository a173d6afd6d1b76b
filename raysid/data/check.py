"""A survey of real images: their sizes and kinds, and whether a run can train on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from raysid.config import DataSettings
from raysid.data.listing import in_threads
from raysid.data.picture_captions import joined_captions
from raysid.data.picture_source import PictureSource
from raysid.data.pictures import BadPicture, Fit, as_stored, decoded
from raysid.data.source import SEPARATOR, ImageSource, Piece, good_images
from raysid.errors import UserError

EXAMPLES = 3  # captions that are shown


@dataclass
class Survey:
    """The findings in some pictures.

    Attributes:
        count: number of pictures.
        sizes: number of pictures of each (width, height), as stored.
        modes: number of pictures of each of Pillow's modes.
        bad: name and fault of each picture that cannot be used.
        shapes: number of images of each (C, H, W), decoded with the settings.
        words: number of captions of each number of words.
        captions: some of them.
    """

    count: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    captions: list[str] = field(default_factory=list)

    def add(self, other: Survey) -> None:
        self.count += other.count
        self.sizes += other.sizes
        self.modes += other.modes
        self.bad += other.bad
        self.shapes += other.shapes
        self.words += other.words
        self.captions = (self.captions + other.captions)[:EXAMPLES]


def survey(source: PictureSource, data: DataSettings, progress: Callable[[int], None]) -> Survey:
    """Decode every picture, several shards at a time.

    Args:
        progress: called with the number of pictures so far.
    """
    fit = Fit.from_settings(data)

    def survey_piece(piece: Piece) -> Survey:
        found = Survey()
        for content in source.contents(piece):
            found.count += 1
            try:
                image = decoded(content.picture(), fit)
                size, mode = as_stored(content.picture())
                if content.label < 0:
                    raise BadPicture("has no label")
                own = joined_captions(content.caption).split(SEPARATOR) if source.captioned else []
            except BadPicture as error:
                found.bad.append(f"{source.name_of(content.entry)} {error}")
                continue
            found.sizes[size] += 1
            found.modes[mode] += 1
            found.shapes[image.shape] += 1
            found.words.update(len(caption.split()) for caption in own)
            found.captions += own[: EXAMPLES - len(found.captions)]
        return found

    whole = Survey()
    for part in in_threads(survey_piece, source.pieces()):
        whole.add(part)
        progress(whole.count)
    return whole


def check_usable(source: PictureSource, data: DataSettings, found: Survey) -> None:
    """Check that a run can train on the pictures.

    Args:
        source: its size and channels are set by this.

    Raises:
        UserError: no picture can be used, their images differ in size or channels, or too many are bad.
    """
    good = found.count - len(found.bad)
    if not good:
        raise UserError(f"none of the {found.count:,} pictures of {source.name} can be used")
    sizes = {shape[1:] for shape in found.shapes}
    if len(sizes) > 1:
        raise UserError(
            f"the pictures of {source.name} have {len(sizes)} sizes: give data.resolution, to which all are cropped "
            "and resized"
        )
    source.settle(data)
    odd = sum(count for shape, count in found.shapes.items() if shape[0] > source.image_shape[0])
    if odd:
        raise UserError(
            f"{odd:,} of the pictures of {source.name} are in colour and the others in grey: give data.channels"
        )
    most = data.max_bad_fraction * found.count
    if len(found.bad) > most:
        raise UserError(
            f"{len(found.bad):,} of {found.count:,} pictures cannot be used, which is more than data.max_bad_fraction "
            f"= {data.max_bad_fraction:g} of them"
        )


def first_images(source: ImageSource, count: int) -> np.ndarray:
    """Return the first good images of a source, uint8 (N, C, H, W), at most `count`."""
    taken: list[np.ndarray] = []
    for block in source.blocks():
        taken.append(good_images(block)["image"])
        if sum(map(len, taken)) >= count:
            break
    return np.concatenate(taken)[:count]
