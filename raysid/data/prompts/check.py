"""The figures of prompts that `raysid data check` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from raysid.data.prompts.source import SEPARATOR, PromptSource
from raysid.data.source import Piece, good_images

MOST_ROWS = 1_000_000  # that are read; a set of a billion would take a day
EXAMPLES = 5
NAMED = 12

Cut = Callable[[Sequence[str]], int]
"""Counts the prompts that a tokenizer cuts."""


@dataclass
class Survey:
    """The rows of a source that were read.

    Attributes:
        rows: number of rows read, over all columns.
        good: number of texts that can be used, by column.
        left_out: number of rows that are left out: blank lines, scores below the minimum.
        faults: the first rows that cannot be used, and `bad`, their number.
        words, characters: the length of each text.
        examples: the first texts, by column.
        cut: number of texts that the tokenizer cuts; None without one.
    """

    rows: int = 0
    good: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    bad: int = 0
    faults: list[str] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)
    cut: int | None = None


def survey(
    source: PromptSource, cut: Cut | None = None, progress: Callable[[int], None] = lambda rows: None
) -> Survey:
    """Read the rows of a source in its order, up to `MOST_ROWS`.

    Args:
        cut: counts the prompts that are too long; None leaves them uncounted.
        progress: called with the number of rows read so far.
    """
    found = Survey(cut=None if cut is None else 0)
    names = [*source.columns]
    for shard, size in enumerate(source.shard_sizes.tolist()):
        for block in source.blocks([Piece(shard, 0, size)]):
            found.rows += len(block["label"])
            found.left_out += int(np.sum(block.get("left_out", 0)))
            bad = [str(fault) for fault in block["fault"] if fault]
            found.bad += len(bad)
            found.faults += bad[: NAMED - len(found.faults)]
            texts = []
            for row in good_images(block)["image"]:
                for name, text in zip(names, row.split(SEPARATOR), strict=True):
                    if text:
                        texts.append(text)
                        found.good[name] += 1
                        own = found.examples.setdefault(name, [])
                        own += [text] * (len(own) < EXAMPLES)
            found.words += [len(text.split()) for text in texts]
            found.characters += map(len, texts)
            if cut is not None and found.cut is not None:
                found.cut += cut(texts)
            progress(found.rows)
        if found.rows >= MOST_ROWS:
            break
    return found


def in_words(lengths: Sequence[int]) -> str:
    """Describe lengths: the median, the 95th percentile, the longest."""
    if not lengths:
        return "-"
    median, most = np.percentile(lengths, [50, 95])
    return f"median {median:.0f}, 95% below {most + 0.5:.0f}, longest {max(lengths):,}"
