"""Generators as pipelines that stock diffusers runs in one step.

The generator's step is x_hat = D(s_tau z, tau, c). An Euler scheduler of `tau + 1` training steps with trailing
spacing has one step, at tau: it starts from sigma_tau z, divides that by sqrt(sigma_tau^2 + 1), which gives s_tau z,
and ends at x_hat. So the exported folder needs no code of raysid.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from upath import UPath

from raysid.config.networks import DiffusersSettings
from raysid.errors import UserError
from raysid.networks.diffusers import DiffusersDenoiser, diffusers_package
from raysid.networks.files import NetworkCard, check_free, load_network
from raysid.networks.parts import (
    INDEX,
    NEEDED,
    SCHEDULER,
    TEXT_ENCODER,
    TOKENIZER,
    VAE,
    copy_file_to,
    is_variant,
    part_config,
    part_files,
)
from raysid.storage import children, exists, make_folder, read_json, write_whole

UNET = "unet"
_OPTIONAL = ("safety_checker", "feature_extractor")
_LINEAR = ("linear", "scaled_linear")  # schedules whose first betas are a schedule of the same kind


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: the folder.
        pipeline: True if stock diffusers loads the folder as a pipeline; else it holds `unet/` and `scheduler/` only.
    """

    folder: UPath
    pipeline: bool


