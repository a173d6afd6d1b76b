"""Sources that come with scikit-learn, without a download: its handwritten digits, patches of its two photographs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import Block, ImageSource, Piece, even_shards

SIZE, STRIDE = 32, 16
PER_PHOTOGRAPH = 975  # 25 rows of 39, of 427 x 640 pixels


class DigitsSource(ImageSource):
    """The digits, in scikit-learn's order: 1,797 grey images of 8x8, 10 classes.

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
        return np.bincount(_digits()["label"], minlength=self.num_classes).astype(np.int64)

    def read(self, piece: Piece) -> Iterator[Block]:
        """Read a part of a shard as one read-only block."""
        start = piece.shard * self.images_per_shard
        rows = slice(start + piece.first, start + piece.last)
        digits = _digits()
        yield Block(image=digits["image"][rows], label=digits["label"][rows])


@lru_cache(maxsize=1)
def _digits() -> Block:
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


class PatchesSource(ImageSource):
    """All patches of 32x32 at a stride of 16 pixels, row by row: 1,950 RGB images, of the temple
    (class 0) and of the flower (class 1)."""

    name = "patches"
    image_shape = (3, SIZE, SIZE)
    num_classes = 2
    pixel_max = 255

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        return even_shards(2 * PER_PHOTOGRAPH, PER_PHOTOGRAPH)

    @property
    def label_counts(self) -> NDArray[np.int64]:
        return self.shard_sizes

    def read(self, piece: Piece) -> Iterator[Block]:
        """Read a part of a photograph's patches as one read-only block."""
        image = _patches()[piece.shard, piece.first : piece.last]
        yield Block(image=image, label=np.full(len(image), piece.shard, np.int64))


@lru_cache(maxsize=1)
def _patches() -> NDArray[np.uint8]:
    """All patches, (2, 975, 3, 32, 32), read-only; the process caches them."""
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

    photographs = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
    windows = np.lib.stride_tricks.sliding_window_view(photographs, (SIZE, SIZE), axis=(1, 2))
    patches = np.ascontiguousarray(windows[:, ::STRIDE, ::STRIDE]).reshape(2, PER_PHOTOGRAPH, 3, SIZE, SIZE)
    patches.flags.writeable = False
    return patches
