"""The order of real images: the image at each position of the stream. Reads nothing.

The stream repeats the whole set, epoch by epoch. An epoch shuffles the source's shards, concatenates them and divides
the result into lanes: lane i holds the images of the i-th part of every batch. Each lane is divided into windows, whose
images are permuted. So a rank, which has a part of every batch, needs the windows of a few lanes only. The image at a
position depends on (seed, epoch), the batch size and the number of lanes, not on the reader.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import Piece, random_permutation, random_words

PURPOSE = 0x5EA1  # separates the permutations from other draws of the run's seed
SHARDS_PURPOSE = 0x5EA2
XFLIP_PURPOSE = 0x5EA3
REPLACED_PURPOSE = 0x5EA6
EPOCHS_KEPT = 2  # at the end of one the next is needed, too


class Window(NamedTuple):
    """Images that are shuffled together, and read together.

    Attributes:
        epoch: 0 for a window that holds the whole set, in every epoch.
        lane: the lane that it is part of.
        number: its number in the lane and epoch.
        first, last: its images in the epoch's order, `last` exclusive.
        begin, end: the positions in the stream of its first image, and of its last one plus 1.
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


class Location(NamedTuple):
    """The location of a position of the stream: a row of a window's permutation.

    Attributes:
        row: the row in the permutation.
        epoch: the epoch whose permutation of the window it is.
        run: number of consecutive positions, from this one on, that are consecutive rows.
    """

    window: Window
    row: int
    epoch: int
    run: int


@dataclass(frozen=True)
class _Epoch:
    """The order of shards in an epoch, and its lanes.

    Attributes:
        shards: the shards' numbers, in this epoch's order.
        ends: the end of each shard in the epoch's order of images.
        before: images of each lane in all earlier epochs.
        cuts: for each lane, the starts of its windows in the epoch's order of images, and the end of the last.
    """

    shards: NDArray[np.intp]
    ends: NDArray[np.int64]
    before: list[int]
    cuts: list[NDArray[np.int64]]


class Order:
    """The order of a set of images in shards.

    It depends only on the numbers of images, so it can order other samples, too.

    Args:
        sizes: images in each shard.
        seed: the run's seed, at least 0.
        window: images shuffled together, over all lanes. If it holds the whole set there is one window, whose
            permutation is one of the source's list: the same list in other shards gives the same stream.
        batch_size: images per step, over all ranks.
        lanes: number of lanes. Fewer are used if a batch has fewer images, or if windows would be smaller than shards,
            which are read from their start.

    Attributes:
        held: True if one window holds the whole set.
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
        """Return the lanes of parts of a batch, each given by its first offset and the offset after its last."""
        return {self._lane(offset) for begin, end in parts for offset in range(begin, end)}

    def locate(self, position: int) -> Location:
        """Return the location of the image at a position of the stream."""
        number, within = divmod(position, self.num_images)
        if self.held:
            return Location(self._whole, within, number, self.num_images - within)
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
        return Location(window, at - window.first, number, run)

    def windows_from(self, position: int, lanes: Iterable[int]) -> Iterator[Window]:
        """Iterate over the windows of some lanes from a position on, in the order in which they are needed; endless.

        If one window holds the whole set, it is the only one.
        """
        if self.held:
            return iter([self._whole])
        return heapq.merge(
            *(self._lane_windows(lane, position) for lane in lanes), key=lambda window: window.begin
        )

    def others(self, window: Window, drawn: bool = False) -> Iterator[Window]:
        """Iterate over the other windows of the same lane and epoch, those after it first.

        Args:
            drawn: in an order that is drawn for the window, instead.
        """
        count = 1 if self.held else len(self._epoch(window.epoch).cuts[window.lane]) - 1
        steps = np.arange(1, count)
        if drawn:
            address = self._address(window, window.epoch)
            steps = steps[random_permutation(self.seed, len(steps), REPLACED_PURPOSE, *address)]
        for step in steps.tolist():
            yield self._window(window.epoch, window.lane, (window.number + step) % count)

    def replacements(
        self, window: Window, epoch: int, rows: NDArray[np.intp], count: int
    ) -> NDArray[np.intp]:
        """Draw `count` of a window's rows for an epoch, each of them about equally often."""
        order = random_permutation(self.seed, len(rows), REPLACED_PURPOSE, *self._address(window, epoch))
        return np.resize(rows[order], count)

    def pieces(self, window: Window) -> list[Piece]:
        """Return the pieces of shards that form a window, in order."""
        if self.held:  # another order would only change which memory is read
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

    def indices(self, pieces: Sequence[Piece]) -> NDArray[np.int64]:
        """Return the index in the source's list of each image of some pieces."""
        return np.concatenate([self.starts[shard] + np.arange(first, last) for shard, first, last in pieces])

    def permutation(self, window: Window, epoch: int) -> NDArray[np.intp]:
        """Return a window's permutation p in an epoch: row i shows image p[i], counted in the list's order."""
        return random_permutation(self.seed, window.size, PURPOSE, *self._address(window, epoch))

    def flips(self, window: Window, epoch: int) -> NDArray[np.bool_]:
        """Return a mask of the rows that are mirrored in an epoch: bool (n,), each with probability 1/2."""
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
        """Images of a lane before a position of the stream."""
        begin, end = self._bounds[lane], self._bounds[lane + 1]
        batches, offset = divmod(position, self.batch_size)
        return batches * (end - begin) + min(max(offset - begin, 0), end - begin)

    def _position(self, lane: int, number: int) -> int:
        """The position in the stream of image `number` of a lane."""
        begin, end = self._bounds[lane], self._bounds[lane + 1]
        batches, offset = divmod(number, end - begin)
        return batches * self.batch_size + begin + offset

    def _lane_windows(self, lane: int, position: int) -> Iterator[Window]:
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
        shards = random_permutation(self.seed, len(self.sizes), SHARDS_PURPOSE, number)
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
    """Return the start of each window of about `window` images in start to stop, and the end of the last.

    Args:
        ends: ends of shards, at which windows are cut if possible; None if the next images are read in any case.
    """
    count = max(1, -(-(stop - start) // window))
    inner = start + (stop - start) * np.arange(1, count) // count
    if ends is not None:
        after = np.searchsorted(ends, inner)
        above, below = ends[after], ends[np.maximum(after - 1, 0)]
        nearest = np.where(inner - below < above - inner, below, above)
        inner = np.where((start < nearest) & (nearest < stop), nearest, inner)
    return np.unique(np.concatenate([[start], inner, [stop]]))
