"""Networks in the folders that `save_pretrained` of diffusers writes, for use as teachers.

The folder of a pipeline has the U-Net in `unet/` and its scheduler in `scheduler/`; the folder of a model has the
U-Net's files, and `scheduler_config.json` beside them or in `scheduler/`. Only JSON and safetensors are read: nothing
is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from upath import UPath

from raysid.config.networks import DiffusersSettings, ScheduleSettings
from raysid.errors import UserError
from raysid.networks.diffusers import DiffusersDenoiser, build_diffusers
from raysid.networks.files import CONFIG, NetworkCard, misfits, parse_weights, shapes_of, weight_shapes
from raysid.storage import BUCKETS, LOCAL, children, exists, read_json, read_whole

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
SAMPLER_STEPS = 50

# Names of attention weights before diffusers 0.12, which many published models still use.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")


@dataclass(frozen=True)
class DiffusersNetwork:
    """The content of a folder.

    Attributes:
        settings: the network's settings.
        weights: the denoiser's state dict, in the file's precision.
        sha256: digest of the weights' file and the settings.
    """

    settings: DiffusersSettings
    weights: dict[str, Tensor]
    sha256: str

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
    if "model_index.json" in names:
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
    content = _weights_file(unet)
    given = parse_weights(content, unet / WEIGHTS)
    try:
        expected = weight_shapes(settings)
        _check_runs(settings)
    except ValueError as error:
        raise UserError(f"{unet} cannot be used: {error}") from None
    weights = {"model." + _OLD_NAME.sub(lambda old: _OLD_NAMES[old[0]], name): v for name, v in given.items()}
    if odd := misfits(expected, shapes_of(weights)):
        raise UserError(
            f"{unet / WEIGHTS} does not fit the network of {CONFIG}: {odd[0].removeprefix('model.')} and "
            f"{len(odd) - 1} more differ"
        )
    digest = hashlib.sha256(content + settings.model_dump_json().encode()).hexdigest()
    return DiffusersNetwork(settings, weights, digest)


def _check_runs(settings: DiffusersSettings) -> None:
    """Run the network on the meta device. Raises ValueError, as for images that cannot be halved often enough."""
    with torch.device("meta"):
        images = torch.empty(1, *settings.sample_shape)
        step = torch.zeros(1, dtype=torch.long)
        labels = {"class_labels": step} if settings.label_dim else {}
        try:
            build_diffusers(settings).model(images, step, **labels)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(str(error).partition("\n")[0]) from None


def _settings(unet: UPath, num_classes: int) -> DiffusersSettings:
    """Return the settings in the two configs, without metadata (`_diffusers_version`) and sampling settings."""
    config = _config(unet / CONFIG)
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(f"{unet} holds a {kind}: of diffusers' networks only a UNet2DModel can be a teacher")
    files = [unet / SCHEDULER, unet / "scheduler" / SCHEDULER]
    if unet.name == "unet":
        files.append(unet.parent / "scheduler" / SCHEDULER)
    file = next((file for file in files if exists(file)), None)
    if file is None:
        raise UserError(f"{unet} has no scheduler: {SCHEDULER} must be next to it or in scheduler/")
    scheduler = _config(file)
    if "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
        raise UserError(f"{file} has no beta_schedule: it is not one with discrete DDPM steps")
    tree = {
        "unet": {name: v for name, v in config.items() if not name.startswith("_")},
        "scheduler": {name: v for name, v in scheduler.items() if name in ScheduleSettings.model_fields},
        "null_class": num_classes > 0 and config.get("num_class_embeds") == num_classes + 1,
    }
    try:
        return DiffusersSettings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        at = [str(part) for part in first["loc"]]
        where = file if at[:1] == ["scheduler"] else unet / CONFIG
        raise UserError(f"{where} cannot be used: {': '.join([*at[1:], first['msg']])}") from None


def _config(file: UPath) -> dict[str, Any]:
    try:
        config = read_json(file)
    except RecursionError as error:
        raise UserError(f"cannot read {file}: {error}") from None
    if config is None:
        raise UserError(f"{file} is missing: copy the whole folder")
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged: it holds no settings")
    return config


def _weights_file(unet: UPath) -> bytes:
    """Read the file of weights."""
    try:
        return read_whole(unet / WEIGHTS)
    except FileNotFoundError:
        pass
    if pickled := [path.name for path in children(unet) if path.suffix in (".bin", ".pt", ".ckpt")]:
        raise UserError(
            f"{unet} has its weights in {pickled[0]}, which could run a program and is never opened: save the "
            "model with save_pretrained(..., safe_serialization=True)"
        )
    raise UserError(f"{unet / WEIGHTS} is missing: copy the whole folder")
