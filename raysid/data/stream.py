"""Real images by address: an endless, shuffled stream in which every position holds a known image.

The stream is epoch after epoch of the whole set. An epoch is cut into windows of the source's canonical
order, and each window is permuted by a permutation that depends on (seed, epoch, window) alone. So what
stands at a position depends neither on who reads it nor on what was read before: ranks take slices of one
stream, and a checkpoint's cursor is the number of images consumed.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import Block

if TYPE_CHECKING:
    import ray.data

PURPOSE = 0x5EA1  # keeps the permutations apart from whatever else is drawn from the run's seed
CLOSE_SECONDS = 5.0

T = TypeVar("T")
Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (n, C, H, W) and their labels (n,)."""


class ImageStream:
    """Real images by their position in the global stream.

    Where the whole set fits the window it is read once and kept, as uint8; later epochs only permute it.
    Otherwise one window is held, and read afresh every epoch. Reading onwards costs nothing extra, nor does
    anything within the window held. Skipping forward reads what lies between and drops it. Going back behind
    the window held opens the source again and skips from the set's first image: up to one pass over the
    set, paid once by a resume.

    For one caller at a time. Does not pickle: make it in the process that reads.

    Args:
        read_blocks: starts a new pass over the set, in the same order each time: `ImageSource.blocks`,
            or `ray_blocks(dataset)`.
        num_images: images in one pass.
        seed: the run's seed, at least 0.
        window: images shuffled together, and the most that is held in memory (besides one block). Part of the
            order: a resumed run needs the same one (all windows that hold the whole set are the same).
        prefetch: a thread prepares the next read while the caller computes. It expects the stride of the
            last two reads where they agree (a rank among several), else the position where the last ended.
            A wrong guess costs time, never another image.

    Attributes:
        wait_seconds: seconds that callers have spent in `read`, in all.
    """

    def __init__(
        self,
        read_blocks: Callable[[], Iterable[Block]],
        num_images: int,
        seed: int,
        window: int,
        *,
        prefetch: bool = False,
    ) -> None:
        if num_images < 1 or window < 1 or seed < 0:
            raise ValueError(
                f"an image stream needs num_images >= 1, window >= 1 and seed >= 0, "
                f"not {num_images}, {window} and {seed}"
            )
        self.num_images = num_images
        self.seed = seed
        self.window = min(window, num_images)
        self.wait_seconds = 0.0
        self._windows = _Windows(read_blocks, num_images, self.window)
        self._order: tuple[tuple[int, int], NDArray[np.intp]] | None = None
        self._ahead: _Ahead | None = None
        self._last_start = 0
        self._last_stride = 0
        self._closed = False
        self._thread: _CallThread | None = None
        if prefetch:
            self._thread = _CallThread("raysid-images")
            weakref.finalize(self, self._thread.finish)  # a stream dropped unclosed leaves no thread

    def read(self, start: int, count: int) -> Images:
        """Images `start` to `start + count` of the stream: uint8 (count, C, H, W) and int64 labels (count,).

        The arrays are the caller's own. `start` counts images consumed since the run's first, over all
        ranks; the range may cross the ends of windows and epochs.

        Raises:
            ValueError: a negative start or a count below 1; or the source yielded another number of images
                than `num_images`, or blocks that are not uint8 images with their labels.
            RuntimeError: the stream is closed. Whatever `read_blocks` raises comes through as it is; the
                next read opens the source again.
        """
        if start < 0 or count < 1:
            raise ValueError(f"cannot read {count} images at position {start}")
        if self._closed:
            raise RuntimeError("the image stream is closed")
        began = time.perf_counter()
        try:
            return self._gather(start, count) if self._thread is None else self._from_thread(start, count)
        finally:
            self.wait_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Stops the thread and the source. Waits a few seconds at most for a read that is under way."""
        if self._closed:
            return
        self._closed = True
        self._windows.stopping.set()
        if self._thread is None:
            self._windows.close()
        else:
            if self._ahead is not None:
                self._ahead.result.cancel()
            self._thread.submit(self._windows.close)  # there: a generator is closed by the thread it runs in
            self._thread.finish()
            self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _from_thread(self, start: int, count: int) -> Images:
        """The read that the thread has ready, or else one that it does now; then has it start the next."""
        assert self._thread is not None
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead.start, ahead.count) == (start, count):
            images = ahead.result.result()
        else:
            if ahead is not None:
                ahead.result.cancel()
            images = self._thread.submit(partial(self._gather, start, count)).result()

        stride = start - self._last_start
        steady = stride == self._last_stride and stride >= count
        self._last_start, self._last_stride = start, stride
        following = start + (stride if steady else count)
        pending = self._thread.submit(partial(self._gather, following, count))
        self._ahead = _Ahead(following, count, pending)
        return images

    def _gather(self, start: int, count: int) -> Images:
        pieces: list[Images] = []
        while count > 0:
            epoch, position = divmod(start, self.num_images)
            window, first = divmod(position, self.window)
            images, labels = self._windows.load(window)
            rows = self._permutation(epoch, window, len(labels))[first : first + count]
            pieces.append((images[rows], labels[rows]))
            start += len(rows)
            count -= len(rows)
        if len(pieces) == 1:
            return pieces[0]
        all_images, all_labels = zip(*pieces, strict=True)
        return np.concatenate(all_images), np.concatenate(all_labels)

    def _permutation(self, epoch: int, window: int, size: int) -> NDArray[np.intp]:
        if self._order is None or self._order[0] != (epoch, window):
            key = np.random.SeedSequence(self.seed, spawn_key=(PURPOSE, epoch, window))
            # Not Generator.permutation: NumPy keeps the raw words the same across versions, not its methods.
            words = np.random.Philox(key).random_raw(size)
            self._order = (epoch, window), np.argsort(words, kind="stable")
        return self._order[1]


@dataclass(frozen=True)
class _Ahead:
    """A read that the thread was asked for before the caller came for it."""

    start: int
    count: int
    result: Future[Images]


class _Windows:
    """Windows of the canonical order, one at a time, read from passes over the source."""

    def __init__(self, read_blocks: Callable[[], Iterable[Block]], num_images: int, window: int) -> None:
        self.read_blocks = read_blocks
        self.num_images = num_images
        self.window = window
        self.stopping = threading.Event()
        self._blocks: Iterator[Block] | None = None
        self._rest: Block | None = None  # of the block that the last window ended in
        self._position = 0  # images of this pass taken so far
        self._loaded: int | None = None
        self._images: NDArray[np.uint8] | None = None  # (window, C, H, W), filled anew for every window
        self._labels = np.empty(window, np.int64)

    def load(self, index: int) -> Images:
        """Window `index` in canonical order; valid until the next call."""
        first = index * self.window
        size = min(self.window, self.num_images - first)
        if self._loaded != index:
            self._loaded = None
            try:
                self._fill(first, size)
            except BaseException:
                self.close()  # a pass that broke is not continued: the next read starts a new one
                raise
            self._loaded = index
        assert self._images is not None
        return self._images[:size], self._labels[:size]

    def close(self) -> None:
        """Ends the pass under way, if any. The window held stays."""
        blocks, self._blocks, self._rest = self._blocks, None, None
        close = getattr(blocks, "close", None)
        if close is not None:
            close()  # at once: Ray Data goes on producing until its iterator is closed or collected

    def _fill(self, first: int, size: int) -> None:
        if self._blocks is None or self._position > first:
            self.close()
            self._blocks = iter(self.read_blocks())
            self._position = 0
        while self._position < first:
            self._take(first - self._position)
        filled = 0
        while filled < size:
            block = self._take(size - filled)
            taken = slice(filled, filled + len(block["label"]))
            if self._images is None:
                self._images = np.empty((self.window, *block["image"].shape[1:]), np.uint8)
            self._images[taken] = block["image"]
            self._labels[taken] = block["label"]
            filled = taken.stop
        if first + size == self.num_images:
            if self._next_block() is not None:
                raise ValueError(f"the source yields more images than the {self.num_images} it announced")
            self.close()

    def _take(self, most: int) -> Block:
        """The next images of the pass: at least one and at most `most`, never across two blocks."""
        block = self._next_block()
        if block is None:
            raise ValueError(
                f"the source yielded {self._position} images, not the {self.num_images} it announced"
            )
        length = len(block["label"])
        if length > most:
            self._rest = Block(image=block["image"][most:], label=block["label"][most:])
            block = Block(image=block["image"][:most], label=block["label"][:most])
        self._position += min(length, most)
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
                f"expected, after image {self._position} of a pass"
            )
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"the source yielded labels of {labels.dtype} {labels.shape} for {len(images)} images, "
                f"after image {self._position} of a pass"
            )


class _CallThread:
    """A daemon thread that makes calls one after another: the source is only ever driven by one thread."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future, Callable[[], object]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=_make_calls, args=(self._calls,), name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def finish(self) -> None:
        """Lets the thread end after the calls submitted so far."""
        self._calls.put(None)

    def join(self, timeout: float) -> None:
        """Waits for the thread's end, up to `timeout` seconds."""
        self._thread.join(timeout)


