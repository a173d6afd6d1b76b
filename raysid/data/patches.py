"""Patches of the two sample photographs of scikit-learn: 1,950 RGB images of 32x32, 2 classes, no download."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import Block, ImageSource, Piece, even_shards

SIZE, STRIDE = 32, 16
PER_PHOTOGRAPH = 975  # 25 rows of 39, of 427 x 640 pixels


class PatchesSource(ImageSource):
    """All patches of 32x32 at a stride of 16 pixels, row by row: class 0 is the temple, class 1 the flower."""

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
        image = _load()[piece.shard, piece.first : piece.last]
        yield Block(image=image, label=np.full(len(image), piece.shard, np.int64))


@lru_cache(maxsize=1)
def _load() -> NDArray[np.uint8]:
    """All patches, (2, 975, 3, 32, 32), read-only; the process caches them."""
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

    photographs = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
    windows = np.lib.stride_tricks.sliding_window_view(photographs, (SIZE, SIZE), axis=(1, 2))
    patches = np.ascontiguousarray(windows[:, ::STRIDE, ::STRIDE]).reshape(2, PER_PHOTOGRAPH, 3, SIZE, SIZE)
    patches.flags.writeable = False
    return patches
