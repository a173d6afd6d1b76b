"""Prompts by their position in an endless, shuffled stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Self

import numpy as np

from raysid.config.prompts import PromptSettings
from raysid.data.prompts.source import SEPARATOR, PromptSource
from raysid.data.source import Block, Piece, random_words
from raysid.data.stream import ImageStream
from raysid.data.windows import ReadBlocks

COLUMN_PURPOSE = 0x5EA5  # separates the choice of columns from other draws of the run's seed

ReadPrompts = Callable[[PromptSource], ReadBlocks]
"""Makes the reader of a source: `in_process`, or `ray_blocks` for one through Ray Data."""


def in_process(source: PromptSource) -> ReadBlocks:
    """Return a reader in this process."""
    return source.blocks


class PromptStream:
    """Prompts by their position in the stream: a pure function of the seed, the epoch and the set.

    Of several columns one is drawn for each row in each epoch, by its weight among those that have a text there. For
    one caller at a time.

    Args:
        seed: the run's seed.
        batch_size: prompts of a batch, which is part of the order.
        read: makes the reader of the source.
    """

    def __init__(
        self,
        source: PromptSource,
        settings: PromptSettings,
        seed: int,
        batch_size: int,
        read: ReadPrompts = in_process,
    ) -> None:
        self.seed = seed
        self.weights = np.array([*source.columns.values()])
        self._stream = ImageStream(
            _numbered(read(source), source),
            source.shard_sizes,
            seed,
            settings.shuffle_window,
            batch_size=batch_size,
            max_bad_fraction=settings.max_bad_fraction,
            prefetch=source.num_prompts > settings.shuffle_window,
            what=source.what,
        )

    @property
    def faults(self) -> dict[int, str]:
        """The fault of each prompt read so far that cannot be used, by its index in the source."""
        return self._stream.faults

    def read(self, start: int, count: int) -> list[str]:
        """Return the prompts at positions `start` to `start + count`.

        Raises:
            RunFailed: too many prompts cannot be used, or the source can no longer be read.
        """
        rows, numbers = self._stream.read(start, count)
        if len(self.weights) == 1:
            return list(rows)
        epochs = np.arange(start, start + count) // self._stream.num_images
        return [self._chosen(*drawn) for drawn in zip(rows, epochs.tolist(), numbers.tolist(), strict=True)]

    def close(self) -> None:
        """End reading ahead."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _chosen(self, row: str, epoch: int, number: int) -> str:
        texts = row.split(SEPARATOR)
        weights = np.where([bool(text) for text in texts], self.weights, 0.0).cumsum()
        drawn = int(random_words(self.seed, 1, COLUMN_PURPOSE, epoch, number)[0]) * 2.0**-64
        return texts[
            int(np.searchsorted(weights / weights[-1], drawn, side="right").clip(max=len(texts) - 1))
        ]


def _numbered(read_blocks: ReadBlocks, source: PromptSource) -> ReadBlocks:
    """Return a reader whose rows have their number in the source as labels."""
    starts = np.cumsum(source.shard_sizes) - source.shard_sizes

    def numbered(pieces: Sequence[Piece]) -> Iterator[Block]:
        numbers = chain.from_iterable(
            range(starts[piece.shard] + piece.first, starts[piece.shard] + piece.last) for piece in pieces
        )
        for block in read_blocks(pieces):
            own = np.fromiter(islice(numbers, len(block["label"])), np.int64)
            yield block | {"label": np.resize(own, len(block["label"]))}  # the stream refuses surplus rows

    return numbered
