"""Grids of generated images beside real ones, or with their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from raysid.data import Block, ImageSource, Piece, to_unit
from raysid.data.source import good_images
from raysid.generator import Generator
from raysid.method.draws import Draws

GRID_ROWS = 10
GRID_COLUMNS = 8
PROMPT_COLUMNS = 4
GRID_REAL = 1024  # first images of the source among which the grid's real ones are chosen


@dataclass(frozen=True)
class Grids:
    """Generated images at a fixed z, one row per class, and as many real ones if any: (N, C, H, W) in [-1, 1].

    Attributes:
        prompts: the prompt of each generated image, for a generator that takes text.
    """

    generated: np.ndarray
    real: np.ndarray | None
    columns: int = GRID_COLUMNS
    prompts: tuple[str, ...] | None = None


def draw_grids(generator: Generator, source: ImageSource | None) -> Grids:
    """Generate a grid of images at a fixed z, and choose real images with the same labels."""
    classes = generator.num_classes
    count = GRID_ROWS * GRID_COLUMNS
    labels = torch.arange(count) // GRID_COLUMNS % classes if classes else None
    with torch.no_grad():
        images = generator(Draws(0, 0, 0, count).normal("grid/z", generator.sample_shape), labels)
    if source is None:
        return Grids(images.numpy(), None)
    pixels, stored = _first_images(source, GRID_REAL)
    if not len(stored):
        return Grids(images.numpy(), None)
    real_labels = torch.from_numpy(stored)
    chosen = torch.arange(count) % len(real_labels) if labels is None else _with_labels(real_labels, labels)
    return Grids(images.numpy(), to_unit(pixels[chosen.numpy()], source.pixel_max))


def draw_prompts(generator: Generator, prompts: Sequence[str]) -> Grids:
    """Generate a grid of images at a fixed z, one for each prompt."""
    count = len(prompts)
    z = Draws(0, 0, 0, count).normal("grid/z", generator.sample_shape)
    with torch.no_grad():
        images = generator.decode(generator(z, text=generator.encode(prompts)))
    return Grids(images.numpy(), None, min(PROMPT_COLUMNS, count), tuple(prompts))


def _first_images(source: ImageSource, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and labels of the good images among the first `count` of a source."""
    pieces = []
    for shard, size in enumerate(source.shard_sizes.tolist()):
        if count > 0:
            pieces.append(Piece(shard, 0, min(size, count)))
        count -= size
    return join_blocks(map(good_images, source.blocks(pieces)))


def _with_labels(real_labels: Tensor, wanted: Tensor) -> Tensor:
    """Return indices of real images with the labels `wanted`, repeating an image only if its class is used up.

    For a class without images, images of any class are taken: a grid has no holes.
    """
    every = range(len(real_labels))
    images = {
        label: cycle(torch.nonzero(real_labels == label).flatten().tolist() or every)
        for label in wanted.unique().tolist()
    }
    return torch.tensor([next(images[label]) for label in wanted.tolist()])


def join_blocks(blocks: Iterable[Block]) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored pixels (N, C, H, W) and the labels (N,) of some blocks."""
    images, labels = zip(*((block["image"], block["label"]) for block in blocks), strict=True)
    return np.concatenate(images), np.concatenate(labels)
