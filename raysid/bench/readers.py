"""The two sides of a comparison of reading: the stream as the fake-score learner has it, and a DataLoader.

Each is an actor that does nothing with the images: both come to a process of their own.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from itertools import count
from typing import Any, NamedTuple

import torch

from raysid.actors.build import image_stream
from raysid.bench.loader import image_loader
from raysid.config import Config
from raysid.data import ImageSource, ImageStream, ray_blocks
from raysid.errors import RunFailed

Batches = Generator[tuple[Any, Any], None, None]


class Taken(NamedTuple):
    """Images that came, and the seconds that they took."""

    images: int
    seconds: float


class Reader(ABC):
    """Reads batches for nobody, one side's way. It is opened and closed in turns: closed it does nothing."""

    what: str

    def __init__(self, config: Config, source: ImageSource) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.source = source
        self._batches: Batches | None = None

    @abstractmethod
    def batches(self, seed: int) -> Batches:
        """Batches without end, from the beginning of an order that the seed gives."""

    def name(self) -> str:
        """Whose side it is, told once the process is there."""
        return self.what

    def open(self, seed: int) -> Taken:
        """Begin; the first batch. Raises RunFailed."""
        began = time.perf_counter()
        self._batches = self.batches(seed)
        return Taken(self._next(), time.perf_counter() - began)

    def take(self, images: int) -> Taken:
        """The next images, in whole batches. Raises RunFailed."""
        began = time.perf_counter()
        taken = 0
        while taken < images:
            taken += self._next()
        return Taken(taken, time.perf_counter() - began)

    def close(self) -> None:
        """End what reads ahead, and its processes."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _next(self) -> int:
        assert self._batches is not None
        try:
            return len(next(self._batches)[1])
        except RunFailed:
            raise
        except Exception as error:
            # What a worker of torch raises comes with its trace, the error at the end of it.
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RunFailed(f"{self.what} failed: {reason}") from error


class StreamReader(Reader):
    """The stream of a run's real images, read by Ray Data's workers."""

    what = "the stream"

    def batches(self, seed: int) -> Batches:
        size = self.config.batch_size
        stream: ImageStream = image_stream(self.config.data, seed, self.source, ray_blocks(self.source))
        with stream:
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
