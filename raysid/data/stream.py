"""Real images by position: an endless, shuffled stream in which every position has one image.

The image at a position depends only on the seed, the epoch, the batch size and the number of lanes
(`raysid.data.order`), neither on the reader nor on earlier reads. Ranks read slices of one stream, and a
checkpoint's cursor is the number of images consumed.

An image that cannot be used leaves no gap: the next good one of its window, in the order of the source's list,
replaces it. A row that is left out on purpose is replaced by one that is drawn, so that a long run of them does not
repeat one row.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysid.data.order import Order, Window
from raysid.data.reader import Reader
from raysid.data.source import READ_CPUS, SEPARATOR, Block, Piece, Source
from raysid.data.windows import Images, Loaded, ReadBlocks


class ImageStream:
    """Real images by their position in the stream.

    A set that fits the window is read once and kept, as uint8; later epochs only permute it. Otherwise the windows that
    are needed are kept, and read again in every epoch. Reading forward, or again within the last batch, costs nothing
    extra. Reading elsewhere, as after a resume, restarts at the windows of that position.

    For one caller at a time. It cannot be pickled: construct it in the process that reads.

    Args:
        read_blocks: reads pieces of the source, the same images each time.
        shard_sizes: images in each of its shards.
        seed: the run's seed, at least 0.
        window: images shuffled together, and held in memory; about twice as many with `prefetch`, besides what the
            source reads in advance. Part of the order: a resumed run needs the same (all windows that hold the whole
            set are the same).
        batch_size, lanes: images of a batch, and the lanes into which it is divided. Part of the order, too.
        parts: parts of every batch that this reader reads, each given by its first offset and the offset after its
            last; None for the whole batch. It can read other images, more slowly.
        xflip: mirror each image with probability 1/2, by its position in the stream.
        max_bad_fraction: fraction of the set's images that may be bad, 0 to 1.
        prefetch: read windows in a thread before they are needed: as many images again as are held.
        what: the kind of the rows, for messages.

    Attributes:
        wait_seconds: total seconds that callers have spent in `read`.
    """

    def __init__(
        self,
        read_blocks: ReadBlocks,
        shard_sizes: Sequence[int] | NDArray[np.int64],
        seed: int,
        window: int,
        *,
        batch_size: int = 1,
        lanes: int = 1,
        parts: Iterable[tuple[int, int]] | None = None,
        xflip: bool = False,
        max_bad_fraction: float = 0.0,
        prefetch: bool = False,
        what: str = "real images",
    ) -> None:
        sizes = np.asarray(shard_sizes, np.int64)
        num_images = int(sizes.sum())
        if num_images < 1 or sizes.min() < 1 or min(window, batch_size, lanes) < 1 or seed < 0:
            raise ValueError(
                "an image stream needs images in every shard, window, batch_size and lanes >= 1 and seed >= 0, "
                f"not {num_images} images, {window}, {batch_size}, {lanes} and {seed}"
            )
        self.xflip = xflip
        self.wait_seconds = 0.0
        self._order = Order(sizes, seed, window, batch_size, lanes)
        mine = self._order.lanes_of([(0, batch_size)] if parts is None else parts)
        self._reader = Reader(read_blocks, self._order, mine, max_bad_fraction, prefetch, what)
        self._shown: dict[tuple[Window, int], tuple[NDArray[np.intp], NDArray[np.bool_] | None]] = {}
        self._closed = False
        weakref.finalize(self, self._reader.stop)  # a stream that is dropped without close leaves no thread

    @property
    def num_images(self) -> int:
        """Images per epoch."""
        return self._order.num_images

    @property
    def faults(self) -> dict[int, str]:
        """The fault of each bad image read so far, as in `Block`, by its index in the source's list."""
        return self._reader.faults

    def read(self, start: int, count: int) -> Images:
        """Return images `start` to `start + count` of the stream: uint8 (count, C, H, W) and int64 labels (count,).

        The arrays are the caller's own. `start` counts images consumed since the run's first, over all
        ranks; the range may cross the ends of windows, batches and epochs.

        Raises:
            ValueError: a negative start or a count below 1; or the source returned another number of images
                than its shards have, or blocks that are not uint8 images with labels.
            RunFailed: more images are bad than `max_bad_fraction` of the set (it names some), or the source can no
                longer be read.
            RuntimeError: the stream is closed.
            Exception: whatever `read_blocks` raises; the next read opens the source again.
        """
        images, labels, _ = self._read(start, count)
        return images, labels

    def read_captioned(self, start: int, count: int) -> tuple[*Images, list[list[str]]]:
        """Return images and labels as `read` does, and the captions of each image, of a source that gives them."""
        images, labels, captions = self._read(start, count)
        assert captions is not None, "the source was opened without captions"
        return images, labels, [joined.split(SEPARATOR) for joined in captions]

    def _read(self, start: int, count: int) -> tuple[*Images, NDArray[np.object_] | None]:
        if start < 0 or count < 1:
            raise ValueError(f"cannot read {count} images at position {start}")
        if self._closed:
            raise RuntimeError(f"the stream of {self._reader.what} is closed")
        began = time.perf_counter()
        try:
            return self._gather(start, count)
        finally:
            self.wait_seconds += time.perf_counter() - began

    def loaded_until(self, position: int) -> float:
        """Return the position up to which a reader at `position` need not wait; infinite if everything is loaded."""
        return self._reader.loaded_until(position)

    def close(self) -> None:
        """Stop the thread and the source; wait a few seconds at most for the current read."""
        if not self._closed:
            self._closed = True
            self._reader.close()

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _gather(self, start: int, count: int) -> tuple[*Images, NDArray[np.object_] | None]:
        all_images: NDArray[Any] | None = None
        all_labels = np.empty(count, np.int64)
        all_captions = np.empty(count, object)
        filled = 0
        while filled < count:
            floor = start - start % self._order.batch_size
            window, row, epoch, run = self._order.locate(start)
            loaded = self._reader.load(window, floor)
            if all_images is None:
                all_images = np.empty((count, *loaded.images.shape[1:]), loaded.images.dtype)
            taken = min(run, count - filled)
            shown, flips = self._rows(window, epoch, floor, loaded)
            rows = shown[row : row + taken]
            part = all_images[filled : filled + taken]
            np.take(loaded.images, rows, axis=0, out=part, mode="clip")  # other modes copy first
            if flips is not None:
                mirrored = flips[row : row + taken]
                part[mirrored] = part[mirrored][..., ::-1]
            all_labels[filled : filled + taken] = loaded.labels[rows]
            if loaded.captions is not None:
                all_captions[filled : filled + taken] = loaded.captions[rows]
            start += taken
            filled += taken
        assert all_images is not None
        return all_images, all_labels, None if loaded.captions is None else all_captions

    def _rows(
        self, window: Window, epoch: int, floor: int, loaded: Loaded
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_] | None]:
        """Return the rows that a window shows in an epoch, in their order, and the mask of the mirrored ones."""
        if (window, epoch) not in self._shown:
            soon = floor + self._order.batch_size
            for key in list(self._shown):
                other, its_epoch = key
                if its_epoch != epoch if self._order.held else other.begin >= soon or other.end < floor:
                    del self._shown[key]
            permutation = self._order.permutation(window, epoch)
            rows, left_out = loaded.rows[permutation], loaded.left_out[permutation]
            if count := int(left_out.sum()):
                rows[left_out] = self._order.replacements(window, epoch, loaded.good, count)
            self._shown[window, epoch] = rows, self._order.flips(window, epoch) if self.xflip else None
        return self._shown[window, epoch]


def ray_blocks(source: Source, num_cpus: float = READ_CPUS) -> ReadBlocks:
    """Return the `read_blocks` of an `ImageStream` that reads through Ray Data, in order.

    The result can be pickled, so the driver can make it for the actor that reads.

    Args:
        num_cpus: CPU slots of a read task, as in `shard_dataset`.

    Raises (from the call):
        UserError: the source cannot be read.
        RuntimeError: a read task failed; one line with its own error, the full one as its cause.
    """
    return partial(_run_dataset, source, num_cpus)


def _run_dataset(source: Source, num_cpus: float, pieces: Sequence[Piece]) -> Iterator[Block]:
    from raysid.data.ray_data import dataset_blocks, shard_dataset

    return dataset_blocks(shard_dataset(source, pieces, num_cpus), source.what)
