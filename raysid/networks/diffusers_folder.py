"""Networks in the folders that `save_pretrained` of diffusers writes, for use as teachers.

The folder of a pipeline has the U-Net in `unet/` and its scheduler in `scheduler/`; the folder of a model has the
U-Net's files, and `scheduler_config.json` beside them or in `scheduler/`. Weights are one file of safetensors or
several with an index, in float32 or as a variant such as `fp16`. Only JSON and safetensors are read: nothing is
executed or unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from pydantic_core import from_json
from torch import Tensor
from upath import UPath

from raysid.config.networks import DiffusersSettings, ScheduleSettings
from raysid.errors import UserError
from raysid.networks.diffusers import DiffusersDenoiser, build_diffusers, unet_parameters
from raysid.networks.files import (
    CONFIG,
    NetworkCard,
    misfits,
    parse_weights,
    read_description,
    shapes_of,
    weight_shapes,
)
from raysid.networks.parts import INDEX, VARIANTS, check_pipeline, digest_parts
from raysid.storage import BUCKETS, LOCAL, children, exists, read_whole

STEM, SAFETENSORS = "diffusion_pytorch_model", ".safetensors"
SCHEDULER = "scheduler_config.json"
SAMPLER_STEPS = 50

# Forms of weights by their endings: those that could run a program, and those that raysid has no reader of.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")
_OTHERS = (".msgpack", ".onnx", ".h5", ".gguf", ".xml")

# Names of attention weights before diffusers 0.12, which many published models still use.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")


@dataclass(frozen=True)
class DiffusersNetwork:
    """The content of a folder.

    Attributes:
        settings: the network's settings.
        weights: the denoiser's state dict, in the file's precision.
        sha256: digest of the weights' file, the settings and the parts.
        parts: folder of the text encoder and the other parts of a text-to-image pipeline; None for other networks.
    """

    settings: DiffusersSettings
    weights: dict[str, Tensor]
    sha256: str
    parts: UPath | None = None

    def card(self, name: str) -> NetworkCard:
        """Return the card of this network as a teacher of ours, imported from the folder `name`."""
        trained = {"imported_from": name, "sha256": self.sha256, "sampler_steps": SAMPLER_STEPS}
        return NetworkCard(kind="teacher", network=self.settings, trained=trained)

    def network(self) -> DiffusersDenoiser:
        """Build the network, in train mode and float32."""
        network = build_diffusers(self.settings)
        network.load_state_dict(self.weights)
        return network


def find_unet(folder: UPath) -> UPath | None:
    """Return the folder of the U-Net in a folder of diffusers; None if `folder` is of another kind or missing."""
    if folder.protocol not in (*LOCAL, *BUCKETS) or not folder.is_dir():
        return None
    names = {path.name for path in children(folder)}
    if "unet" in names:
        return folder / "unet"
    if INDEX in names:
        return folder
    try:
        return folder if "_class_name" in _config(folder / CONFIG) else None
    except UserError:  # the reader of our own folders reports the error
        return None


def read_diffusers(unet: UPath, num_classes: int) -> DiffusersNetwork:
    """Read a U-Net that `find_unet` found, with its scheduler.

    Args:
        num_classes: classes of the images; if the U-Net has one more, its last one stands for "no class".

    Raises:
        UserError: a file is missing or damaged, the weights are a pickle, or raysid cannot use the network.
    """
    settings = _settings(unet, num_classes)
    digest, given = hashlib.sha256(), dict[str, Tensor]()
    for file in _weights_files(unet):
        content = _read(file)
        given |= parse_weights(content, file)
        digest.update(content)
    parts = _pipeline(unet) if settings.text_width else None
    # Without text the digest is that of earlier releases, whose converted teachers stay in use.
    digest.update(settings.model_dump_json(exclude=None if parts else {"unet_class", "latents"}).encode())
    if parts is not None:
        digest.update(digest_parts(parts).encode())
    try:
        expected = weight_shapes(settings)
        check_runs(settings)
    except ValueError as error:
        raise UserError(f"{unet} cannot be used: {error}") from None
    if odd := sorted(name for name, value in given.items() if not value.is_floating_point()):
        raise UserError(
            f"{file}: {odd[0]} is {given[odd[0]].dtype}, where numbers with a fraction are needed"
        )
    weights = {"model." + _OLD_NAME.sub(lambda old: _OLD_NAMES[old[0]], name): v for name, v in given.items()}
    if odd := misfits(expected, shapes_of(weights)):
        raise UserError(
            f"{file} does not fit the network of {CONFIG}: {odd[0].removeprefix('model.')} and {len(odd) - 1} more "
            "differ"
        )
    return DiffusersNetwork(settings, weights, digest.hexdigest(), parts)


def check_runs(settings: DiffusersSettings) -> None:
    """Run the network on the meta device. Raises ValueError, as for images that cannot be halved often enough."""
    with torch.device("meta"):
        images = torch.empty(1, *settings.sample_shape)
        step = torch.zeros(1, dtype=torch.long)
        given = {"class_labels": step} if settings.label_dim else {}
        if settings.text_width:
            given["encoder_hidden_states"] = torch.empty(1, 1, settings.text_width)
        try:
            build_diffusers(settings).model(images, step, **given)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(str(error).partition("\n")[0]) from None


def _settings(unet: UPath, num_classes: int) -> DiffusersSettings:
    """Return the settings in the two configs, without those of sampling.

    Keys that diffusers' class does not take, such as those of a moving average, are left out as diffusers does.
    """
    config = _config(unet / CONFIG) if exists(unet / CONFIG) else {}
    kind = config.get("_class_name")
    if kind != "UNet2DConditionModel":
        _check_makes_images(unet)
        config = _config(unet / CONFIG)
        if kind != "UNet2DModel":
            raise UserError(
                f"{unet} holds a {kind}: of diffusers' networks a UNet2DModel or a UNet2DConditionModel can be a "
                "teacher"
            )
    file = next((file for file in _scheduler_files(unet) if exists(file)), None)
    if file is None:
        raise UserError(f"{unet} has no scheduler: {SCHEDULER} must be next to it or in scheduler/")
    scheduler = _config(file)
    betas = scheduler.get("trained_betas")
    if "beta_schedule" not in scheduler and betas is None:
        raise UserError(f"{file} has no beta_schedule: it is not one with discrete DDPM steps")
    if isinstance(betas, list) and len(betas) != scheduler.get("num_train_timesteps", 1000):
        raise UserError(f"{file} cannot be used: its {len(betas)} trained_betas are not num_train_timesteps")
    known = unet_parameters(kind)
    tree = {
        "unet_class": kind,
        "unet": {name: value for name, value in config.items() if name in known},
        "scheduler": {name: v for name, v in scheduler.items() if name in ScheduleSettings.model_fields},
        "null_class": num_classes > 0 and config.get("num_class_embeds") == num_classes + 1,
    }
    try:
        settings = DiffusersSettings.model_validate(tree)
        if not settings.text_width:
            return settings
        latents = check_pipeline(_pipeline(unet), settings.text_width)
        return settings.model_copy(update={"latents": latents})
    except ValidationError as error:
        first = error.errors()[0]
        at = [str(part) for part in first["loc"]]
        where = file if at[:1] == ["scheduler"] else unet / CONFIG
        raise UserError(f"{where} cannot be used: {': '.join([*at[1:], first['msg']])}") from None


def _pipeline(unet: UPath) -> UPath:
    """Return the folder of the pipeline that a U-Net with text belongs to."""
    return unet.parent if unet.name in ("unet", "unet_ema") else unet


def _config(file: UPath) -> dict[str, Any]:
    try:
        config = from_json(read_description(file))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy the whole folder") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged: it holds no settings")
    return config


def _scheduler_files(unet: UPath) -> list[UPath]:
    """Return the places of the scheduler's config: in the model's folder, the pipeline's, or that of its training."""
    folders = [unet, unet / "scheduler"]
    if unet.name in ("unet", "unet_ema"):
        folders.append(unet.parent / "scheduler")
        if unet.parent.name.startswith("checkpoint-"):
            folders.append(unet.parent.parent / "scheduler")
    return [folder / SCHEDULER for folder in folders]


