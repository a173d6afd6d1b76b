"""Windows of the stream: the images that are shuffled together, read from passes over a source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import Block, Piece
from raysid.errors import RunFailed, UserError

SHARDS_PURPOSE = 0x5EA2  # keeps the shards' order apart from whatever else is drawn from the run's seed
NAMED = 5  # bad images that a message names

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (n, C, H, W) and their labels (n,)."""
ReadBlocks = Callable[[Sequence[Piece]], Iterable[Block]]
"""Reads pieces of a source, in order: `ImageSource.blocks`, or `ray_blocks(source)`."""


class Windows:
    """Windows of an epoch's shards, one at a time, read from passes over the source."""

    def __init__(
        self,
        read_blocks: ReadBlocks,
        sizes: NDArray[np.int64],
        seed: int,
        window: int,
        max_bad_fraction: float,
    ) -> None:
        self.read_blocks = read_blocks
        self.sizes = sizes
        self.num_images = int(sizes.sum())
        self.seed = seed
        self.window = window
        self.max_bad = max_bad_fraction * self.num_images
        self.faults: dict[int, str] = {}
        self.stopping = threading.Event()
        self._blocks: Iterator[Block] | None = None
        self._rest: Block | None = None  # of the block that the last window ended in
        self._pass = (0, 0)  # epoch of the pass under way, and the position that it has come to
        self._loaded: tuple[int, int] | None = None
        self._images: NDArray[np.uint8] | None = None  # (window, C, H, W), filled anew for every window
        self._labels = np.empty(window, np.int64)
        self._rows = np.arange(0)

    def load(self, epoch: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.intp]]:
        """Window `index` of an epoch: images and labels as they were read, and the rows of those to use.

        The rows are in the order of the source's list, a bad image's being another one's. Valid until the next call.
        """
        if self.window == self.num_images:
            epoch = 0  # it holds the whole set, whatever the epoch
        first = index * self.window
        size = min(self.window, self.num_images - first)
        if self._loaded != (epoch, index):
            self._loaded = None
            try:
                self._fill(epoch, first, size)
            except UserError as error:  # it was well when the run began
                self.close()
                raise RunFailed(f"{error}; the same command goes on") from error
            except BaseException:
                self.close()  # a pass that broke is not continued: the next read starts a new one
                raise
            self._loaded = epoch, index
        assert self._images is not None
        return self._images, self._labels, self._rows

    def close(self) -> None:
        """Ends the pass under way, if any. The window held stays."""
        blocks, self._blocks, self._rest = self._blocks, None, None
        close = getattr(blocks, "close", None)
        if close is not None:
            close()  # at once: Ray Data goes on producing until its iterator is closed or collected

    def _pieces(self, epoch: int, first: int) -> list[Piece]:
        """The epoch's shards in their order, from a position on."""
        count = len(self.sizes)
        # Where one window holds all of them, their order would change nothing but the memory that is read.
        order = np.arange(count)
        if self.window < self.num_images:
            order = np.argsort(random_words(self.seed, count, SHARDS_PURPOSE, epoch), kind="stable")
        ends = np.cumsum(self.sizes[order])
        begin = int(np.searchsorted(ends, first, side="right"))
        pieces = [Piece(int(shard), 0, int(self.sizes[shard])) for shard in order[begin:]]
        skipped = first - (int(ends[begin - 1]) if begin else 0)
        return [pieces[0]._replace(first=skipped), *pieces[1:]]

    def _fill(self, epoch: int, first: int, size: int) -> None:
        if self._blocks is None or self._pass != (epoch, first):
            self.close()
            self._blocks = iter(self.read_blocks(self._pieces(epoch, first)))
            self._pass = epoch, first
        index = np.empty(size, np.int64)
        faults: dict[int, str] = {}  # by place in the window
        filled = 0
        while filled < size:
            block = self._take(size - filled)
            taken = slice(filled, filled + len(block["label"]))
            if self._images is None:
                self._images = np.empty((self.window, *block["image"].shape[1:]), np.uint8)
            self._images[taken] = block["image"]
            self._labels[taken] = block["label"]
            index[taken] = block.get("index", np.arange(first + filled, first + taken.stop))
            faults |= {filled + row: fault for row, fault in enumerate(block.get("fault", ())) if fault}
            filled = taken.stop
        if first + size == self.num_images:
            if self._next_block() is not None:
                raise ValueError(f"the source yields more images than the {self.num_images} it announced")
            self.close()
        assert self._images is not None
        order = np.argsort(index, kind="stable")
        if faults:
            self._report({int(index[row]): fault for row, fault in faults.items()})
            order = _without(order, faults)
        self._rows = order

    def _report(self, faults: dict[int, str]) -> None:
        """Count bad images. Raises RunFailed where they are too many."""
        self.faults.update(faults)
        if len(self.faults) > self.max_bad:
            named = "; ".join(list(self.faults.values())[:NAMED])
            more = f"; and {len(self.faults) - NAMED:,} more" if len(self.faults) > NAMED else ""
            raise RunFailed(
                f"{len(self.faults):,} of {self.num_images:,} real images cannot be used, which is more than "
                f"data.max_bad_fraction = {self.max_bad / self.num_images:g} of them ({named}{more}): repair them, or "
                "give a larger fraction"
            )

    def _take(self, most: int) -> Block:
        """The next images of the pass: at least one and at most `most`, never across two blocks."""
        block = self._next_block()
        if block is None:
            raise ValueError(
                f"the source yielded {self._pass[1]} images, not the {self.num_images} it announced"
            )
        length = len(block["label"])
        if length > most:
            block, self._rest = _cut(block, slice(most)), _cut(block, slice(most, None))
        self._pass = self._pass[0], self._pass[1] + min(length, most)
        return block

    def _next_block(self) -> Block | None:
        """The rest of the last block, or the next that is not empty; None at the end of the pass."""
        if self._rest is not None:
            block, self._rest = self._rest, None
            return block
        assert self._blocks is not None
        for block in self._blocks:
            if self.stopping.is_set():
                raise RuntimeError("the image stream was closed during a read")
            self._check(block)
            if len(block["label"]) > 0:
                return block
        return None

    def _check(self, block: Block) -> None:
        images, labels = block["image"], block["label"]
        shape = None if self._images is None else self._images.shape[1:]
        if images.dtype != np.uint8 or images.ndim != 4 or (shape is not None and images.shape[1:] != shape):
            wanted = "(n, C, H, W)" if shape is None else f"(n, {', '.join(map(str, shape))})"
            raise ValueError(
                f"the source yielded images of {images.dtype} {images.shape} where uint8 {wanted} was "
                f"expected, after image {self._pass[1]} of a pass"
            )
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"the source yielded labels of {labels.dtype} {labels.shape} for {len(images)} images, "
                f"after image {self._pass[1]} of a pass"
            )


def _cut(block: Block, rows: slice) -> Block:
    return cast(Block, {name: column[rows] for name, column in cast(dict[str, Any], block).items()})


def _without(order: NDArray[np.intp], faults: Iterable[int]) -> NDArray[np.intp]:
    """The order with every bad row replaced by the next good one, the first after the last.

    Raises:
        RunFailed: none is good.
    """
    good = np.flatnonzero(~np.isin(order, list(faults)))
    if not len(good):
        raise RunFailed(
            f"of {len(order):,} real images in a row none can be used: `raysid data check` names them"
        )
    following = np.searchsorted(good, np.arange(len(order)))
    return order[good[following % len(good)]]


def random_words(seed: int, count: int, *address: int) -> NDArray[np.uint64]:
    """Random words that belong to an address."""
    # Not Generator.permutation: NumPy keeps the raw words the same across versions, not its methods.
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=address)).random_raw(count)