def _make_calls(calls: SimpleQueue[tuple[Future, Callable[[], object]] | None]) -> None:
    while (submitted := calls.get()) is not None:
        future, call = submitted
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
        del submitted, future, call  # holds no stream while it waits, so that a dropped one can be collected


def ray_blocks(
    data: ray.data.Dataset | ray.data.DataIterator, batch_size: int | None = None
) -> Callable[[], Iterator[Block]]:
    """`read_blocks` for an `ImageStream`: every call runs `data` once more, here, in order.

    The result pickles, so it can be made on the driver and handed to the actor that reads; so can `data`.
    Hand over a whole Dataset rather than a shard that Ray cut: the stream's addresses do the cutting.

    Args:
        data: columns image (C, H, W) uint8 and label int64; `ImageSource.dataset()` is one. Its context must
            have `preserve_order` set.
        batch_size: images in a block; None takes the blocks as they come, without copies.

    Raises (from the call):
        ValueError: `data` does not keep its order.
        RuntimeError: a read task failed; one line with its own error, the full one as its cause.
    """
    return partial(_run_dataset, data, batch_size)


def _run_dataset(data: ray.data.Dataset | ray.data.DataIterator, batch_size: int | None) -> Iterator[Block]:
    from ray.data import DataIterator
    from ray.exceptions import RayTaskError

    iterator = data if isinstance(data, DataIterator) else data.iterator()
    if not iterator.get_context().execution_options.preserve_order:
        raise ValueError(
            "this Ray Dataset does not keep its order, which the image stream relies on; "
            "set dataset.context.execution_options.preserve_order = True"
        )
    _quieten_ray_data()
    # Ray's annotation lacks the None that its documentation offers.
    batches = iterator.iter_batches(batch_size=cast(int, batch_size), batch_format="numpy")
    running = cast(Generator[dict[str, Any], None, None], iter(batches))
    try:
        for batch in running:
            yield Block(image=batch["image"], label=batch["label"])
    except RayTaskError as error:
        reason = f"{type(error.cause).__name__}: {error.cause}".partition("\n")[0]
        raise RuntimeError(f"reading the real images failed: {reason}") from error
    finally:
        running.close()


def _quieten_ray_data() -> None:
    """Takes Ray Data's notes on every execution off the console of this process; its log files keep them.

    Warnings and errors stay, but for the one that says that progress bars are off.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