def _check_makes_images(unet: UPath) -> None:
    """Refuse a pipeline without a U-Net, and one whose U-Net makes latents of a VAE."""
    folder = _pipeline(unet)
    names = {path.name for path in children(folder)}
    pipeline = _config(folder / INDEX) if INDEX in names else {}
    kind = pipeline.get("_class_name", "pipeline")
    if folder == unet and pipeline and CONFIG not in names:
        raise UserError(
            f"{folder} is a {kind}, which has no U-Net: of diffusers' networks only a UNet2DModel can be a teacher"
        )
    parts = {name: value[-1] for name, value in pipeline.items() if isinstance(value, list) and value}
    parts |= {name: name for name in names & _DECODERS}
    decoders = [name for name, part in parts.items() if name in _DECODERS or _DECODER.match(str(part))]
    if decoders:
        raise UserError(
            f"{folder} cannot be used: this {kind}'s U-Net makes latents, which its {decoders[0]} decodes, and raysid "
            "distils pixels: give a model that makes images itself, such as a DDPMPipeline"
        )


_DECODERS = {"vae", "vqvae", "movq"}
_DECODER = re.compile("(Asymmetric)?Autoencoder|VQModel|ConsistencyDecoderVAE")


def weights_name(names: Iterable[str]) -> str | None:
    """Return the file of the weights among the names in a U-Net's folder: safetensors, or an index of shards.

    The weights without a variant come first, as in diffusers; of variants, those of `VARIANTS`. None if there are no
    weights that can be read.

    Raises:
        ValueError: there are several other variants; the text lists them.
    """
    found: dict[str, str] = {}  # by variant; "" for none
    for name in sorted(names):
        if match := _WEIGHTS.fullmatch(name) or _SHARD_INDEX.fullmatch(name):
            found.setdefault(match["variant"] or "", name)
    variant = next((variant for variant in ("", *VARIANTS) if variant in found), None)
    if variant is not None:
        return found[variant]
    if len(found) > 1:
        raise ValueError(f"several variants of its weights ({', '.join(found)})")
    return next(iter(found.values()), None)


