"""Text-to-image pipelines as teachers, and generators exported as pipelines that stock diffusers runs in one step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from PIL import Image
from upath import UPath

from raysid.errors import UserError
from raysid.generator import load_generator
from raysid.networks.files import NetworkCard, save_network
from raysid.networks.latents import LatentDecoder
from raysid.networks.parts import copy_parts
from raysid.networks.text import TextEncoder, Tokenizer
from raysid.run.image_grid import CAPTION_HEIGHT, CAPTION_LINES
from tests.support.command_line import raysid
from tests.support.diffusers_folders import change_json, read_folder
from tests.support.tiny_pipeline import TOKENS, WIDTH, tiny_pipeline

PROMPTS = [
    "a red fox in the snow", "a cat", "", "the small house", "green grass", "a big blue dog", "photo of a fox", "on"
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline that stock diffusers wrote."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline(folder)
    return folder


@pytest.fixture
def copied(pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline, for a test to spoil."""
    return Path(shutil.copytree(pipeline, tmp_path / "pipeline"))


def test_a_prompt_has_the_embeddings_of_diffusers_own_pipeline(pipeline: Path, tmp_path: Path) -> None:
    stock = tiny_pipeline(tmp_path / "again")  # the same seed
    ours = TextEncoder(pipeline, torch.device("cpu"))(Tokenizer(pipeline)(PROMPTS).ids)
    theirs = torch.cat([stock.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in PROMPTS])
    assert ours.shape == (len(PROMPTS), TOKENS, WIDTH)
    assert torch.equal(ours, theirs)


def test_embeddings_do_not_depend_on_what_else_is_encoded(pipeline: Path) -> None:
    ids = Tokenizer(pipeline)(PROMPTS).ids
    together = TextEncoder(pipeline, torch.device("cpu"))(ids)
    alone = TextEncoder(pipeline, torch.device("cpu"))
    alone(ids[3:5])
    assert torch.equal(alone(ids), together)


def test_overlong_prompts_are_cut_and_counted(pipeline: Path) -> None:
    fits, full, long = "a " * (TOKENS - 3), "a " * (TOKENS - 2), "a " * (TOKENS - 1)
    tokens = Tokenizer(pipeline)([fits, full, long, ""])
    assert tokens.cut.tolist() == [False, False, True, False]
    assert torch.equal(tokens.ids[1], tokens.ids[2]) and tokens.ids.shape == (4, TOKENS)


def test_a_pipeline_is_a_network_with_text_and_latents(pipeline: Path) -> None:
    network = read_folder(pipeline)
    settings = network.settings
    assert (settings.text_width, settings.latents, settings.sample_shape) == (WIDTH, True, (4, 8, 8))
    assert network.network().noise.tau == 625
    assert network.card("x").model_validate_json(network.card("x").model_dump_json()) == network.card("x")


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_alone_is_read(copied: Path, variant: str, dtype: torch.dtype) -> None:
    expected = read_folder(copied)
    for file in [*copied.glob("*/*.safetensors")]:
        halved = {name: value.to(dtype) for name, value in safetensors.torch.load_file(file).items()}
        named = file.with_name(f"{file.stem}.{variant}.safetensors")
        safetensors.torch.save_file(halved, named, {"format": "pt"})
        file.unlink()
    found = read_folder(copied)
    assert found.settings == expected.settings
    ids = Tokenizer(copied)(PROMPTS[:1]).ids
    assert TextEncoder(copied, torch.device("cpu"))(ids).dtype == torch.float32
    images = LatentDecoder(UPath(copied), torch.device("cpu"))(torch.zeros(1, 4, 8, 8))
    assert images.shape == (1, 3, 16, 16) and images.dtype == torch.float32


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: shutil.rmtree(at / "text_encoder"), "text_encoder is missing: copy the whole folder"),
        (lambda at: shutil.rmtree(at / "tokenizer"), "tokenizer is missing: copy the whole folder"),
        (lambda at: shutil.rmtree(at / "vae"), "vae is missing: copy the whole folder"),
        (
            lambda at: change_json(at / "text_encoder" / "config.json", hidden_size=32),
            "text_encoder makes embeddings of width 32, and the U-Net takes 16",
        ),
        (
            lambda at: change_json(at / "text_encoder" / "config.json", architectures=["T5EncoderModel"]),
            "text_encoder holds a T5EncoderModel: raysid uses the text encoders CLIPTextModel and BertModel",
        ),
        (
            lambda at: (at / "text_encoder" / "model.safetensors").rename(at / "text_encoder" / "model.bin"),
            "weights of text_encoder in text_encoder/model.bin, which could run a program",
        ),
        (
            lambda at: (at / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
            "has no weights of vae",
        ),
        (
            lambda at: change_json(
                at / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]
            ),
            "has text_encoder_2 beside text_encoder, and raysid distils pipelines with one text encoder",
        ),
        (
            lambda at: change_json(at / "unet" / "config.json", in_channels=9),
            "a U-Net with 9 channels in and 4 out cannot be used",
        ),
        (
            lambda at: change_json(at / "vae" / "config.json", _class_name="AutoencoderTiny"),
            "holds a AutoencoderTiny: raysid decodes latents with an AutoencoderKL",
        ),
    ],
    ids=["encoder", "tokenizer", "vae", "width", "t5", "pickle", "weights", "sdxl", "inpainting", "tiny vae"],
)
def test_a_pipeline_that_cannot_be_used_is_refused_in_a_line(copied: Path, spoil: Any, message: str) -> None:
    spoil(copied)
    with pytest.raises(UserError, match=message) as error:
        read_folder(copied)
    assert "\n" not in str(error.value) and str(copied) in str(error.value)


