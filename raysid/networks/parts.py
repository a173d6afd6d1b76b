"""The parts of a text-to-image pipeline beside its U-Net: text encoder, tokenizer, VAE, and the files around them.

A teacher's folder keeps them as diffusers writes them, in subfolders, so that a run and an export need nothing else.
Of a generator's folder the card names the teacher's folder. Only JSON, text and safetensors are kept and read.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upath import UPath

from raysid.errors import UserError
from raysid.networks.files import CONFIG
from raysid.storage import children, is_local, make_folder, read_json, storage_errors, writing_whole
from raysid.storage.failures import explain

TEXT_ENCODER, TOKENIZER, VAE, SCHEDULER = "text_encoder", "tokenizer", "vae", "scheduler"
INDEX = "model_index.json"
VARIANTS = ("fp16", "bf16")  # of weights that have no plain files, the first that is there is taken
NEEDED = (TEXT_ENCODER, TOKENIZER)
_KEPT = (TEXT_ENCODER, TOKENIZER, VAE, SCHEDULER, "feature_extractor", "safety_checker")
_WEIGHTED = (TEXT_ENCODER, VAE, "safety_checker")
_FURTHER = re.compile(r"(text_encoder|tokenizer)_\d+")
_SUFFIXES = (".json", ".txt", ".model")  # of a part's files other than weights
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")
# Text encoders by their class in transformers: each makes one embedding of each token.
ENCODERS = ("CLIPTextModel", "BertModel")


def part_config(folder: UPath, part: str) -> dict[str, Any]:
    """Read the config of a part of a pipeline.

    Raises:
        UserError: it is missing or damaged.
    """
    file = folder / part / CONFIG
    config = read_json(file)
    if config is None:
        raise UserError(f"{file} is missing: copy the whole folder of the pipeline")
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged: it holds no settings")
    return config


def chosen_files(names: Collection[str]) -> list[str]:
    """Choose the files of the parts among the paths in a pipeline's folder, in order.

    Where weights are there in several precisions, the plain ones are taken, else fp16, else bf16.

    Raises:
        ValueError: a part has its weights only in a form that could run a program, or none; the text says which.
    """
    chosen = [INDEX] if INDEX in names else []
    for part in _KEPT:
        files = sorted(name for name in names if name.rpartition("/")[0] == part)
        weights = [name for name in files if name.endswith(".safetensors")]
        variant = chosen_variant(weights)
        kept = [name for name in weights if _variant(name) == variant]
        if files and part in _WEIGHTED and not kept:
            if pickled := [name for name in files if name.endswith(_PICKLES)]:
                raise ValueError(
                    f"has the weights of {part} in {pickled[0]}, which could run a program and is never opened: save "
                    "the pipeline with save_pretrained(..., safe_serialization=True)"
                )
            raise ValueError(
                f"has no weights of {part} (.safetensors): copy the whole folder of the pipeline"
            )
        chosen += [name for name in files if name in kept or name.endswith(_SUFFIXES)]
    return chosen


def part_files(folder: UPath) -> list[tuple[str, UPath]]:
    """Return the files that `chosen_files` chooses in a pipeline's folder, with their paths in it.

    Raises:
        UserError: as `chosen_files`.
    """
    found = {file.name: file for file in children(folder)}
    for part in found.keys() & set(_KEPT):
        found |= {f"{part}/{file.name}": file for file in children(folder / part)}
    try:
        return [(name, found[name]) for name in chosen_files(found)]
    except ValueError as error:
        raise UserError(f"{folder} {error}") from None


def check_pipeline(folder: UPath, width: int) -> bool:
    """Check the parts of a text-to-image pipeline, by their configs alone.

    Args:
        folder: the pipeline's folder, which has the U-Net in `unet/`.
        width: width of the embeddings that its U-Net takes.

    Returns:
        True if its U-Net makes latents, which a VAE decodes; False if it makes images.

    Raises:
        UserError: a part is missing, or raysid cannot use the pipeline.
    """
    names = {path.name for path in children(folder)}
    index = read_json(folder / INDEX) if INDEX in names else {}
    listed = {
        name for name, part in index.items() if isinstance(part, list) and part and part[-1] is not None
    }
    kind = index.get("_class_name", "pipeline")
    if several := sorted(name for name in names | listed if _FURTHER.fullmatch(name)):
        raise UserError(
            f"{folder} cannot be used: this {kind} has {several[0]} beside {TEXT_ENCODER}, and raysid distils "
            "pipelines with one text encoder, such as Stable Diffusion 1.x and 2.x"
        )
    for part in (*NEEDED, *({VAE} & listed)):
        if part not in names:
            raise UserError(f"{folder / part} is missing: copy the whole folder of the pipeline")
    if foreign := sorted((names | listed) & {"vqvae", "movq", "image_encoder", "transformer", "prior"}):
        raise UserError(f"{folder} cannot be used: raysid has no use for the {foreign[0]} of this {kind}")
    check_encoder(folder, width)
    if VAE not in names:
        return False
    decoder = part_config(folder, VAE).get("_class_name")
    if decoder != "AutoencoderKL":
        raise UserError(f"{folder / VAE} holds a {decoder}: raysid decodes latents with an AutoencoderKL")
    return True


def encoder_class(config: dict[str, Any], folder: UPath) -> str:
    """Return the class of a text encoder in transformers, from its config. Raises UserError for an unknown one."""
    kind = next(iter(config.get("architectures") or ["model of no known class"]))
    if kind not in ENCODERS:
        raise UserError(
            f"{folder / TEXT_ENCODER} holds a {kind}: raysid uses the text encoders {' and '.join(ENCODERS)}"
        )
    return str(kind)


def check_encoder(folder: UPath, width: int) -> None:
    """Check that the text encoder of a folder can be used and makes embeddings of a width. Raises UserError."""
    config = part_config(folder, TEXT_ENCODER)
    encoder_class(config, folder)
    if (found := config.get("hidden_size")) != width:
        raise UserError(
            f"{folder / TEXT_ENCODER} makes embeddings of width {found}, and the U-Net takes {width}: copy the "
            "pipeline again, with its own text encoder"
        )


def is_variant(name: str) -> bool:
    """True if a file of weights is a variant, such as `fp16`, beside which plain ones may lie."""
    return _variant(name) is not None


def chosen_variant(names: Iterable[str]) -> str | None:
    """Return the variant of the weights to read among the files of a part; None for the plain ones, or for none."""
    there = {_variant(name) for name in names if name.endswith(".safetensors")}
    return next((variant for variant in (None, *VARIANTS) if variant in there), None)


def _variant(name: str) -> str | None:
    found = _VARIANT.search(name)
    return None if found is None else found[1]


def digest_parts(folder: UPath) -> str:
    """Return the SHA-256 of the parts of a pipeline's folder."""
    digest = hashlib.sha256()
    for name, file in part_files(folder):
        digest.update(name.encode())
        with file.open("rb") as opened:
            while piece := opened.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


