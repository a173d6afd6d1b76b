"""Text encoders and their tokenizers, from the folders `text_encoder/` and `tokenizer/` of a pipeline.

They are those of transformers (the extra `raysid[text]`), frozen, and loaded from JSON and safetensors alone. A
tokenizer turns prompts into token ids, which travel; each role turns the ids into embeddings with its own encoder.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from upath import UPath

from raysid.errors import UserError
from raysid.networks.parts import (
    TEXT_ENCODER,
    TOKENIZER,
    chosen_variant,
    encoder_class,
    loading_part,
    local_part,
    part_config,
)

MOST_TOKENS = 512  # of a prompt, for tokenizers without a limit of their own
CACHE_BYTES = 256e6  # of embeddings that an encoder keeps


class Tokens(NamedTuple):
    """Prompts as token ids: ids int32 (B, tokens), padded; cut bool (B,), True where a prompt was too long."""

    ids: Tensor
    cut: Tensor


class Tokenizer:
    """Turns prompts into token ids of one length, the most that the text encoder takes.

    Args:
        folder: a folder with `tokenizer/` and `text_encoder/`.

    Attributes:
        length: number of tokens of every prompt, special ones included.

    Raises:
        UserError: transformers is not installed; the folder lacks a tokenizer, or has one that cannot be used.
    """

    def __init__(self, folder: str | UPath) -> None:
        path = local_part(UPath(folder), TOKENIZER)
        with loading_part(UPath(folder), TOKENIZER):
            self.tokenizer: Any = _transformers().AutoTokenizer.from_pretrained(path, local_files_only=True)
        if self.tokenizer.pad_token_id is None:
            raise UserError(f"{UPath(folder) / TOKENIZER} cannot be used: it has no token for padding")
        self.length = min(self.tokenizer.model_max_length, _longest(folder), MOST_TOKENS)

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Return the token ids of prompts (B,), cut or padded to `length`."""
        prompts = list(prompts)
        cut = [len(ids) > self.length for ids in self.tokenizer(prompts)["input_ids"]]
        given = self.tokenizer(prompts, padding="max_length", max_length=self.length, truncation=True)
        return Tokens(torch.tensor(given["input_ids"], dtype=torch.int32), torch.tensor(cut))


class TextEncoder:
    """A frozen text encoder: token ids to embeddings.

    Embeddings are a pure function of the ids on a CPU, where prompts are encoded one by one: in a batch the rounding
    of one depends on the others. Recent ones are kept, so that a prompt is encoded once for all calls of a microbatch,
    and a set of few prompts once in all.

    Args:
        folder: a folder with `text_encoder/` and `tokenizer/`.
        device: on a GPU it computes in half precision.

    Attributes:
        folder: as the argument.
        tokenizer: the folder's tokenizer, whose ids it takes.

    Raises:
        UserError: transformers is not installed; the folder has no encoder, or one that cannot be used.
    """

    def __init__(self, folder: str | UPath, device: torch.device) -> None:
        self.folder = str(folder)
        config = part_config(UPath(folder), TEXT_ENCODER)
        kind = encoder_class(config, UPath(folder))
        path = local_part(UPath(folder), TEXT_ENCODER)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        variant = chosen_variant(file.name for file in path.iterdir())
        with loading_part(UPath(folder), TEXT_ENCODER):
            model: Any = getattr(_transformers(), kind).from_pretrained(
                path, local_files_only=True, use_safetensors=True, variant=variant, dtype=dtype
            )
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self.tokenizer = Tokenizer(folder)
        self.pad = self.tokenizer.tokenizer.pad_token_id
        # CLIP's encoders see padding, as in diffusers' pipelines; the others do not.
        self.masked = kind != "CLIPTextModel" or bool(config.get("use_attention_mask"))
        self.empty = self.tokenizer([""]).ids[0]
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids (B, tokens): float32 (B, tokens, width), on the encoder's device."""
        keys = [row.numpy().tobytes() for row in ids.cpu()]
        missing = {key: row for key, row in zip(keys, ids, strict=True) if key not in self._kept}
        found = dict(zip(missing, self._encoded([*missing.values()]), strict=True))
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
                found[key] = self._kept[key]
        self._kept |= found
        most = max(1, int(CACHE_BYTES / next(iter(found.values())).nbytes)) if found else 1
        while len(self._kept) > most:
            self._kept.popitem(last=False)
        return torch.stack([found[key] for key in keys]).float()

    def null_text(self) -> Tensor:
        """Return the embeddings of the empty prompt: float32 (tokens, width)."""
        return self(self.empty[None])[0]

    def _encoded(self, rows: list[Tensor]) -> list[Tensor]:
        if not rows:
            return []
        size = 1 if self.device.type == "cpu" else len(rows)
        return [
            each
            for at in range(0, len(rows), size)
            for each in self.together(torch.stack(rows[at : at + size]))
        ]

    @torch.no_grad()
    def together(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids (B, tokens), computed in one batch: (B, tokens, width)."""
        ids = ids.to(self.device, torch.int64)
        if not self.masked:
            return self.model(ids)[0]
        mask = (ids != self.pad).long()
        # Padding is not seen, so it need not be computed: captions are short.
        longest = int(mask.any(0).nonzero().max()) + 1
        seen = mask[:, :longest]
        embeddings = self.model(ids[:, :longest], attention_mask=seen)[0] * seen[..., None]
        return torch.nn.functional.pad(embeddings, (0, 0, 0, ids.shape[1] - longest))


@functools.lru_cache(maxsize=2)
def shared_encoder(folder: str, device: torch.device) -> TextEncoder:
    """Return the encoder of a folder: one for all roles of a process, which encode the same prompts."""
    return TextEncoder(folder, device)


def _longest(folder: str | UPath) -> int:
    return int(part_config(UPath(folder), TEXT_ENCODER).get("max_position_embeddings", MOST_TOKENS))


def _transformers() -> ModuleType:
    """Import the package transformers. Raises UserError if that fails."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"text encoders need transformers ({error}): pip install 'raysid[text]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
