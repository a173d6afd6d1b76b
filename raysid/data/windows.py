"""Reading windows of the stream, in passes over the source."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from raysid.data.order import Order, Window
from raysid.data.source import LEFT_OUT, Block, Piece
from raysid.errors import RunFailed

# Approximate number of pieces in a pass over the source. Ray Data takes seconds to begin a pass, so passes grow while
# reading continues in order, until those seconds are negligible. They stay limited because planning one takes time,
# too.
FIRST_PASS = 512
LONGEST_PASS = 4096
LONG_BYTES = 1 << 33

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 (n, C, H, W) and their labels int64 (n,)."""
ReadBlocks = Callable[[Sequence[Piece]], Iterable[Block]]
"""A function that reads pieces of a source, in order: `ImageSource.blocks`, or `ray_blocks(source)`."""


class Loaded(NamedTuple):
    """The images and labels of a window, in the order in which they were read.

    Attributes:
        rows: the usable images in the order of the source's list; a bad image is replaced by another row.
        faults: the fault of each bad image, by its index in the source's list.
        left_out: mask of those of `rows` that replace a row that is left out, which an epoch draws anew.
        captions: the captions of each image, as in `Block`; None if the source gives none.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.intp]
    faults: dict[int, str]
    left_out: NDArray[np.bool_]
    captions: NDArray[np.object_] | None = None

    @property
    def good(self) -> NDArray[np.intp]:
        """The rows that can be used, each once, in the order of the source's list."""
        first = np.unique(self.rows, return_index=True)[1]
        return self.rows[np.sort(first)]


