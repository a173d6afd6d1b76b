"""A source read through Ray Data: pieces of its shards as read tasks.

Ray Data takes a second to import, which a run in one process does not need: import this module late.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ExecutionResources, ReadTask
from ray.data.block import Block as RayBlock
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.context import DataContext
from ray.exceptions import RayTaskError

from raysid.data.source import READ_CPUS, Block, Piece, Source
from raysid.errors import UserError
from raysid.ray_internals import PROGRESS_LOG

# Images per read task. Ray Data polls for finished tasks ten times a second, and a core may wait 0.2 s for its next
# task, so tasks are long. The first are short: with few long tasks, most of many cores would have nothing to do.
FIRST_TASKS = 1024
LONGEST_TASKS = 16384
TASK_BYTES = 1 << 24, 1 << 26  # shorter with many cores, so that the output of all tasks fits this limit
BLOCK_BYTES = 1 << 23  # bytes that a task yields at a time
READ_AHEAD_BYTES = 1 << 26, 1 << 32  # limits of the bytes of images in the object store


def shard_dataset(
    source: Source, pieces: Sequence[Piece] | None = None, num_cpus: float = READ_CPUS
) -> ray.data.Dataset:
    """A lazy Dataset of `source` with the columns of its blocks, in order; a read task reads consecutive pieces.

    Args:
        pieces: what to read, in order; None for all shards.
        num_cpus: CPU slots per read task. Ray Data waits for ever if the cluster has fewer free, and roles
            hold slots, too: hence a fraction. Where decoding dominates and CPUs are many, 1 keeps tasks from
            competing.
    """
    pieces = source.pieces() if pieces is None else pieces
    # One task per core, although a task asks for a fraction of one, and one more that starts while Ray handles a
    # finished one. More would each start a process only to wait.
    tasks = 1 + max(1, int(ray.cluster_resources().get("CPU", 1)))
    datasource = _ShardDatasource(source, pieces, tasks)
    number = len(datasource.tasks)
    dataset = ray.data.read_datasource(
        datasource, num_cpus=num_cpus, concurrency=min(tasks, number), override_num_blocks=number
    )
    # The Dataset's own copy of the settings: it travels with the Dataset, and does not affect the user's other
    # Datasets.
    dataset.context.target_max_block_size = BLOCK_BYTES
    # Without a limit Ray Data reads until half of the object store is full, while the roles need their cores. Blocks
    # stay there until all earlier tasks are done; with less room than this, cores would wait for that.
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=min(
            max(READ_AHEAD_BYTES[0], 2 * tasks * datasource.task_bytes), READ_AHEAD_BYTES[1]
        )
    )
    # Off by default: blocks are then ordered by completion.
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


class _ShardDatasource(Datasource):
    """Read tasks of some pieces each.

    Args:
        at_once: number of tasks that run at a time.

    Attributes:
        row_bytes: bytes of an image and its label.
        task_bytes: about the most bytes that a task yields, unless a piece is larger and cannot be split.
    """

    def __init__(self, source: Source, pieces: Sequence[Piece], at_once: int) -> None:
        super().__init__()
        self.name = source.name
        self.row_bytes = source.row_bytes
        most = min(max(TASK_BYTES[0], READ_AHEAD_BYTES[1] // (2 * at_once)), TASK_BYTES[1])
        longest = max(1, min(LONGEST_TASKS, most // self.row_bytes))
        self.task_bytes = longest * self.row_bytes
        self.tasks: list[list[Piece]] = []
        room = 0
        if source.cut_freely:
            pieces = [part for piece in pieces for part in piece.cut(longest)]
        for piece in pieces:
            if piece.size > room:
                room = min(longest, FIRST_TASKS << min(len(self.tasks) // at_once, 16))
                self.tasks.append([])
            self.tasks[-1].append(piece)
            room -= piece.size
        # Once for all tasks: its list may be long.
        self.source = ray.put(source)

    def get_name(self) -> str:
        return self.name

    def estimate_inmemory_data_size(self) -> int:
        return sum(map(_images, self.tasks)) * self.row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read, self.source, pieces),
                BlockMetadata(
                    num_rows=_images(pieces),
                    size_bytes=_images(pieces) * self.row_bytes,
                    input_files=None,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for pieces in self.tasks
        ]


def _images(pieces: Sequence[Piece]) -> int:
    return sum(piece.size for piece in pieces)


def _read(source: ray.ObjectRef, pieces: Sequence[Piece]) -> Iterator[RayBlock]:
    for block in ray.get(source).blocks(pieces):
        batch = dict(block)
        for name, column in block.items():
            if isinstance(column, np.ndarray) and column.dtype == object:
                batch[name] = pa.array(column, pa.string())
        yield BlockAccessor.batch_to_block(batch)


def dataset_blocks(dataset: ray.data.Dataset, what: str = "real images") -> Iterator[Block]:
    """Iterate over the blocks of a Dataset with the columns of `Block`.

    Args:
        what: the kind of the rows, for messages.

    Raises:
        UserError: the source cannot be read.
        RuntimeError: a read task failed for another reason.
    """
    quieten_ray_data()
    # Ray's annotation lacks None, which its documentation allows.
    batches = dataset.iterator().iter_batches(batch_size=cast(int, None), batch_format="numpy")
    running = cast(Generator[dict[str, Any], None, None], iter(batches))
    try:
        for batch in running:
            yield cast(Block, batch)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):  # Ray Data appends its own lines
            raise UserError(str(error.cause).partition("\n")[0]) from error
        reason = f"{type(error.cause).__name__}: {error.cause}".partition("\n")[0]
        raise RuntimeError(f"reading the {what} failed: {reason}") from error
    finally:
        running.close()


def quieten_ray_data() -> None:
    """Hide Ray Data's messages about every execution from this process's console; its log files keep them.

    Warnings and errors still appear, except the warning that progress bars are off.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.WARNING)
    logging.getLogger(PROGRESS_LOG).setLevel(logging.ERROR)
