"""Folders as diffusers and its training scripts write them: extra keys, variants, shards, pipelines of latents."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler

from raysid.errors import UserError
from raysid.networks.diffusers_folder import DiffusersNetwork
from tests.support.diffusers_folders import change_json, read_folder
from tests.trainers.test_diffusers_teacher import unet

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    unet().save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]})
    )
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "ddpm"))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_folder(folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder.parent) in line
    return line


def assert_weights(network: DiffusersNetwork, expected: dict[str, torch.Tensor]) -> None:
    found = network.network().state_dict()
    assert all(torch.equal(found[f"model.{name}"], value.float()) for name, value in expected.items())


def test_keys_that_the_network_does_not_take_are_left_out(folder: Path) -> None:
    plain = read_folder(folder)
    average = {"decay": 0.9999, "inv_gamma": 1.0, "optimization_step": 7, "use_ema_warmup": True}
    change_json(folder / "unet" / "config.json", **average, surprise=1)
    assert read_folder(folder).settings == plain.settings and read_folder(folder).sha256 == plain.sha256


@pytest.mark.parametrize("place", ["beside", "training"])
def test_an_average_that_a_training_script_wrote(folder: Path, tmp_path: Path, place: str) -> None:
    """`checkpoint-500/unet_ema`, whose scheduler is next to it or in the folder of the training."""
    checkpoint = tmp_path / "run" / "checkpoint-500"
    shutil.copytree(folder / "unet", checkpoint / "unet_ema")
    shutil.copytree(
        folder / "scheduler", {"beside": checkpoint, "training": checkpoint.parent}[place] / "scheduler"
    )
    change_json(checkpoint / "unet_ema" / "config.json", decay=0.9999)
    assert read_folder(checkpoint / "unet_ema").settings == read_folder(folder).settings


@pytest.mark.parametrize("variant", ["fp16", "bf16", "ema"])
def test_a_variant_of_the_weights_is_read(folder: Path, variant: str) -> None:
    file = folder / "unet" / WEIGHTS
    halves = {name: value.half() for name, value in safetensors.torch.load_file(file).items()}
    file.unlink()
    safetensors.torch.save_file(halves, folder / "unet" / f"{STEM}.{variant}.safetensors")
    assert_weights(read_folder(folder), halves)


def test_of_several_variants_the_whole_weights_come_first(folder: Path) -> None:
    file = folder / "unet" / WEIGHTS
    whole = read_folder(folder)
    for variant in ("fp16", "non_ema"):
        (folder / "unet" / f"{STEM}.{variant}.safetensors").write_bytes(b"not read")
    assert read_folder(folder).sha256 == whole.sha256
    file.rename(folder / "unet" / f"{STEM}.fp16.safetensors")
    assert read_folder(folder).sha256 == whole.sha256
    (folder / "unet" / f"{STEM}.fp16.safetensors").rename(folder / "unet" / f"{STEM}.ema.safetensors")
    assert "several variants of its weights (ema, non_ema): keep one" in refused(folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_with_an_index_are_read(folder: Path, variant: str | None) -> None:
    dtype = torch.float32 if variant is None else torch.float16
    model = unet().to(dtype)
    (folder / "unet" / WEIGHTS).unlink()
    model.save_pretrained(folder / "unet", max_shard_size="20KB", variant=variant)
    names = sorted(path.name for path in (folder / "unet").iterdir())
    assert not any(name == WEIGHTS for name in names) and sum("-of-" in name for name in names) > 1
    assert_weights(read_folder(folder), model.state_dict())

    shard = next(folder.glob("unet/*-00002-of-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    assert f"{shard} is damaged" in refused(folder)
    shard.unlink()
    assert f"{shard} is missing: copy the whole folder" in refused(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a.bin", 7, ".safetensors", "x/y.safetensors"]
)
def test_an_index_names_only_files_beside_it(folder: Path, name: Any) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    index = folder / "unet" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    assert "names files that are not .safetensors beside it" in refused(folder)
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "nonsense"):
        index.write_text(content)
        assert f"{index} is damaged" in refused(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diffusion_pytorch_model.bin", "which could run a program .* safe_serialization=True"),
        ("diffusion_pytorch_model.bin.index.json", "which could run a program"),
        ("diffusion_pytorch_model.fp16.bin", "which could run a program"),
        ("diffusion_flax_model.msgpack", "which raysid does not read: .* for torch"),
    ],
)
def test_weights_in_other_forms_name_the_remedy(folder: Path, name: str, words: str) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / name)
    assert re.search(f"{re.escape(name)}, {words}", refused(folder))


@pytest.mark.parametrize("part", ["vae", "vqvae", "movq", "first_stage"])
@pytest.mark.parametrize("given", ["pipeline", "unet"])
def test_a_network_of_latents_is_refused(folder: Path, part: str, given: str) -> None:
    kind = {"vae": "AutoencoderKL"}.get(part, "VQModel")
    (folder / part).mkdir()
    (folder / "model_index.json").write_text(
        json.dumps(
            {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], part: ["diffusers", kind]}
        )
    )
    line = refused(folder if given == "pipeline" else folder / "unet")
    assert f"this LDMPipeline's U-Net makes latents, which its {part} decodes" in line


def test_a_decoder_without_a_pipelines_index_is_seen(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "vqvae").mkdir()
    assert "makes latents, which its vqvae decodes" in refused(folder)


def test_a_pipeline_without_a_unet_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "model_index.json").write_text(
        '{"_class_name": "DiTPipeline", "transformer": ["a", "b"]}'
    )
    assert "is a DiTPipeline, which has no U-Net" in refused(tmp_path / "dit")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_that_are_no_fractions_are_refused(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "unet" / WEIGHTS
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file(weights | {"conv_in.bias": weights["conv_in.bias"].to(dtype)}, file)
    assert f"conv_in.bias is {dtype}" in refused(folder)


def test_betas_of_another_number_than_the_steps_are_refused(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    change_json(file, trained_betas=[0.001] * 900)
    assert "its 900 trained_betas are not num_train_timesteps" in refused(folder)