class Passes:
    """A reader of one window after another, in passes over the source.

    Args:
        windows: in the order in which they are needed.
        what: the kind of the rows, for messages.

    Attributes:
        abandoned: set it from any thread to end a read after its current block.
    """

    def __init__(
        self, read_blocks: ReadBlocks, order: Order, windows: Iterator[Window], what: str = "real images"
    ) -> None:
        self.read_blocks = read_blocks
        self.order = order
        self.what = what
        self.abandoned = False
        self._windows = windows
        self._plan: deque[Window] = deque()
        self._longest = FIRST_PASS
        self._pieces: list[Piece] = []  # of the current pass
        self._blocks: Iterator[Block] | None = None
        self._rest: Block | None = None  # of the block in which the last window ended
        self._taken = 0  # images read in this pass
        self._shape: tuple[int, ...] | None = None
        self._plan_pass()

    @property
    def following(self) -> Window | None:
        """The next window, or the one that is being read; None at the end."""
        return self._plan[0] if self._plan else None

    def advance(self) -> None:
        """Proceed to the next window."""
        self._plan.popleft()
        if not self._plan:
            self._plan_pass()

    def read(self) -> Loaded:
        """Read the window `following`, which stays the same until `advance`.

        Raises:
            ValueError: the source returns another number of images than its shards have, or blocks of another form.
            RunFailed: none of the window's images can be used.
            RuntimeError: abandoned.
            Exception: whatever `read_blocks` raises.
        """
        window = self._plan[0]
        loaded = self._load(window)
        return loaded if len(loaded.rows) else self._replacement(window, loaded)

    def _load(self, window: Window) -> Loaded:
        """Read a window, which is next in the pass. `rows` is empty if all of its images are bad."""
        if self._blocks is None:
            self._blocks, self._taken = iter(self.read_blocks(self._pieces)), 0
        images: NDArray[Any] | None = None
        labels = np.empty(window.size, np.int64)
        captions = np.empty(window.size, object)
        indices = self.order.indices(self.order.pieces(window))  # unless blocks have their own
        bad: dict[int, str] = {}  # by row
        left_out = np.zeros(window.size, bool)
        filled = 0
        while filled < window.size:
            block = self._take(window.size - filled)
            rows = slice(filled, filled + len(block["label"]))
            if images is None:
                images = np.empty((window.size, *block["image"].shape[1:]), block["image"].dtype)
            images[rows], labels[rows] = block["image"], block["label"]
            captions[rows] = captioned = block.get("caption")
            indices[rows] = block.get("index", indices[rows])
            bad |= {filled + row: fault for row, fault in enumerate(block.get("fault", ())) if fault}
            left_out[rows] = block.get("left_out", False)
            filled = rows.stop
        if len(self._plan) == 1:  # the pass is over
            if self._next_block() is not None:
                raise ValueError(
                    f"the source yields more {self.what} than the {self._expected} that its shards have"
                )
            self.close()
        assert images is not None
        order = np.argsort(indices, kind="stable")
        faults = {int(indices[row]): fault for row, fault in bad.items()}
        unused = left_out.copy()
        unused[[*bad]] = True
        usable = _without(order, unused) if unused.any() else order
        own = None if captioned is None else captions
        return Loaded(images, labels, usable, faults, left_out[order], own)

    def _replacement(self, window: Window, bad: Loaded) -> Loaded:
        """Fill a window without good images, as of a damaged file, from the next window of its lane that has some.

        If rows are left out, it is one that is drawn: a long run of them would take all from one window.

        Raises:
            RunFailed: none has any.
        """
        drawn = bool(bad.left_out.any())
        for other in self.order.others(window, drawn):
            if self.abandoned:
                raise RuntimeError(f"the stream of {self.what} was closed during a read")
            with closing(Passes(self.read_blocks, self.order, iter([other]), self.what)) as apart:
                loaded = apart._load(other)
            if len(loaded.rows):
                rows = loaded.good if drawn or loaded.left_out.any() else loaded.rows
                return loaded._replace(
                    rows=np.resize(rows, window.size), faults=bad.faults, left_out=np.zeros(window.size, bool)
                )
        why = "`raysid data check` names them"
        if drawn:
            others = "`raysid data check` names the others" if bad.faults else "give a lower minimum"
            why = f"{bad.left_out.sum():,} are left out ({LEFT_OUT}): {others}"
        raise RunFailed(f"none of {window.size:,} consecutive {self.what} can be used: {why}")

    def close(self) -> None:
        """End the current pass."""
        blocks, self._blocks, self._rest = self._blocks, None, None
        close = getattr(blocks, "close", None)
        if close is not None:
            close()  # now: Ray Data continues to read until its iterator is closed or collected

    @property
    def _expected(self) -> int:
        return sum(piece.size for piece in self._pieces)

    def _plan_pass(self) -> None:
        if self._shape is not None and self._expected * int(np.prod(self._shape)) < LONG_BYTES:
            self._longest = min(2 * self._longest, LONGEST_PASS)
        self._pieces = []
        while len(self._pieces) < self._longest and (window := next(self._windows, None)) is not None:
            self._plan.append(window)
            for piece in self.order.pieces(window):
                last = self._pieces[-1] if self._pieces else None
                if last is not None and (last.shard, last.last) == (piece.shard, piece.first):
                    self._pieces[-1] = last._replace(last=piece.last)  # one read, not two
                else:
                    self._pieces.append(piece)

    def _take(self, most: int) -> Block:
        """The next images of the pass, from one block: at least one and at most `most`."""
        block = self._next_block()
        if block is None:
            raise ValueError(
                f"the source yielded {self._taken} {self.what} where its shards have {self._expected}"
            )
        length = len(block["label"])
        if length > most:
            block, self._rest = _cut(block, slice(most)), _cut(block, slice(most, None))
        self._taken += min(length, most)
        return block

    def _next_block(self) -> Block | None:
        """The rest of the last block, or the next one that is not empty; None at the end of the pass."""
        if self._rest is not None:
            block, self._rest = self._rest, None
            return block
        assert self._blocks is not None
        for block in self._blocks:
            if self.abandoned:
                raise RuntimeError(f"the stream of {self.what} was closed during a read")
            self._check(block)
            if len(block["label"]) > 0:
                return block
        return None

    def _check(self, block: Block) -> None:
        images, labels = block["image"], block["label"]
        shape = self._shape
        fits = (images.dtype, images.ndim) in ((np.uint8, 4), (object, 1))  # images, or texts
        if not fits or (shape is not None and images.shape[1:] != shape):
            wanted = "(n, C, H, W)" if shape is None else f"(n, {', '.join(map(str, shape))})"
            raise ValueError(
                f"the source yielded images of {images.dtype} {images.shape} where uint8 {wanted} was "
                f"expected, after image {self._taken} of a pass"
            )
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"the source yielded labels of {labels.dtype} {labels.shape} for {len(images)} images, "
                f"after image {self._taken} of a pass"
            )
        self._shape = images.shape[1:]


def _cut(block: Block, rows: slice) -> Block:
    return cast(Block, {name: column[rows] for name, column in cast(dict[str, Any], block).items()})


def _without(order: NDArray[np.intp], unused: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The order with every row that is not used replaced by the next good one, cyclically; empty if none is good."""
    good = np.flatnonzero(~unused[order])
    if not len(good):
        return order[:0]
    following = np.searchsorted(good, np.arange(len(order)))
    return order[good[following % len(good)]]
