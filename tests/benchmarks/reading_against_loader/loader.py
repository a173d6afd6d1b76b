"""A torch DataLoader over the files of a source, to compare the stream of real images with.

It is written as for a training loop: a persistent worker for each core, which opens each file once, decodes, and makes
whole batches; a new order in every epoch. Pictures of a folder or a zip are read one by one; row groups of Parquet
files and whole tars are distributed over the workers, which shuffle within a buffer. The list of files and labels and
the decoding are those of the source, so that both sides make the same images.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from raysid.config import DataSettings
from raysid.data import ImageSource
from raysid.data.edm_zip import EDMZipSource
from raysid.data.folder import FolderSource
from raysid.data.parquet import ParquetSource
from raysid.data.pictures import MAX_PICTURE, BadPicture, Fit, decoded
from raysid.data.source import Texts
from raysid.data.webdataset import WebDatasetSource

PREFETCH = 4  # batches that a worker reads ahead; on small pictures faster than torch's 2
BUFFER_BYTES = 1 << 28  # of encoded pictures in a worker's shuffle buffer
ROWS = 256  # rows read at a time: a row group may be larger than the memory

Picture = tuple[bytes, int]
"""An encoded picture (empty if it cannot be read) and its label."""
Batch = tuple[Tensor, Tensor]
"""uint8 (n, C, H, W) and int64 (n,)."""


def no_loader(source: ImageSource) -> str | None:
    """Return why no DataLoader can read a source; None if one can."""
    if isinstance(source, FolderSource | ParquetSource | WebDatasetSource):
        first = source.paths[0]
    elif isinstance(source, EDMZipSource):
        first = source.path
    else:
        return f"{source.name} comes with a package: there are no files for a DataLoader"
    return "the DataLoader reads files of this machine, not of a bucket" if "://" in first else None


def image_loader(
    source: ImageSource, data: DataSettings, batch_size: int, workers: int, seed: int
) -> DataLoader[Batch]:
    """Return a DataLoader over a source, an epoch a pass; bad images are left out of their batch.

    Args:
        source: one for which `no_loader` returns None.
        data: its settings; `shuffle_window` is the shuffle buffer of all workers together.
        workers: worker processes, at least 1.
        seed: seed of the order.
    """
    dataset: Dataset[Batch]
    if isinstance(source, FolderSource | EDMZipSource):
        read = (
            partial(_from_zip, source.path, source.names)
            if isinstance(source, EDMZipSource)
            else partial(_from_folder, source.paths)
        )
        decode = Decode(source.fit, source.image_shape, data.xflip)
        dataset = DrawnPictures(read, source.labels.numbers, decode)
        sizes: dict[str, Any] = {"batch_size": batch_size, "shuffle": True}
    else:
        assert isinstance(source, ParquetSource | WebDatasetSource)
        decode = Decode(source.fit, source.image_shape, data.xflip)
        parts = _row_groups(source) if isinstance(source, ParquetSource) else _tars(source)
        dataset = ShuffledParts(parts, decode, batch_size, data.shuffle_window, seed)
        sizes = {"batch_size": None}  # it makes whole batches
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=True,
        prefetch_factor=PREFETCH,
        collate_fn=_identity,
        generator=torch.Generator().manual_seed(seed),
        **sizes,
    )


@dataclass(frozen=True)
class Decode:
    """Decodes pictures into batches as the source decodes them into blocks."""

    fit: Fit
    image_shape: tuple[int, int, int]
    xflip: bool

    def __call__(self, pictures: Iterable[Picture]) -> Batch:
        images: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        for content, label in pictures:
            try:
                image = decoded(content, self.fit)
            except BadPicture:
                continue
            if image.shape == self.image_shape and label >= 0:
                images.append(image)
                labels.append(label)
        batch = torch.from_numpy(np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8))
        if self.xflip:
            flips = torch.rand(len(batch)) < 0.5
            batch[flips] = batch[flips].flip(-1)
        return batch, torch.tensor(labels, dtype=torch.int64)


class DrawnPictures(Dataset[Batch]):
    """Pictures that can be read one by one."""

    def __init__(self, read: Callable[[int], bytes], labels: NDArray[np.int64], decode: Decode) -> None:
        self.read, self.labels, self.decode = read, labels, decode

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return a batch: torch asks for all of its indices at once."""
        return self.decode((self.read(index), int(self.labels[index])) for index in indices)


