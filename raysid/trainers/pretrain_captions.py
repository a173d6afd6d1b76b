"""The embeddings of captions in a teacher's training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from raysid.data import ImageSource
from raysid.networks.text import TextEncoder, Tokenizer

TOGETHER = 64  # captions of a batch; one by one they take four times as long on a CPU


class CaptionEncoder:
    """Turns captions into embeddings.

    Where a source knows all of its captions, the workers encode them before the first step, each worker a share of
    them. The batches depend on the captions alone, so the rounding of an embedding does not depend on the number of
    workers, or on the step from which a training resumes. Other captions are encoded one by one when they are read.

    Args:
        text: the encoder.
        source: the images with their captions.
        rank: this worker's index among `ranks` workers, all of which must call this.
    """

    def __init__(self, text: TextEncoder, source: ImageSource, rank: int, ranks: int) -> None:
        self.text = text
        self.tokenizer = Tokenizer(text.folder)
        self.rows = {caption: row for row, caption in enumerate(source.known_captions)}
        self.table = torch.empty(0)
        batches = [[*self.rows][at : at + TOGETHER] for at in range(0, len(self.rows), TOGETHER)]
        if not batches:
            return
        own = {number: self._encoded(batches[number]).cpu() for number in range(rank, len(batches), ranks)}
        parts: list[Any] = [own]
        if ranks > 1:
            parts = [None] * ranks
            torch.distributed.all_gather_object(parts, own)
        encoded = {number: batch for part in parts for number, batch in part.items()}
        self.table = torch.cat([encoded[number] for number in range(len(batches))])

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings of captions (B,): float32 (B, tokens, width)."""
        if all(caption in self.rows for caption in captions):
            return self.table[[self.rows[caption] for caption in captions]]
        return self.text(self.tokenizer(captions).ids)

    def _encoded(self, captions: Sequence[str]) -> Tensor:
        return self.text.together(self.tokenizer(captions).ids).float()