def _weights_files(unet: UPath) -> list[UPath]:
    """Return the files of the weights: one, or the shards of an index."""
    names = {path.name for path in children(unet)}
    try:
        name = weights_name(names)
    except ValueError as error:
        raise UserError(f"{unet} has {error}: keep one") from None
    if name is not None:
        return [unet / name] if name.endswith(SAFETENSORS) else _shards(unet / name)
    if pickled := sorted(name for name in names if name.endswith(_PICKLES)):
        raise UserError(
            f"{unet} has its weights in {pickled[0]}, which could run a program and is never opened: save the "
            "model with save_pretrained(..., safe_serialization=True)"
        )
    if others := sorted(name for name in names if name.endswith(_OTHERS)):
        raise UserError(
            f"{unet} has its weights in {others[0]}, which raysid does not read: save the model with "
            "save_pretrained(..., safe_serialization=True) of diffusers for torch"
        )
    raise UserError(f"{unet / STEM}{SAFETENSORS} is missing: copy the whole folder")


_WEIGHTS = re.compile(rf"{STEM}(\.(?P<variant>[\w-]+))?\.safetensors")
_SHARD_INDEX = re.compile(rf"{STEM}\.safetensors\.index(\.(?P<variant>[\w-]+))?\.json")


def _shards(index: UPath) -> list[UPath]:
    """Return the files that an index of shards names."""
    places = _config(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} is damaged: it has no weight_map")
    names = {name if isinstance(name, str) else "" for name in places.values()}
    if any(not re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names):
        raise UserError(
            f"{index} is damaged: its weight_map names files that are not {SAFETENSORS} beside it"
        )
    return [index.parent / name for name in sorted(names)]


def _read(file: UPath) -> bytes:
    try:
        return read_whole(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy the whole folder") from None
