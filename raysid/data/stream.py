"""Real images by address: an endless, shuffled stream in which every position holds a known image.

The stream is epoch after epoch of the whole set. An epoch lays the source's shards in an order of its own, one
after another, and cuts that into windows; the images of each are permuted. Both orders depend on (seed, epoch,
window) alone, so what stands at a position depends neither on who reads it nor on what was read before: ranks take
slices of one stream, and a checkpoint's cursor is the number of images consumed.

Where the whole set fits one window the permutation is of the source's list: the same list in other shards, or in
files of another kind, is the same stream.

An image that cannot be used leaves no gap: its place is taken by the next good one of its window, in the order of
the source's list.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from raysid.data.source import READ_CPUS, Block, ImageSource, Piece
from raysid.data.windows import Images, ReadBlocks, Windows, random_words
from raysid.errors import UserError

if TYPE_CHECKING:
    import ray.data

PURPOSE = 0x5EA1  # keeps the permutations apart from whatever else is drawn from the run's seed
XFLIP_PURPOSE = 0x5EA3
CLOSE_SECONDS = 5.0

T = TypeVar("T")


class ImageStream:
    """Real images by their position in the global stream.

    Where the whole set fits the window it is read once and kept, as uint8; later epochs only permute it.
    Otherwise one window is held, and read afresh every epoch. Reading onwards costs nothing extra, nor does
    anything within the window held. To read anywhere else, as a resume does, starts at the window of that place.

    For one caller at a time. Does not pickle: make it in the process that reads.

    Args:
        read_blocks: reads pieces of the source, the same images each time.
        shard_sizes: images of each of its shards.
        seed: the run's seed, at least 0.
        window: images shuffled together, and the most that is held in memory (besides one block). Part of the
            order: a resumed run needs the same one (all windows that hold the whole set are the same).
        xflip: mirror each image with probability 1/2, by its place in the stream.
        max_bad_fraction: part of the set's images that may be bad, 0 to 1.
        prefetch: a thread prepares the next read while the caller computes. It expects the stride of the
            last two reads where they agree (a rank among several), else the position where the last ended.
            A wrong guess costs time, never another image.

    Attributes:
        wait_seconds: seconds that callers have spent in `read`, in all.
        faults: what is wrong with each bad image met so far, by its place in the source's list; as `Block` has it.
    """

    def __init__(
        self,
        read_blocks: ReadBlocks,
        shard_sizes: Sequence[int] | NDArray[np.int64],
        seed: int,
        window: int,
        *,
        xflip: bool = False,
        max_bad_fraction: float = 0.0,
        prefetch: bool = False,
    ) -> None:
        sizes = np.asarray(shard_sizes, np.int64)
        num_images = int(sizes.sum())
        if num_images < 1 or sizes.min() < 1 or window < 1 or seed < 0:
            raise ValueError(
                f"an image stream needs images in every shard, window >= 1 and seed >= 0, "
                f"not {num_images} images, {window} and {seed}"
            )
        self.num_images = num_images
        self.seed = seed
        self.window = min(window, num_images)
        self.xflip = xflip
        self.wait_seconds = 0.0
        self._windows = Windows(read_blocks, sizes, seed, self.window, max_bad_fraction)
        self.faults = self._windows.faults
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
                than its shards have, or blocks that are not uint8 images with their labels.
            RunFailed: more images are bad than `max_bad_fraction` of the set; names some.
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
            images, labels, listed = self._windows.load(epoch, window)
            part = slice(first, first + count)
            rows = listed[self._permutation(epoch, window, len(listed))[part]]
            taken = images[rows]
            if self.xflip:
                flips = random_words(self.seed, len(listed), XFLIP_PURPOSE, epoch, window)[part] % 2 == 1
                taken[flips] = taken[flips][..., ::-1]
            pieces.append((taken, labels[rows]))
            start += len(rows)
            count -= len(rows)
        if len(pieces) == 1:
            return pieces[0]
        all_images, all_labels = zip(*pieces, strict=True)
        return np.concatenate(all_images), np.concatenate(all_labels)

    def _permutation(self, epoch: int, window: int, size: int) -> NDArray[np.intp]:
        if self._order is None or self._order[0] != (epoch, window):
            order = np.argsort(random_words(self.seed, size, PURPOSE, epoch, window), kind="stable")
            self._order = (epoch, window), order
        return self._order[1]


@dataclass(frozen=True)
class _Ahead:
    """A read that the thread was asked for before the caller came for it."""

    start: int
    count: int
    result: Future[Images]


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


def ray_blocks(source: ImageSource, num_cpus: float = READ_CPUS) -> ReadBlocks:
    """`read_blocks` for an `ImageStream`: every call has Ray Data read its pieces, in order.

    The result pickles, so it can be made on the driver and handed to the actor that reads.

    Args:
        num_cpus: CPU slots that one read task asks for, as `shard_dataset` has it.

    Raises (from the call):
        RuntimeError: a read task failed; one line with its own error, the full one as its cause.
    """
    return partial(_run_dataset, source, num_cpus)


def _run_dataset(source: ImageSource, num_cpus: float, pieces: Sequence[Piece]) -> Iterator[Block]:
    from raysid.data.shards import shard_dataset

    return dataset_blocks(shard_dataset(source, pieces, num_cpus))


def dataset_blocks(dataset: ray.data.Dataset) -> Iterator[Block]:
    """The blocks of a Dataset whose columns are those of `Block`, without copies.

    Raises:
        UserError: the source cannot be read.
        RuntimeError: a read task failed otherwise.
    """
    from ray.exceptions import RayTaskError

    quieten_ray_data()
    # Ray's annotation lacks the None that its documentation offers.
    batches = dataset.iterator().iter_batches(batch_size=cast(int, None), batch_format="numpy")
    running = cast(Generator[dict[str, Any], None, None], iter(batches))
    try:
        for batch in running:
            yield cast(Block, batch)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):  # it has its line
            raise error.cause from error
        reason = f"{type(error.cause).__name__}: {error.cause}".partition("\n")[0]
        raise RuntimeError(f"reading the real images failed: {reason}") from error
    finally:
        running.close()


def quieten_ray_data() -> None:
    """Takes Ray Data's notes on every execution off the console of this process; its log files keep them.

    Warnings and errors stay, but for the one that says that progress bars are off.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
