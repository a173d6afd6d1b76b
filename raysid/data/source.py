"""What a source of real images is, and how one is opened by name.

A source is a list of shards. A shard is read alone, in a task of its own, so the same few lines serve a
plain loop (`blocks`) and Ray Data (`dataset`), and the order of the two cannot differ: shard by shard.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from raysid.errors import UserError

if TYPE_CHECKING:
    import ray.data


READ_CPUS = 0.25  # CPU slots that a read task of Ray Data asks for when nothing else is said


class Block(TypedDict):
    """Some images in a row, each with its own label."""

    image: NDArray[np.uint8]  # (n, C, H, W), 0..pixel_max
    label: NDArray[np.int64]  # (n,), 0..num_classes-1


class ImageSource(ABC):
    """Real images in a fixed order, the canonical one, read shard by shard.

    An instance travels to the workers that read its shards: it must pickle, and small (paths, not pixels).
    A source whose files lie sorted by class should shuffle its list once, with a fixed seed: the stream
    mixes images only within its window.
    """

    name: str
    image_shape: tuple[int, int, int]
    """(C, H, W), the same for every image."""
    num_images: int
    """Images in one pass, exactly: a stream that meets more or fewer stops with an error."""
    num_classes: int
    pixel_max: int
    """The stored value that stands for +1 (0 stands for -1): 255 for ordinary 8-bit images."""
    num_shards: int

    @property
    @abstractmethod
    def label_counts(self) -> NDArray[np.int64]:
        """Images of each class, (num_classes,); the sum is `num_images`. Generated labels are drawn so."""

    @abstractmethod
    def read_shard(self, index: int) -> Iterator[Block]:
        """The images of shard `index` (0..num_shards-1), in order, in one block or several."""

    def blocks(self) -> Iterator[Block]:
        """One pass over all images in the canonical order, in this process, without Ray."""
        for index in range(self.num_shards):
            yield from self.read_shard(index)

    def dataset(self, num_cpus: float = READ_CPUS) -> ray.data.Dataset:
        """The same rows in the same order as a Ray Dataset: one read task a shard, nothing read yet.

        Args:
            num_cpus: CPU slots that one read task asks for. Ray Data waits for ever when the cluster has
                fewer left, and roles hold slots too: hence a fraction. Where decoding is the work and CPUs
                are many, 1 keeps the tasks from crowding each other.
        """
        from raysid.data.shards import shard_dataset

        return shard_dataset(self, num_cpus)


def to_unit(images: NDArray[np.uint8], pixel_max: int) -> NDArray[np.float32]:
    """Stored pixels 0..`pixel_max`, any shape, as float32 in [-1, 1]: x * 2 / pixel_max - 1.

    Divides by half of `pixel_max` (exact in float32), as EDM does, so that both ends come out exact.
    """
    return images.astype(np.float32) / np.float32(pixel_max / 2) - np.float32(1)


def located(name: str) -> str:
    """A source's name as any process of this machine finds it: a file's path from the root, all else as it is."""
    return str(Path(name).expanduser().absolute()) if name.endswith(".zip") and "://" not in name else name


def open_source(name: str) -> ImageSource:
    """The source called `name`: `digits`, or the path of a zip.

    Raises:
        NotHere: there is no such file.
        UserError: it is no source that is known, or damaged.
    """
    # Here, because they import this file.
    from raysid.data.digits import DigitsSource
    from raysid.data.edm_zip import EDMZipSource

    if name == DigitsSource.name:
        return DigitsSource()
    if name.endswith(".zip"):
        return EDMZipSource(name)
    raise UserError(
        f"data.source: unknown source of real images {name!r}; known: digits, or the path of a .zip as EDM's "
        "dataset_tool.py writes it"
    )
