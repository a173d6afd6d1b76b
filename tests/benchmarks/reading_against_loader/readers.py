"""The two sides of the comparison: the stream as the fake-score learner reads it, and a DataLoader.

Each reads in a process of its own, which does nothing else.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import closing, suppress
from itertools import count
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from raysid.config import Config
from raysid.data import ImageSource, ray_blocks
from raysid.errors import RunFailed
from raysid.roles.build import image_stream
from tests.benchmarks.reading_against_loader.loader import image_loader

CLOSE_SECONDS = 2.0

Batches = Generator[tuple[Any, Any], None, None]


class Turn(NamedTuple):
    """A round of one side.

    Attributes:
        first_batch: seconds from opening to the first batch; not part of `seconds`.
        images: number of images counted.
        seconds: time that they took.
    """

    first_batch: float
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


class Reader(ABC):
    """Reads batches the way of one side, and drops them."""

    what: str

    def __init__(self, config: Config, source: ImageSource) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.source = source

    @abstractmethod
    def batches(self, seed: int) -> Batches:
        """Yield batches without end, in an order that the seed determines; closing ends the processes."""

    def turn(self, seed: int, seconds: float) -> Turn:
        """Read for at least so many seconds, then close: reading ahead would slow down the other side.

        Counting begins after half of that time, when the batches made during the wait for the first one are used
        up. It ends with a window or an epoch, so that the cost of their ends counts as often as in a long run.

        Raises:
            RunFailed: reading failed.
        """
        try:
            with closing(self.batches(seed)) as batches:
                began = time.perf_counter()
                next(batches)
                first = time.perf_counter() - began
                self._read(batches, seconds / 2)
                return Turn(first, *self._read(batches, seconds))
        except RunFailed:
            raise
        except Exception as error:
            # An error of torch's worker contains its traceback; the last line is the error itself.
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RunFailed(f"{self.what} failed: {reason}") from error

    def _read(self, batches: Batches, seconds: float) -> tuple[int, float]:
        """Return images and seconds of at least one window; of whole epochs once half of one is read."""
        epoch = self.source.num_images
        window = min(self.config.data.shuffle_window, epoch)
        began = time.perf_counter()
        images = 0
        for mark in (number * epoch + min(end, epoch) for number in count() for end in _ends(window, epoch)):
            while images < mark:
                images += len(next(batches)[1])
            took = time.perf_counter() - began
            if took >= seconds and (mark < epoch / 2 or mark % epoch == 0):
                return images, took
        raise AssertionError("epochs have no end")


def _ends(window: int, epoch: int) -> range:
    """Return the ends of an epoch's windows; the last window may be shorter."""
    return range(window, epoch + window, window)


class StreamReader(Reader):
    """The stream of a run's real images, read by workers of Ray Data."""

    what = "the stream"

    def ready(self) -> None:
        """Return when the actor has started."""

    def batches(self, seed: int) -> Batches:
        size = self.config.batch_size
        config = self.config.model_copy(update={"seed": seed})
        with image_stream(config, self.source, ray_blocks(self.source)) as stream:
            for start in count(0, size):
                yield stream.read(start, size)


class LoaderReader(Reader):
    """A DataLoader over the same files.

    Args:
        workers: number of worker processes.
    """

    what = "the DataLoader"

    def __init__(self, config: Config, source: ImageSource, workers: int) -> None:
        super().__init__(config, source)
        self.workers = workers

    def batches(self, seed: int) -> Batches:
        loader = image_loader(self.source, self.config.data, self.config.batch_size, self.workers, seed)
        while True:
            yield from loader


class LoaderProcess:
    """A `LoaderReader` in a process of its own without Ray, since torch forks the workers.

    Args:
        config, source, workers: as for `LoaderReader`.
    """

    def __init__(self, config: Config, source: ImageSource, workers: int) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config, source, workers))
        self._process.start()
        theirs.close()  # so that the pipe breaks when the process dies

    def turn(self, seed: int, seconds: float) -> Turn:
        """Call `Reader.turn` in the process."""
        try:
            self._pipe.send((seed, seconds))
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise RunFailed(f"{LoaderReader.what} failed: its process died") from None
        if isinstance(answer, RunFailed):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(CLOSE_SECONDS)  # it ends by itself, unless it is in a turn
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, config: Config, source: ImageSource, workers: int) -> None:
    """Take turns until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent to handle
    set_start_method(None, force=True)  # a spawned process spawns its children by default, too
    reader = LoaderReader(config, source, workers)
    with suppress(EOFError):
        while True:
            seed, seconds = pipe.recv()
            try:
                answer: Turn | RunFailed = reader.turn(seed, seconds)
            except RunFailed as failed:
                answer = failed
            pipe.send(answer)
