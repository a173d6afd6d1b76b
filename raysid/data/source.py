"""What a source of real images is: shards of uint8 images with labels, of which any part can be read alone.

Order is none of a source's business: it lists its images, in shards whose sizes it knows, and the stream decides
which shards come when. A part of a shard can be read anywhere, so the same few lines serve a plain loop (`blocks`) and
Ray Data's tasks (`raysid.data.ray_data`), and what the two read cannot differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

READ_CPUS = 0.25  # CPU slots that a read task of Ray Data asks for when nothing else is said
ORDER_SEED = 0  # of lists that are shuffled once: folders and zips often lie sorted by class


class Block(TypedDict):
    """Some images in a row, each with its own label."""

    image: NDArray[np.uint8]  # (n, C, H, W), 0..pixel_max
    label: NDArray[np.int64]  # (n,), 0..num_classes-1
    index: NotRequired[NDArray[np.int64]]
    """(n,): the image's place in the source's list, where it is not read in that order."""
    fault: NotRequired[NDArray[np.object_]]
    """(n,) str: why an image cannot be used, after its name; empty where it can. Its pixels mean nothing then."""


def good_of(block: Block) -> Block:
    """Those images of a block that can be used, with their labels."""
    good = block["fault"] == "" if "fault" in block else slice(None)
    return Block(image=block["image"][good], label=block["label"][good])


class Piece(NamedTuple):
    """Images `first` to `last` of a shard."""

    shard: int
    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first

    def cut(self, most: int) -> list[Piece]:
        """Parts of at most so many images, about as large as each other."""
        count = -(-self.size // most)
        bounds = [self.first + self.size * part // count for part in range(count + 1)]
        return [Piece(self.shard, *part) for part in pairwise(bounds)]


class ImageSource(ABC):
    """Real images in shards.

    It travels once to each process that streams it, with what it lists; large lists should be numpy arrays, which
    Ray moves without a copy. It holds no pixels.
    """

    name: str
    image_shape: tuple[int, int, int]
    """(C, H, W), the same for every image."""
    num_classes: int
    """0 where the images have no labels."""
    pixel_max: int
    """The stored value that stands for +1 (0 stands for -1): 255 for ordinary 8-bit images."""
    cut_freely = False
    """Whether a part of a shard costs what its images do, and not what lies before them too."""

    @property
    @abstractmethod
    def shard_sizes(self) -> NDArray[np.int64]:
        """Images of each shard, (n,), exactly: a stream that meets more or fewer stops with an error."""

    @property
    @abstractmethod
    def label_counts(self) -> NDArray[np.int64]:
        """Images of each class, (num_classes,). Generated labels are drawn so."""

    @abstractmethod
    def read(self, piece: Piece) -> Iterator[Block]:
        """The images of a part of a shard, in order, in one block or several."""

    @property
    def num_images(self) -> int:
        """Images in one pass."""
        return int(self.shard_sizes.sum())

    @property
    def num_shards(self) -> int:
        return len(self.shard_sizes)

    def pieces(self) -> list[Piece]:
        """All shards, whole, in order."""
        return [Piece(shard, 0, int(size)) for shard, size in enumerate(self.shard_sizes)]

    def blocks(self, pieces: Iterable[Piece] | None = None) -> Iterator[Block]:
        """The images of some pieces, of all when not given, in this process, without Ray.

        Raises:
            ValueError: a piece has more or fewer images than it should: those after it would be others.
        """
        for piece in self.pieces() if pieces is None else pieces:
            count = 0
            for block in self.read(piece):
                count += len(block["label"])
                if count > piece.size:  # before the next piece's place takes one of them
                    break
                yield block
            if count != piece.size:
                raise ValueError(
                    f"of {self.name} {piece} yielded {'more' if count > piece.size else count} images"
                )


class Texts:
    """Many texts as two numpy arrays, which travel between processes without a copy."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> str:
        start = self.ends[place - 1] if place else 0
        return self.bytes[start : self.ends[place]].tobytes().decode("utf-8", "surrogateescape")


def even_shards(num_images: int, images_per_shard: int) -> NDArray[np.int64]:
    """Sizes of shards of a list that can be cut anywhere, (n,); the last may be smaller."""
    starts = np.arange(0, num_images, images_per_shard)
    return np.minimum(images_per_shard, num_images - starts)


def shuffled_once(count: int) -> NDArray[np.int64]:
    """An order of 0..count-1 that is the same everywhere and for ever."""
    # Not Generator.permutation: NumPy keeps the raw words the same across versions, not its methods.
    return np.argsort(np.random.Philox(ORDER_SEED).random_raw(count), kind="stable").astype(np.int64)


def to_unit(images: NDArray[np.uint8], pixel_max: int) -> NDArray[np.float32]:
    """Stored pixels 0..`pixel_max`, any shape, as float32 in [-1, 1]: x * 2 / pixel_max - 1.

    Divides by half of `pixel_max` (exact in float32), as EDM does, so that both ends come out exact.
    """
    return images.astype(np.float32) / np.float32(pixel_max / 2) - np.float32(1)
