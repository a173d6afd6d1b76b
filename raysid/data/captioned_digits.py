"""Scikit-learn's digits with their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from raysid.data.captions import digit_captions
from raysid.data.scikit_learn import DigitsSource
from raysid.data.source import SEPARATOR, Block, Piece


class CaptionedDigits(DigitsSource):
    """The digits, each with its captions."""

    captioned = True

    @property
    def known_captions(self) -> Sequence[str]:  # type: ignore[override]
        return sorted({caption for own in digit_captions() for caption in own})

    def read(self, piece: Piece) -> Iterator[Block]:
        """Read a part of a shard, as `DigitsSource` does, with captions."""
        begin = piece.shard * self.images_per_shard
        own = digit_captions()[begin + piece.first : begin + piece.last]
        captions = np.array([SEPARATOR.join(captions) for captions in own], object)
        for block in super().read(piece):
            yield Block(image=block["image"], label=block["label"], caption=captions)
