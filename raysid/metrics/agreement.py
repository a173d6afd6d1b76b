"""Agreement of generated digits with their captions: the digit and everything else that the caption says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysid.data.captions import ATTRIBUTES, Meaning, levels_of, read_caption, words_of


class CaptionAgreement:
    """Counts the images that agree with their captions. Implements `raysid.metrics.evaluate.Judge`.

    An image agrees if the classifier reads the digit that the caption names, and each attribute that it names has the
    level that it says, by the measure that wrote the captions of the real images.

    Args:
        captions: one for each image, in order, as `write_caption` writes them.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = captions
        self.meanings = [read_caption(caption) for caption in captions]
        self.agreeing = 0
        self.said: Counter[str] = Counter()  # images whose caption has a word
        self.right: Counter[str] = Counter()  # those of them that are as the word says

    @property
    def digits(self) -> NDArray[np.int64]:
        """The digits that the captions name, (N,)."""
        return np.array([meaning.digit for meaning in self.meanings], np.int64)

    def add(self, start: int, images: Tensor, predictions: Tensor, usable: Tensor) -> None:
        """Judge images `start` to `start + len(images)`, (B, 1, 8, 8) in [-1, 1]; one that is not usable disagrees."""
        meanings = self.meanings[start : start + len(images)]
        digits = np.array([meaning.digit for meaning in meanings])
        ink = (images.clamp(-1, 1).cpu().numpy() + 1) / 2
        levels = levels_of(np.nan_to_num(ink), digits)
        good = usable.numpy()
        right = (levels == said_levels(meanings)) & good[:, None]
        agrees = (predictions.numpy() == digits) & good & (right | (said_levels(meanings) == 0)).all(1)
        self.agreeing += int(agrees.sum())
        for row, caption in zip(right, self.captions[start : start + len(images)], strict=True):
            for attribute, word in words_of(caption).items():
                self.said[word] += 1
                self.right[word] += int(row[ATTRIBUTES.index(attribute)])

    def figures(self) -> dict[str, float]:
        """Return `agreement`, the share of the images that agree, and `words_right`, as `of_attributes`."""
        return {"agreement": self.agreeing / len(self.captions), "words_right": self.of_attributes()}

    def by_word(self) -> dict[str, float]:
        """Return, for each word for an attribute, the share of its images whose attribute is as it says."""
        return {word: self.right[word] / count for word, count in self.said.items()}

    def of_attributes(self) -> float:
        """Return the share of all attributes that the captions name which are as they say."""
        return sum(self.right.values()) / max(1, sum(self.said.values()))


def said_levels(meanings: Sequence[Meaning]) -> NDArray[np.int64]:
    """Return the levels that captions name, (N, 3); 0 for an attribute that one does not name."""
    return np.array([[meaning.levels.get(name, 0) for name in ATTRIBUTES] for meaning in meanings])
