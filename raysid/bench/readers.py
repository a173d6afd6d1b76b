"""The two sides of a comparison of reading: the stream as the fake-score learner has it, and a DataLoader.

Nothing is done with the images: both come to a process of their own.
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

from raysid.bench.loader import image_loader
from raysid.config import Config
from raysid.data import ImageSource, ray_blocks
from raysid.errors import RunFailed
from raysid.roles.build import image_stream

CLOSE_SECONDS = 2.0

Batches = Generator[tuple[Any, Any], None, None]


class Turn(NamedTuple):
    """A round of one side.

    Attributes:
        first_batch: seconds from opening to the first batch; not part of the others.
        images: those counted.
        seconds: that they took.
    """

    first_batch: float
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


class Reader(ABC):
    """Reads batches for nobody, one side's way."""

    what: str

    def __init__(self, config: Config, source: ImageSource) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.source = source

    @abstractmethod
    def batches(self, seed: int) -> Batches:
        """Batches without end, from the beginning of an order that the seed gives; closing it ends its processes."""

    def turn(self, seed: int, seconds: float) -> Turn:
        """Read for so long or a little longer. Closed afterwards: what is read ahead would cost the other side time.

        Counting begins when half of that time has been read without a pause, since more may be made while the first
        batch is waited for than is taken with it. It ends where a window or an epoch does, so that what their ends
        cost is counted as often as in a long run.

        Raises:
            RunFailed: it cannot be read.
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
            # What a worker of torch raises comes with its trace, the error at the end of it.
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RunFailed(f"{self.what} failed: {reason}") from error

    def _read(self, batches: Batches, seconds: float) -> tuple[int, float]:
        """Images read and seconds taken: as many as one window has at least; whole epochs from half of one on."""
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
        raise AssertionError("an epoch follows another without end")


def _ends(window: int, epoch: int) -> range:
    """Where the windows of an epoch end; the last one perhaps earlier."""
    return range(window, epoch + window, window)


class StreamReader(Reader):
    """The stream of a run's real images, read by Ray Data's workers."""

    what = "the stream"

    def ready(self) -> None:
        """Answers once its process is there."""

    def batches(self, seed: int) -> Batches:
        size = self.config.batch_size
        config = self.config.model_copy(update={"seed": seed})
        with image_stream(config, self.source, ray_blocks(self.source)) as stream:
            for start in count(0, size):
                yield stream.read(start, size)


class LoaderReader(Reader):
    """A DataLoader over the same files.

    Args:
        workers: its processes.
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
    """A `LoaderReader` in a process of its own, in which Ray is not: torch forks the workers.

    Args:
        config, source, workers: as `LoaderReader` has them.
    """

    def __init__(self, config: Config, source: ImageSource, workers: int) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config, source, workers))
        self._process.start()
        theirs.close()  # so that what is sent ends where the process does

    def turn(self, seed: int, seconds: float) -> Turn:
        """As `Reader.turn`."""
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
        self._process.join(CLOSE_SECONDS)  # it notices, unless it is in the midst of a turn
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, config: Config, source: ImageSource, workers: int) -> None:
    """Take turns until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's to act on
    set_start_method(None, force=True)  # as everywhere; a spawned process would have its own spawned, too
    reader = LoaderReader(config, source, workers)
    with suppress(EOFError):
        while True:
            seed, seconds = pipe.recv()
            try:
                answer: Turn | RunFailed = reader.turn(seed, seconds)
            except RunFailed as failed:
                answer = failed
            pipe.send(answer)