def export_pipeline(folder: UPath, out: UPath, half: bool = False) -> Exported:
    """Write the generator in `folder` as a pipeline of diffusers.

    Args:
        out: the folder to write, which may be in a bucket.
        half: weights in half precision, in files of the variant `fp16`.

    Raises:
        UserError: the generator is not a network of diffusers, a part of its pipeline is missing, or `out` holds a
            network already.
    """
    check_free(out)
    if exists(out / INDEX) or exists(out / UNET):
        raise UserError(f"{out} holds a pipeline already: give another folder")
    card, network = load_network(folder, "generator")
    if not isinstance(network, DiffusersDenoiser):
        raise UserError(
            f"{folder} holds a network that is not of diffusers: export it --to safetensors or --to torch"
        )
    parts = _parts_of(folder, card)
    fits = parts is not None and _fits_stock(parts, card.network)
    with tempfile.TemporaryDirectory(prefix="raysid-") as made:
        _write_unet(Path(made) / UNET, network, half)
        scheduler = one_step_scheduler(network, card)
        scheduler.save_pretrained(Path(made) / SCHEDULER)
        listed: dict[str, list[str | None]] = {
            UNET: ["diffusers", type(network.model).__name__],
            SCHEDULER: ["diffusers", type(scheduler).__name__],
        }
        if fits:
            assert parts is not None
            listed |= _copy_parts(parts, Path(made), half)
            index = {
                "_class_name": "StableDiffusionPipeline",
                "_diffusers_version": diffusers_package().__version__,
                **{name: listed[name] for name in sorted(listed)},
                "requires_safety_checker": listed["safety_checker"] != [None, None],
            }
            (Path(made) / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        (Path(made) / "README.md").write_text(_card_text(card, fits, half))
        for file in sorted(Path(made).rglob("*")):
            if file.is_file():
                copy_file_to(UPath(file), out / file.relative_to(made).as_posix())
    return Exported(out, fits)


def one_step_scheduler(network: DiffusersDenoiser, card: NetworkCard) -> Any:
    """Return diffusers' EulerDiscreteScheduler whose one step is the generator's.

    Betas are the first tau + 1 of the teacher's: as a schedule of the same kind where they are one, else as a list.
    """
    assert isinstance(card.network, DiffusersSettings) and card.tau is not None
    given = card.network.scheduler
    with torch.device("cpu"):
        betas = diffusers_package().DDPMScheduler.from_config(given.model_dump()).betas[: card.tau + 1]
    if given.beta_schedule in _LINEAR and given.trained_betas is None and not given.rescale_betas_zero_snr:
        schedule = {
            "beta_schedule": given.beta_schedule,
            "beta_start": given.beta_start,
            "beta_end": float(betas[-1]),
        }
    else:
        schedule = {"trained_betas": betas.tolist()}
    return diffusers_package().EulerDiscreteScheduler(
        num_train_timesteps=card.tau + 1,
        timestep_spacing="trailing",
        prediction_type=given.prediction_type,
        steps_offset=1,  # without it the pipeline warns
        **schedule,
    )


def _parts_of(folder: UPath, card: NetworkCard) -> UPath | None:
    """Return the folder of the generator's text encoder and VAE; None for a generator that takes no text."""
    if not card.network.text_width:
        return None
    parts = card.parts_folder(folder)
    for part in NEEDED:
        if not exists(parts / part):
            raise UserError(f"{parts / part} is missing: copy the whole folder of the run's teacher there")
    return parts


def _fits_stock(parts: UPath, settings: Any) -> bool:
    """True if StableDiffusionPipeline can run the parts: latents, and CLIP's text encoder."""
    return settings.latents and part_config(parts, TEXT_ENCODER).get("architectures") == ["CLIPTextModel"]


def _write_unet(folder: Path, network: DiffusersDenoiser, half: bool) -> None:
    model = network.model.half() if half else network.model
    model.save_pretrained(folder, safe_serialization=True, variant="fp16" if half else None)


def _copy_parts(parts: UPath, made: Path, half: bool) -> dict[str, list[str | None]]:
    """Copy text encoder, tokenizer, VAE and what else the teacher's pipeline has; return their classes."""
    index = read_json(parts / INDEX) or {}
    classes: dict[str, list[str | None]] = {
        TEXT_ENCODER: ["transformers", "CLIPTextModel"],
        TOKENIZER: ["transformers", "CLIPTokenizer"],
        VAE: ["diffusers", "AutoencoderKL"],
    }
    there = {path.name for path in children(parts)}
    for name in _OPTIONAL:
        classes[name] = index[name] if name in there and index.get(name) else [None, None]
    files = [(name, file) for name, file in part_files(parts) if name.partition("/")[0] in classes]
    for part in sorted({name.partition("/")[0] for name, _ in files}):
        own = [(name, file) for name, file in files if name.startswith(f"{part}/")]
        weights = [file for name, file in own if name.endswith(".safetensors")]
        merged = bool(weights) and (half or any(is_variant(file.name) for file in weights))
        for name, file in own:
            if not (merged and (file in weights or name.endswith(".index.json"))):
                copy_file_to(file, UPath(made / name))
        if merged:
            _merge_weights(weights, made / part, half)
    return classes


def _merge_weights(files: Sequence[UPath], folder: Path, half: bool) -> None:
    """Write the weights of some files as one file under diffusers' or transformers' name, in half precision or not."""
    merged: dict[str, torch.Tensor] = {}
    for file in files:
        with file.open("rb") as opened:
            merged |= safetensors.torch.load(opened.read())
    if half:
        merged = {k: v.half() if v.is_floating_point() else v for k, v in merged.items()}
    stem = files[0].name.partition(".")[0].partition("-0")[0]
    name = f"{stem}.fp16.safetensors" if half else f"{stem}.safetensors"
    make_folder(UPath(folder))
    write_whole(UPath(folder / name), safetensors.torch.save(merged, {"format": "pt"}))


def _card_text(card: NetworkCard, pipeline: bool, half: bool) -> str:
    """Return the model card of an exported generator."""
    trained = card.trained
    origin = trained.get("imported_from") or "the teacher of its run"
    variant = ', variant="fp16", torch_dtype=torch.float16' if half else ""
    use = f"""```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("path/of/this/folder"{variant})
image = pipeline("a red fox in the snow", num_inference_steps=1, guidance_scale=1).images[0]
```
"""
    if not pipeline:
        use = (
            "It has a U-Net and its scheduler alone: no stock pipeline of diffusers fits it. One call of the U-Net at\n"
            "the scheduler's one step makes a sample.\n"
        )
    figures = "".join(f"- {name}: {value}\n" for name, value in sorted(trained.items()) if _is_plain(value))
    return f"""---
library_name: diffusers
tags: [raysid, one-step, score-identity-distillation]
---

# A one-step generator

Made by [raysid](https://pypi.org/project/raysid/) with Score identity Distillation (SiD-LSG, arXiv 2406.01561) from
{origin}. The licence of that model holds for this one, too.

{use}
One step is what it is trained for: 2 or 4 steps give worse images. Guidance is part of its weights: leave
`guidance_scale` at 1.

{figures}"""


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
