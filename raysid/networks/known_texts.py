"""Prompts that are encoded once and kept beside their text encoder, for sets of few prompts.

A process that meets only such prompts loads neither the text encoder nor its tokenizer, and all processes have the
same embeddings to the bit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from upath import UPath

from raysid.networks.parts import NEEDED, local_part
from raysid.storage import children, exists, make_folder, write_whole

FOLDER, FILE = "known_texts", "embeddings.safetensors"  # in the folder of text encoder and tokenizer
ENCODER = "encoder"  # in the file's metadata: the digest of the encoder that made it


@dataclass(frozen=True)
class KnownTexts:
    """Texts with their tokens and embeddings.

    Attributes:
        rows: the row of each text in the other attributes.
        ids: token ids, int32 (N, tokens).
        cut: True where a text was too long, (N,).
        embeddings: float32 (N, tokens, width).
    """

    rows: dict[str, int]
    ids: Tensor
    cut: Tensor
    embeddings: Tensor

    def with_more(self, other: KnownTexts) -> KnownTexts:
        """Return these texts, and after them the others."""
        rows = self.rows | {text: len(self.rows) + row for text, row in other.rows.items()}
        pairs = ((self.ids, other.ids), (self.cut, other.cut), (self.embeddings, other.embeddings))
        return KnownTexts(rows, *(torch.cat(pair) for pair in pairs))


def read_known(folder: UPath) -> KnownTexts | None:
    """Return the texts that are kept in a folder; None if there are none, or they are another encoder's."""
    if not exists(folder / FOLDER / FILE):
        return None
    path = local_part(folder, FOLDER) / FILE
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get(ENCODER) != encoder_digest(folder):
                return None
            texts = json.loads(bytes(file.get_tensor("texts").numpy()))
            ids, cut, embeddings = (file.get_tensor(name) for name in ("ids", "cut", "embeddings"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None  # damaged: the encoder makes them again
    if {len(ids), len(cut), len(embeddings)} != {len(texts)}:
        return None
    return KnownTexts({text: row for row, text in enumerate(texts)}, ids, cut, embeddings)


def write_known(folder: UPath, known: KnownTexts) -> None:
    """Keep texts in a folder, instead of those that are kept there.

    Raises:
        StorageError: the folder cannot be written.
    """
    written = torch.frombuffer(bytearray(json.dumps([*known.rows]).encode()), dtype=torch.uint8)
    tensors = {
        "texts": written,
        "ids": known.ids,
        "cut": known.cut,
        "embeddings": known.embeddings.contiguous(),
    }
    make_folder(folder / FOLDER)
    content = safetensors.torch.save(tensors, {ENCODER: encoder_digest(folder)})
    write_whole(folder / FOLDER / FILE, content)


def encoder_digest(folder: UPath) -> str:
    """Return the SHA-256 of the text encoder and the tokenizer of a folder."""
    digest = hashlib.sha256()
    for part in NEEDED:
        for file in sorted(children(folder / part), key=lambda each: each.name):
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                while piece := opened.read(1 << 24):
                    digest.update(piece)
    return digest.hexdigest()