def copy_parts(source: UPath, folder: UPath) -> None:
    """Copy the parts of a pipeline's folder into another folder, which may be in a bucket."""
    for name, file in part_files(source):
        copy_file_to(file, folder / name)


def local_part(folder: UPath, part: str) -> Path:
    """Return the folder of a part on this machine, copied from a bucket if need be.

    Raises:
        UserError: it is missing.
    """
    where = folder / part
    if not where.is_dir():
        raise UserError(f"{where} is missing: copy the whole folder of the pipeline")
    return Path(str(where)) if is_local(where) else _copied(str(where))


@contextmanager
def loading_part(folder: UPath, part: str) -> Iterator[None]:
    """Turn what a library raises for a part that it cannot load into a UserError that names the part."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder / part} cannot be used: {explain(error)}") from None


@functools.lru_cache(maxsize=8)
def _copied(where: str) -> Path:
    copied = Path(tempfile.mkdtemp(prefix="raysid-"))
    atexit.register(shutil.rmtree, copied, ignore_errors=True)
    for file in children(UPath(where)):
        if file.name.endswith((*_SUFFIXES, ".safetensors")):
            copy_file_to(file, UPath(copied / file.name))
    return copied


def copy_file_to(source: UPath, target: UPath) -> None:
    """Copy a file between storages, in pieces. The target is written completely or not at all."""
    make_folder(target.parent)
    with storage_errors(source, "read"), source.open("rb") as opened, writing_whole(target) as file:
        shutil.copyfileobj(opened, file, 1 << 24)
