"""The captions of scikit-learn's digits as prompts, without files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysid.data.captions import digit_captions
from raysid.data.prompts.source import PromptSource, text_block
from raysid.data.source import Block, Piece


class DigitPrompts(PromptSource):
    """Eight captions of each of the 1,797 digits."""

    name = "digits"

    def __init__(self) -> None:
        self.columns = {"caption": 1.0}

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return np.array([sum(map(len, digit_captions()))])

    def read(self, piece: Piece) -> Iterator[Block]:
        captions = [caption for own in digit_captions() for caption in own][piece.first : piece.last]
        yield text_block([[caption] for caption in captions], captions)
