"""Text encoders and their tokenizers, from the folders `text_encoder/` and `tokenizer/` of a pipeline.

They are those of transformers (the extra `raysid[text]`), frozen, and loaded from JSON and safetensors alone. A
tokenizer turns prompts into token ids, which travel; each role turns the ids into embeddings with its own encoder.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from upath import UPath

from raysid.errors import StorageError, UserError
from raysid.networks.known_texts import KnownTexts, read_known, write_known
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
KNOWN_BYTES = 256e6  # of embeddings that are kept in a folder
TOGETHER = 64  # texts that are encoded in a batch for that; one by one they take four times as long


class Tokens(NamedTuple):
    """Prompts as token ids: ids int32 (B, tokens), padded; cut bool (B,), True where a prompt was too long."""

    ids: Tensor
    cut: Tensor


class Tokenizer:
    """Turns prompts into token ids of one length, the most that the text encoder takes.

    Args:
        folder: a folder with `tokenizer/` and `text_encoder/`.
        known: texts that are kept there, if they are read already.

    Attributes:
        length: number of tokens of every prompt, special ones included.

    Raises:
        UserError: transformers is not installed; the folder lacks a tokenizer, or has one that cannot be used.
    """

    def __init__(self, folder: str | UPath, known: KnownTexts | None = None) -> None:
        self.folder, self.known = UPath(folder), known or read_known(UPath(folder))
        if self.known is None:
            _ = self.tokenizer

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, loaded when a text is met whose tokens are not kept."""
        path = local_part(self.folder, TOKENIZER)
        with loading_part(self.folder, TOKENIZER):
            loaded = _transformers().AutoTokenizer.from_pretrained(path, local_files_only=True)
        if loaded.pad_token_id is None:
            raise UserError(f"{self.folder / TOKENIZER} cannot be used: it has no token for padding")
        return loaded

    @functools.cached_property
    def length(self) -> int:
        if self.known is not None:
            return self.known.ids.shape[1]
        return min(self.tokenizer.model_max_length, _longest(self.folder), MOST_TOKENS)

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Return the token ids of prompts (B,), cut or padded to `length`."""
        prompts = list(prompts)
        if self.known is not None and self.known.rows.keys() >= set(prompts):
            rows = [self.known.rows[prompt] for prompt in prompts]
            return Tokens(self.known.ids[rows], self.known.cut[rows])
        cut = [len(ids) > self.length for ids in self.tokenizer(prompts)["input_ids"]]
        given = self.tokenizer(prompts, padding="max_length", max_length=self.length, truncation=True)
        return Tokens(torch.tensor(given["input_ids"], dtype=torch.int32), torch.tensor(cut))


class TextEncoder:
    """A frozen text encoder: token ids to embeddings.

    Embeddings are a pure function of the ids on a CPU, where prompts are encoded one by one: in a batch the rounding
    of one depends on the others. Recent ones are kept, so that a prompt is encoded once for all calls of a microbatch.
    Those that `keep_texts` keeps in the folder are not encoded at all: while a process meets no others, it does not
    load the encoder.

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
        self.folder, self.device = str(folder), device
        self.tokenizer = Tokenizer(folder)
        known = self.tokenizer.known
        pairs = [] if known is None else zip(known.ids, known.embeddings, strict=True)
        self._known: dict[bytes, Tensor] = {}
        for (
            ids,
            embedding,
        ) in pairs:  # of texts with the same ids the first, which was there before the others
            self._known.setdefault(ids.numpy().tobytes(), embedding)
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        if known is None:
            _ = self.model
        self.empty = self.tokenizer([""]).ids[0]

    @functools.cached_property
    def model(self) -> Any:
        """The encoder of transformers, loaded when a text is met whose embedding is not kept."""
        folder = UPath(self.folder)
        path = local_part(folder, TEXT_ENCODER)
        kind = encoder_class(part_config(folder, TEXT_ENCODER), folder)
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        variant = chosen_variant(file.name for file in path.iterdir())
        with loading_part(folder, TEXT_ENCODER):
            model: Any = getattr(_transformers(), kind).from_pretrained(
                path, local_files_only=True, use_safetensors=True, variant=variant, dtype=dtype
            )
        return model.eval().requires_grad_(False).to(self.device)

    @functools.cached_property
    def masked(self) -> bool:
        """True if the encoder does not see padding. CLIP's see it, as in diffusers' pipelines."""
        config = part_config(UPath(self.folder), TEXT_ENCODER)
        return encoder_class(config, UPath(self.folder)) != "CLIPTextModel" or bool(
            config.get("use_attention_mask")
        )

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids (B, tokens): float32 (B, tokens, width), on the encoder's device."""
        keys = [row.numpy().tobytes() for row in ids.cpu()]
        if self._known.keys() >= set(keys):
            return torch.stack([self._known[key] for key in keys]).to(self.device)
        rows = dict(zip(keys, ids, strict=True))
        missing = {key: row for key, row in rows.items() if key not in self._known and key not in self._kept}
        found = dict(zip(missing, self._encoded([*missing.values()]), strict=True))
        for key in rows.keys() & self._kept.keys():
            self._kept.move_to_end(key)
            found[key] = self._kept[key]
        self._kept |= found
        found |= {key: self._known[key].to(self.device) for key in rows.keys() & self._known.keys()}
        most = max(1, int(CACHE_BYTES / next(iter(found.values())).nbytes)) if found else 1
        while len(self._kept) > most:
            self._kept.popitem(last=False)
        return torch.stack([found[key].float() for key in keys])

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings of prompts (B,), as of their token ids."""
        return self(self.tokenizer(prompts).ids)

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
        mask = (ids != self.tokenizer.tokenizer.pad_token_id).long()
        # Padding is not seen, so it need not be computed: captions are short.
        longest = int(mask.any(0).nonzero().max()) + 1
        seen = mask[:, :longest]
        embeddings = self.model(ids[:, :longest], attention_mask=seen)[0] * seen[..., None]
        return torch.nn.functional.pad(embeddings, (0, 0, 0, ids.shape[1] - longest))


def keep_texts(folder: str | UPath, texts: Sequence[str]) -> None:
    """Encode texts and the empty one, and keep them in the folder of their text encoder.

    In a batch the rounding of one depends on the others, but all processes read the same; texts that are kept already
    stay as they are, so that a run resumes with the same embeddings whatever other runs have kept. Nothing is kept
    where it would be more than `KNOWN_BYTES` of embeddings, or the folder cannot be written.

    Args:
        folder: a folder with `text_encoder/` and `tokenizer/`.

    Raises:
        UserError: as `TextEncoder`.
    """
    where, known = UPath(folder), read_known(UPath(folder))
    kept = {} if known is None else known.rows
    added = [text for text in dict.fromkeys(["", *texts]) if text not in kept]
    width = int(part_config(where, TEXT_ENCODER)["hidden_size"])
    if not added or 4 * width * (len(kept) + len(added)) * Tokenizer(where).length > KNOWN_BYTES:
        return
    encoder = TextEncoder(where, torch.device("cpu"))
    tokens = encoder.tokenizer(added)
    batches = [encoder.together(ids).float() for ids in tokens.ids.split(TOGETHER)]
    made = KnownTexts({text: row for row, text in enumerate(added)}, *tokens, torch.cat(batches))
    with suppress(StorageError):  # a teacher's folder may be another user's
        write_known(where, made if known is None else known.with_more(made))


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
