"""The order of real images: which image stands at which place of the stream. Reads nothing.

The stream is epoch after epoch of the whole set. An epoch lays the source's shards in an order of its own, one after
another, and cuts that into lanes: lane i holds what is at the i-th part of every batch. Each lane is cut into windows,
whose images are permuted. So a rank, which has a part of every batch, needs the windows of some lanes alone, and what
stands at a place depends on (seed, epoch), the batch's size and the number of lanes, not on who reads it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import Piece

PURPOSE = 0x5EA1  # keeps the permutations apart from whatever else is drawn from the run's seed
SHARDS_PURPOSE = 0x5EA2
XFLIP_PURPOSE = 0x5EA3
EPOCHS_KEPT = 2  # where one ends and the next begins both are asked for


class Window(NamedTuple):
    """Images that are shuffled together, which are read in one go.

    Attributes:
        epoch: 0 of a window that holds the whole set, whatever the epoch.
        first, last: which images of the epoch's order, the first and after the last.
        begin, end: the place in the stream of the first, and after that of the last.
    """

    epoch: int
    lane: int
    number: int
    first: int
    last: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.last - self.first


class Place(NamedTuple):
    """Where an image of the stream is: its place in a window's permutation.

    Attributes:
        epoch: whose permutation of the window it is.
        run: how many places of the stream, from this one on, are that many places of the permutation.
    """

    window: Window
    row: int
    epoch: int
    run: int


@dataclass(frozen=True)
class _Epoch:
    """An epoch's shards in their order, and its lanes.

    Attributes:
        shards: numbers of the shards.
        ends: where each ends in the epoch's order.
        before: images of each lane in the epochs before.
        cuts: where each lane's windows begin in the epoch's order, and where the last one ends.
    """

    shards: NDArray[np.intp]
    ends: NDArray[np.int64]
    before: list[int]
    cuts: list[NDArray[np.int64]]


class Order:
    """Which image stands where, of a set in shards.

    Args:
        sizes: images of each shard.
        seed: the run's seed, at least 0.
        window: images shuffled at a time, over all lanes. Where it holds the whole set there is one window, and the
            permutation is of the source's list: the same list in other shards is the same stream.
        batch_size: images a step, of all ranks.
        lanes: into how many parts a batch is cut; fewer where it has fewer images, or where that would cut shards,
            which are read from their start.
    """

    def __init__(self, sizes: NDArray[np.int64], seed: int, window: int, batch_size: int, lanes: int) -> None:
        self.sizes = sizes
        self.seed = seed
        self.batch_size = batch_size
        self.num_images = int(sizes.sum())
        self.held = window >= self.num_images
        self.lanes = 1 if self.held else max(1, min(lanes, batch_size, window // int(sizes.max())))
        self.window = self.num_images if self.held else window // self.lanes
        self.starts = np.cumsum(sizes) - sizes
        # Offset o of a batch is in lane o * lanes // batch_size.
        self._bounds = [-(-lane * batch_size // self.lanes) for lane in range(self.lanes + 1)]
        self._epoch = lru_cache(maxsize=EPOCHS_KEPT)(self._make_epoch)

    def lanes_of(self, parts: Iterable[tuple[int, int]]) -> set[int]:
        """The lanes of some parts of every batch, from offset to offset."""
        return {self._lane(offset) for begin, end in parts for offset in range(begin, end)}

    def place(self, position: int) -> Place:
        """Where the image at a position of the stream is."""
        number, within = divmod(position, self.num_images)
        if self.held:
            return Place(self._whole, within, number, self.num_images - within)
        offset = position % self.batch_size
        lane = self._lane(offset)
        epoch = self._epoch(number)
        cuts = epoch.cuts[lane]
        at = int(cuts[0]) + self._taken(lane, position) - epoch.before[lane]
        index = int(np.searchsorted(cuts, at, side="right")) - 1
        window = self._window(number, lane, index)
        run = min(window.last - at, self.num_images - within)
        if self.lanes > 1:
            run = min(run, self._bounds[lane + 1] - offset)
        return Place(window, at - window.first, number, run)

    def windows_from(self, position: int, lanes: Iterable[int]) -> Iterator[Window]:
        """The windows of some lanes in which images from a position on are, as they are needed; endless.

        Of a set that one window holds that window alone.
        """
        if self.held:
            return iter([self._whole])
        return heapq.merge(
            *(self._of_lane(lane, position) for lane in lanes), key=lambda window: window.begin
        )

    def others(self, window: Window) -> Iterator[Window]:
        """The other windows of its lane and epoch, those after it first."""
        count = 1 if self.held else len(self._epoch(window.epoch).cuts[window.lane]) - 1
        for step in range(1, count):
            yield self._window(window.epoch, window.lane, (window.number + step) % count)

    def pieces(self, window: Window) -> list[Piece]:
        """What of which shards is in a window, in order."""
        if self.held:  # another order would change nothing but the memory that is read
            return [Piece(shard, 0, int(size)) for shard, size in enumerate(self.sizes)]
        epoch = self._epoch(window.epoch)
        found = []
        at = window.first
        shard = int(np.searchsorted(epoch.ends, at, side="right"))
        while at < window.last:
            number, end = int(epoch.shards[shard]), int(epoch.ends[shard])
            start = end - int(self.sizes[number])
            found.append(Piece(number, at - start, min(end, window.last) - start))
            at, shard = end, shard + 1
        return found

    def places_in_list(self, pieces: Sequence[Piece]) -> NDArray[np.int64]:
        """The place of each image of some pieces in the source's list."""
        return np.concatenate([self.starts[shard] + np.arange(first, last) for shard, first, last in pieces])

    def permutation(self, window: Window, epoch: int) -> NDArray[np.intp]:
        """Which image of a window, in the order of the source's list, is at each place of it in an epoch."""
        words = random_words(self.seed, window.size, PURPOSE, *self._address(window, epoch))
        return np.argsort(words, kind="stable")

    def flips(self, window: Window, epoch: int) -> NDArray[np.bool_]:
        """Whether the image at each place of a window is mirrored in an epoch."""
        words = random_words(self.seed, window.size, XFLIP_PURPOSE, *self._address(window, epoch))
        return words % 2 == 1

    def _address(self, window: Window, epoch: int) -> tuple[int, ...]:
        return (epoch, 0) if self.held else (epoch, window.lane, window.number)

    @property
    def _whole(self) -> Window:
        return Window(0, 0, 0, 0, self.num_images, 0, self.num_images)

    def _lane(self, offset: int) -> int:
        return offset * self.lanes // self.batch_size

    def _taken(self, lane: int, position: int) -> int:
        """How many images of a lane stand before a position of the stream."""
        begin, end = self._bounds[lane], self._bounds[lane + 1]
        batches, offset = divmod(position, self.batch_size)
        return batches * (end - begin) + min(max(offset - begin, 0), end - begin)

    def _position(self, lane: int, number: int) -> int:
        """Where image `number` of a lane stands in the stream."""
        begin, end = self._bounds[lane], self._bounds[lane + 1]
        batches, offset = divmod(number, end - begin)
        return batches * self.batch_size + begin + offset

    def _of_lane(self, lane: int, position: int) -> Iterator[Window]:
        number = position // self.num_images
        taken = self._taken(lane, position)
        while True:
            epoch = self._epoch(number)
            cuts = epoch.cuts[lane]
            at = int(cuts[0]) + max(0, taken - epoch.before[lane])
            for index in range(int(np.searchsorted(cuts, at, side="right")) - 1, len(cuts) - 1):
                yield self._window(number, lane, index)
            number += 1

    def _window(self, number: int, lane: int, index: int) -> Window:
        epoch = self._epoch(number)
        cuts, before = epoch.cuts[lane], epoch.before[lane]
        first, last = int(cuts[index]), int(cuts[index + 1])
        begin = self._position(lane, before + first - int(cuts[0]))
        end = self._position(lane, before + last - 1 - int(cuts[0])) + 1
        return Window(number, lane, index, first, last, begin, end)

    def _make_epoch(self, number: int) -> _Epoch:
        shards = np.argsort(random_words(self.seed, len(self.sizes), SHARDS_PURPOSE, number), kind="stable")
        ends = np.cumsum(self.sizes[shards])
        begin, end = number * self.num_images, (number + 1) * self.num_images
        before = [self._taken(lane, begin) for lane in range(self.lanes)]
        cuts, start = [], 0
        for lane in range(self.lanes):
            size = self._taken(lane, end) - before[lane]
            cuts.append(_cuts(start, start + size, self.window, ends if self.lanes > 1 else None))
            start += size
        return _Epoch(shards, ends, before, cuts)


def _cuts(start: int, stop: int, window: int, ends: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Where windows of about so many images begin, and where the last one ends.

    Args:
        ends: of the shards, where windows are to be cut if possible; None where what follows is read on anyway.
    """
    count = max(1, -(-(stop - start) // window))
    inner = start + (stop - start) * np.arange(1, count) // count
    if ends is not None:
        after = np.searchsorted(ends, inner)
        above, below = ends[after], ends[np.maximum(after - 1, 0)]
        nearest = np.where(inner - below < above - inner, below, above)
        inner = np.where((start < nearest) & (nearest < stop), nearest, inner)
    return np.unique(np.concatenate([[start], inner, [stop]]))


def random_words(seed: int, count: int, *address: int) -> NDArray[np.uint64]:
    """Random words that belong to an address."""
    # Not Generator.permutation: NumPy keeps the raw words the same across versions, not its methods.
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=address)).random_raw(count)