def _from_folder(paths: Texts, index: int) -> bytes:
    try:
        with open(paths[index], "rb") as file:
            return file.read()
    except OSError:
        return b""


def _from_zip(path: str, names: Texts, index: int) -> bytes:
    try:
        return _zip(path).read(names[index])
    except Exception:  # zipfile raises many kinds of errors for damaged files
        return b""


@lru_cache(maxsize=1)
def _zip(path: str) -> zipfile.ZipFile:
    """Open a zip, once in each worker."""
    return zipfile.ZipFile(path)


class Part(Protocol):
    """Consecutive pictures of one file."""

    def pictures(self) -> Iterator[Picture]:
        """Yield the pictures in order."""


class ShuffledParts(IterableDataset[Batch]):
    """Parts of files, distributed over the workers in a new order each epoch, and shuffled within a buffer."""

    def __init__(
        self, parts: Sequence[Part], decode: Decode, batch_size: int, buffer: int, seed: int
    ) -> None:
        self.parts, self.decode, self.batch_size = parts, decode, batch_size
        self.buffer, self.seed = buffer, seed
        self.epoch = 0  # counted by each persistent worker

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        everyones, own = (
            random.Random(f"{self.seed} {self.epoch}"),
            random.Random(f"{self.seed} {self.epoch} {number}"),
        )
        self.epoch += 1
        parts = everyones.sample(self.parts, len(self.parts))[number::workers]
        pictures = (picture for part in parts for picture in part.pictures())
        shuffled = _shuffled(pictures, max(1, self.buffer // workers), own)
        while some := list(islice(shuffled, self.batch_size)):
            yield self.decode(some)


def _shuffled(pictures: Iterable[Picture], most: int, chance: random.Random) -> Iterator[Picture]:
    """Yield pictures in the order in which they leave a buffer of limited count and bytes."""
    buffer: list[Picture] = []
    held = 0
    for picture in pictures:
        held += len(picture[0])
        if len(buffer) < most and held < BUFFER_BYTES:
            buffer.append(picture)
            continue
        buffer.append(picture)
        index = chance.randrange(len(buffer))
        buffer[index], buffer[-1] = buffer[-1], buffer[index]
        held -= len(buffer[-1][0])
        yield buffer.pop()
    chance.shuffle(buffer)
    yield from buffer


class RowGroups(NamedTuple):
    """Consecutive row groups of a Parquet file, and the labels of their rows."""

    path: str
    first: int
    last: int
    column: str
    labels: NDArray[np.int64]

    def pictures(self) -> Iterator[Picture]:
        row = 0
        groups = range(self.first, self.last)
        for batch in _parquet(self.path).iter_batches(ROWS, groups, [self.column], use_threads=False):
            column = batch.column(0)
            if pa.types.is_struct(column.type):
                column = column.field("bytes")
            for content in column.to_pylist():
                yield content or b"", int(self.labels[row])
                row += 1


@lru_cache(maxsize=16)
def _parquet(path: str) -> Any:
    """Open a Parquet file, once in each worker if there are not too many."""
    return pq.ParquetFile(path)


def _row_groups(source: ParquetSource) -> list[RowGroups]:
    """Return the shards of a source."""
    rows = zip(source.starts[:-1], source.starts[1:], strict=True)
    return [
        RowGroups(source.paths[number], first, last, source.image_column, source.labels.numbers[start:end])
        for (number, first, last), (start, end) in zip(source.groups.tolist(), rows, strict=True)
    ]


class Tar(NamedTuple):
    """A tar file, with offset, size and label of each picture."""

    path: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def pictures(self) -> Iterator[Picture]:
        with open(self.path, "rb") as file:
            for offset, size, label in zip(
                self.offsets.tolist(), self.sizes.tolist(), self.labels.tolist(), strict=True
            ):
                file.seek(offset)
                yield file.read(size) if size <= MAX_PICTURE else b"", label


def _tars(source: WebDatasetSource) -> list[Tar]:
    ends = np.searchsorted(source.file, np.arange(len(source.paths)), side="right")
    rows = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [
        Tar(source.paths[number], source.offsets[own], source.sizes[own], source.labels.numbers[own])
        for number, own in enumerate(rows)
    ]


def _identity(batch: Any) -> Any:
    return batch
