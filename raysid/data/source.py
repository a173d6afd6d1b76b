"""Sources of real images: shards of uint8 images with labels, any part of which can be read by itself.

A source does not define an order. It lists its images in shards of known sizes; the stream decides when to read which.
Any part of a shard can be read anywhere, so one `read` serves a plain loop (`blocks`) and the tasks of Ray Data
(`raysid.data.ray_data`), which therefore return the same images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from raysid.errors import RunFailed

NAMED = 5  # faults that a message lists
SECTIONS = {"real images": "data", "prompts": "prompts"}  # of the settings, by the kind of rows
LEFT_OUT = "blank, or a score below prompts.min"  # why a source leaves rows out that are no faults
READ_CPUS = 0.25  # CPU slots of a read task of Ray Data, by default
NOT_UTF8 = b"not UTF-8"  # stands for a cell whose text cannot be used
USUAL_COLUMNS = ("text", "caption", "prompt")  # of prompts and captions
SEPARATOR = "\x1f"  # between the texts of a row; ASCII's unit separator
ORDER_SEED = 0  # of lists that are shuffled once: folders and zips are often sorted by class


class Block(TypedDict):
    """Consecutive images, each with its own label and, if they are asked for, its own captions; or texts."""

    image: NDArray[Any]  # uint8 (n, C, H, W), 0..pixel_max; or str (n,)
    label: NDArray[np.int64]  # (n,), 0..num_classes-1
    caption: NotRequired[NDArray[np.object_]]
    """(n,) str: the image's captions, joined by `SEPARATOR`."""
    index: NotRequired[NDArray[np.int64]]
    """(n,): the image's index in the source's list, if images are not read in that order."""
    left_out: NotRequired[NDArray[np.bool_]]
    """(n,): rows that are not used, and that are no faults."""
    fault: NotRequired[NDArray[np.object_]]
    """(n,) str: the image's name and why it cannot be used, or empty. The pixels of such an image mean nothing."""


def good_images(block: Block) -> Block:
    """Return the images of a block that can be used and are not left out, with their labels; or its texts."""
    good = np.ones(len(block["label"]), bool)
    if "fault" in block:
        good &= block["fault"] == ""
    if "left_out" in block:
        good &= ~block["left_out"]
    return Block(image=block["image"][good], label=block["label"][good])


def all_faults(found: Iterable[dict[int, str]]) -> dict[int, str]:
    """Merge the faults of several readers, by the image's index; they may have read the same images."""
    return {index: fault for faults in found for index, fault in faults.items()}


def check_faults(
    faults: dict[int, str], max_bad_fraction: float, num_images: int, what: str = "real images"
) -> None:
    """Check the number of faults.

    Raises:
        RunFailed: more than `max_bad_fraction` of the images cannot be used.
    """
    if len(faults) > max_bad_fraction * num_images:
        named = "; ".join(list(faults.values())[:NAMED])
        rest = len(faults) - NAMED
        more = f"; and {rest:,} more, which `raysid data check` names" if rest > 0 else ""
        raise RunFailed(
            f"{len(faults):,} of {num_images:,} {what} cannot be used, which is more than "
            f"{SECTIONS[what]}.max_bad_fraction = {max_bad_fraction:g} of them ({named}{more}): repair them, or give a "
            "larger fraction"
        )


class Piece(NamedTuple):
    """Images `first` to `last` of a shard."""

    shard: int
    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first

    def cut(self, most: int) -> list[Piece]:
        """Split into parts of nearly equal size, of at most `most` images."""
        count = -(-self.size // most)
        bounds = [self.first + self.size * part // count for part in range(count + 1)]
        return [Piece(self.shard, *part) for part in pairwise(bounds)]


class Source(ABC):
    """Rows in shards: images or prompts.

    A source travels once to each process that streams it. It holds the list of its rows but not their contents; large
    lists should be numpy arrays, which Ray moves without a copy.
    """

    name: str
    what = "real images"
    """The kind of its rows, for messages."""
    notes: tuple[str, ...] = ()
    """Lines for the user: what is left out of the source and why, and where its labels are from."""
    cut_freely = False
    """True if reading a part of a shard costs only that part, not the rows before it as well."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """About the bytes of a row in memory."""

    @property
    @abstractmethod
    def shard_sizes(self) -> NDArray[np.int64]:
        """Rows of each shard, (n,), exactly: a stream that reads more or fewer stops with an error."""

    @abstractmethod
    def read(self, piece: Piece) -> Iterator[Block]:
        """Read a part of a shard, in order, as one block or several."""

    def pieces(self) -> list[Piece]:
        """All shards, whole, in order."""
        return [Piece(shard, 0, int(size)) for shard, size in enumerate(self.shard_sizes)]

    def blocks(self, pieces: Iterable[Piece] | None = None) -> Iterator[Block]:
        """Read some pieces, by default all, in this process and without Ray.

        Raises:
            ValueError: a piece has more or fewer rows than it should, so those after it would be wrong.
        """
        for piece in self.pieces() if pieces is None else pieces:
            count = 0
            for block in self.read(piece):
                count += len(block["label"])
                if count > piece.size:  # before one of them counts as a row of the next piece
                    break
                yield block
            if count != piece.size:
                raise ValueError(
                    f"of {self.name} {piece} yielded {'more' if count > piece.size else count} {self.what}"
                )


class ImageSource(Source):
    """Real images in shards: the list of the images, but no pixels."""

    image_shape: tuple[int, int, int]
    """(C, H, W), the same for every image."""
    num_classes: int
    """0 if the images have no labels."""
    pixel_max: int
    """The stored value that means +1 (0 means -1): 255 for ordinary 8-bit images."""
    captioned: bool = False
    """True if blocks have captions."""
    known_captions: Sequence[str] = ()
    """All different captions, of a source with few."""
    new_since_first: str = ""
    """The pictures that release 0.1.0 left out of the same files; empty if it read the same images. A run that it began
    would continue with others."""

    @property
    @abstractmethod
    def label_counts(self) -> NDArray[np.int64]:
        """Images of each class, (num_classes,); generated labels follow the same frequencies."""

    @property
    def num_images(self) -> int:
        """Number of images."""
        return int(self.shard_sizes.sum())

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.image_shape)) + 8  # the label


class Texts:
    """Many strings as two numpy arrays, which travel between processes without a copy."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.bytes[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")


def even_shards(num_images: int, images_per_shard: int) -> NDArray[np.int64]:
    """Return the sizes of shards of a list that can be split anywhere, (n,); the last may be smaller."""
    starts = np.arange(0, num_images, images_per_shard)
    return np.minimum(images_per_shard, num_images - starts)


def random_words(seed: int, count: int, *address: int) -> NDArray[np.uint64]:
    """Return random words that depend only on the seed and an address: uint64 (count,)."""
    # Not Generator.permutation: NumPy guarantees the raw words across versions, but not its methods.
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=address)).random_raw(count)


def random_permutation(seed: int, count: int, *address: int) -> NDArray[np.intp]:
    """Return a permutation of 0..count-1 that depends only on the seed and an address, on any machine."""
    return np.argsort(random_words(seed, count, *address), kind="stable")


def to_unit(images: NDArray[np.uint8], pixel_max: int) -> NDArray[np.float32]:
    """Convert stored pixels 0..`pixel_max`, any shape, to float32 in [-1, 1]: x * 2 / pixel_max - 1.

    Divides by half of `pixel_max` (exact in float32), as EDM does, so that both ends are exact.
    """
    return images.astype(np.float32) / np.float32(pixel_max / 2) - np.float32(1)
