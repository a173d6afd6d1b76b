"""A source's shards as Ray Data read tasks.

Apart from `source.py` because the base class has to be imported from Ray Data, which takes a second, and a
run in one process needs none of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import Block as RayBlock
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.context import DataContext

from raysid.data.source import ImageSource


def shard_dataset(source: ImageSource, num_cpus: float) -> ray.data.Dataset:
    """A lazy Dataset of `source`: columns image (C, H, W) uint8 and label int64, in the canonical order."""
    dataset = ray.data.read_datasource(
        _ShardDatasource(source), num_cpus=num_cpus, override_num_blocks=source.num_shards
    )
    # The Dataset's own copy of the settings: it travels with the Dataset to whoever iterates over it, and
    # leaves the user's other Datasets alone.
    dataset.context.execution_options.preserve_order = True  # off by default: first done, first out
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


class _ShardDatasource(Datasource):
    """One read task a shard."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__()
        self.source = source

    def get_name(self) -> str:
        return self.source.name

    def estimate_inmemory_data_size(self) -> int:
        return self.source.num_images * _row_bytes(self.source)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        # Sizes are estimates for Ray's scheduling. The number of rows is left open: a source knows its
        # total, not how many images every shard holds.
        metadata = BlockMetadata(
            num_rows=None,
            size_bytes=self.estimate_inmemory_data_size() // self.source.num_shards,
            input_files=None,
            exec_stats=None,
        )
        return [
            ReadTask(partial(_read, self.source, index), metadata, per_task_row_limit=per_task_row_limit)
            for index in range(self.source.num_shards)
        ]


def _read(source: ImageSource, index: int) -> Iterator[RayBlock]:
    for block in source.read_shard(index):
        yield BlockAccessor.batch_to_block(dict(block))


def _row_bytes(source: ImageSource) -> int:
    channels, height, width = source.image_shape
    return channels * height * width + 8  # the label
