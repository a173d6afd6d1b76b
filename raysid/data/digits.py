"""The handwritten digits of scikit-learn: 1,797 grey images of 8x8, 10 classes, no download."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import Block, ImageSource, Piece, even_shards


class DigitsSource(ImageSource):
    """The digits, in scikit-learn's order.

    Args:
        images_per_shard: images per shard, at least 1. The whole set is 115 kB, so two shards are enough.
    """

    name = "digits"
    image_shape = (1, 8, 8)
    num_classes = 10
    pixel_max = 16

    def __init__(self, images_per_shard: int = 1024) -> None:
        if images_per_shard < 1:
            raise ValueError(f"images_per_shard must be at least 1, not {images_per_shard}")
        self.images_per_shard = images_per_shard

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return even_shards(1797, self.images_per_shard)

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """Images of each digit, (10,), 174 to 183 each."""
        return np.bincount(_load()["label"], minlength=self.num_classes).astype(np.int64)

    def read(self, piece: Piece) -> Iterator[Block]:
        """Read a part of a shard as one read-only block."""
        start = piece.shard * self.images_per_shard
        rows = slice(start + piece.first, start + piece.last)
        digits = _load()
        yield Block(image=digits["image"][rows], label=digits["label"][rows])


@lru_cache(maxsize=1)
def _load() -> Block:
    """All digits, read-only. The process caches them, not the source, which travels without pixels."""
    # scikit-learn's file without scikit-learn: importing it would cost every process two seconds.
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None, "raysid requires scikit-learn"
    rows = np.loadtxt(
        Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=","
    )
    image = np.ascontiguousarray(rows[:, :-1]).reshape(-1, *DigitsSource.image_shape)
    label = rows[:, -1].astype(np.int64)
    image.flags.writeable = label.flags.writeable = False
    return Block(image=image, label=label)