# Export.

STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
for line in sys.stdin:
    folder, variant, given, made = line.rstrip("\\n").split("\\t")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, variant=variant or None)
    given = torch.load(given, weights_only=True)
    result = pipeline(given["prompts"], num_inference_steps=1, guidance_scale=1, latents=given["z"], output_type="pt")
    torch.save(2 * result.images - 1, made)
    assert not any(name.partition(".")[0] in ("raysid", "ray") for name in sys.modules)
    print("made", flush=True)
"""

Stock = Callable[[Path, str, Path], tuple[torch.Tensor, str]]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """Stock diffusers in a process without raysid; returns the images of a folder, and what it says on stderr."""
    log = tmp_path_factory.mktemp("stock") / "stderr"
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", STOCK],
            cwd="/",
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )

    def make(folder: Path, variant: str, given: Path) -> tuple[torch.Tensor, str]:
        assert process.stdin is not None and process.stdout is not None
        before, made = log.stat().st_size, given.with_name("made.pt")
        print(folder, variant, given, made, sep="\t", file=process.stdin, flush=True)
        assert process.stdout.readline() == "made\n", log.read_text()[-2000:]
        return torch.load(made, weights_only=True), log.read_text()[before:]

    with process:
        yield make
        assert process.stdin is not None
        process.stdin.close()


def write_generator(pipeline: Path, folder: Path) -> Path:
    """Write a run's generator and its teacher: the pipeline's own U-Net, untrained."""
    read_network = read_folder(pipeline)
    assert read_network.parts is not None
    network = read_network.network()
    teacher, generator = UPath(folder / "teacher"), folder / "generator"
    copy_parts(read_network.parts, teacher)
    save_network(teacher, read_network.card("tiny"), network)
    card = NetworkCard.for_generator(network, 2.5, {"step": 3, "imported_from": "tiny"}, str(teacher))
    save_network(generator, card, network)
    return generator


@pytest.mark.parametrize(
    ("prediction_type", "schedule", "half"),
    [
        ("epsilon", {}, False),
        ("v_prediction", {}, True),
        ("epsilon", {"beta_schedule": "linear"}, False),
        ("epsilon", {"beta_schedule": "squaredcos_cap_v2"}, False),
        (
            "v_prediction",
            {"trained_betas": DDPMScheduler(800).betas.tolist(), "num_train_timesteps": 800},
            False,
        ),
    ],
    ids=["sd", "sd v half", "linear", "cosine", "betas"],
)
def test_stock_diffusers_makes_the_same_images_in_one_step(
    stock: Stock, tmp_path: Path, prediction_type: str, schedule: dict[str, Any], half: bool
) -> None:
    """In a process without raysid, from the exported folder alone."""
    pipeline = tmp_path / "pipeline"
    tiny_pipeline(pipeline, prediction_type, **schedule)
    generator = write_generator(pipeline, tmp_path)
    out = tmp_path / "one-step"
    result = raysid("export", generator, "--to", "diffusers", "--out", out, *(["--half"] if half else []))
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    own = load_generator(generator)
    z = torch.randn(len(PROMPTS), *own.sample_shape, generator=torch.Generator().manual_seed(0))
    torch.save({"prompts": PROMPTS, "z": z}, tmp_path / "given.pt")
    shutil.rmtree(pipeline)
    made, said = stock(out, "fp16" if half else "", tmp_path / "given.pt")
    assert "steps_offset" not in said and "safety" not in said
    with torch.no_grad():
        expected = own.decode(own(z, text=own.encode(PROMPTS)))
    assert expected.std() > 0.1
    torch.testing.assert_close(made, expected, rtol=0, atol=5e-3 if half else 1e-5)


def test_an_export_keeps_the_safety_checker_of_its_teacher(copied: Path, tmp_path: Path) -> None:
    checker = copied / "safety_checker"
    checker.mkdir()
    (checker / "config.json").write_text("{}")
    safetensors.torch.save_file({"w": torch.ones(1)}, checker / "model.safetensors")
    named = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change_json(copied / "model_index.json", safety_checker=named)
    generator = write_generator(copied, tmp_path)
    assert raysid("export", generator, "--to", "diffusers", "--out", tmp_path / "out").exit_code == 0
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["safety_checker"] == named and index["requires_safety_checker"] is True
    assert (tmp_path / "out" / "safety_checker" / "model.safetensors").exists()
    assert "2 or 4 steps give worse images" in (tmp_path / "out" / "README.md").read_text()


def test_a_generator_without_a_vae_exports_its_unet_and_says_so(copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "vae")
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "vae"}))
    generator = write_generator(copied, tmp_path)
    result = raysid("export", generator, "--to", "diffusers", "--out", tmp_path / "out")
    assert "no stock pipeline of diffusers fits this generator" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "scheduler", "unet"}


def test_an_export_that_cannot_be_made_is_refused(pipeline: Path, tmp_path: Path) -> None:
    generator = write_generator(pipeline, tmp_path)
    first = ("export", generator, "--to", "diffusers", "--out")
    assert raysid(*first, tmp_path / "out").exit_code == 0
    again = raysid(*first, tmp_path / "out")
    assert again.exit_code == 2 and "holds a pipeline already: give another folder" in again.stderr
    assert (
        "--half is for --to diffusers"
        in raysid("export", generator, "--to", "torch", "--half", "--out", "x").stderr
    )
    shutil.rmtree(tmp_path / "teacher" / "tokenizer")
    assert "tokenizer is missing" in raysid(*first, tmp_path / "other").stderr


# Samples.


def test_sample_draws_prompts_with_their_text_below(pipeline: Path, tmp_path: Path) -> None:
    generator = write_generator(pipeline, tmp_path)
    one = ("sample", generator, "--prompt", "a red fox in the snow", "-n", 4, "--out")
    result = raysid(*one, tmp_path / "fox.png")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'fox.png'}\n"), result.output
    with Image.open(tmp_path / "fox.png") as picture:
        assert picture.size == (2 * 97 + 1, 2 * (97 + CAPTION_LINES * CAPTION_HEIGHT) + 1)
        below = np.asarray(picture)[1 + 96 : 1 + 96 + CAPTION_LINES * CAPTION_HEIGHT, 1:97]
        assert (below > 200).all(-1).sum() > 30  # the text
    assert raysid(*one, tmp_path / "again.png").exit_code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "fox.png").read_bytes()


def test_a_prompt_decides_the_image(pipeline: Path, tmp_path: Path) -> None:
    generator = load_generator(write_generator(pipeline, tmp_path))

    def made(*prompts: str) -> torch.Tensor:
        source = torch.Generator().manual_seed(3)
        return generator.sample(2, generator=source, prompts=prompts)

    fox = made("a red fox", "a red fox")
    assert fox.shape == (2, 3, 16, 16) and fox.abs().max() <= 1
    assert torch.equal(fox[0], made("a red fox", "green grass")[0])
    assert not torch.allclose(fox[1], made("a red fox", "green grass")[1])


def test_a_call_needs_embeddings_for_each_image(pipeline: Path, tmp_path: Path) -> None:
    generator = load_generator(write_generator(pipeline, tmp_path))
    z, text = torch.randn(2, *generator.sample_shape), generator.encode(["a cat", "a fox"])
    with pytest.raises(ValueError, match="makes images from text: give its embeddings, as `encode`"):
        generator(z)
    with pytest.raises(ValueError, match=r"must have shape \(2, tokens, width\), not \(1, 12, 16\)"):
        generator(z, text=text[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), 'makes images from text: give --prompt "a red fox in the snow"'),
        (("--prompt", "a cat", "--labels", "3"), "takes text, not classes: leave out --labels"),
    ],
)
def test_a_sample_that_cannot_be_made_is_refused(
    pipeline: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    generator = write_generator(pipeline, tmp_path)
    result = raysid("sample", generator, *arguments, "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and message in result.stderr
