"""The recipes of the published runs: their networks, and their settings as in the table of docs/method.md."""

from __future__ import annotations

import pytest
import torch

from raysid.config import Config
from raysid.networks import build_denoiser
from raysid.plan.costs import network_costs
from raysid.plan.memory import role_memory, usable, whole_memory
from raysid.recipes import load_recipe, packaged_recipes

MIMG = 1_000_000
EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-"

# data: (teacher's file, its parameters in millions, classes), (SiD's alpha, SiDA's), batch, group, rate, half-life,
# lengths of SiD, SiDA and SiD²A, dropout, augmentation, precision
PUBLISHED = {
    "cifar10-uncond": (
        ("cifar10-32x32-uncond-vp", 55.7, 0), (1.2, 1.0), 256, 32, 1e-5, 0.5, (500, 300, 100), 0.13, 0.12, "float32",
    ),
    "cifar10-cond": (
        ("cifar10-32x32-cond-vp", 55.7, 10), (1.2, 1.0), 256, 32, 1e-5, 0.5, (800, 300, 100), 0.13, 0.12, "float32",
    ),
    "imagenet64": (
        ("imagenet-64x64-cond-adm", 295.9, 1000), (1.2, 1.0), 8192, 32, 4e-6, 2, (1000, 300, 100), 0.1, 0, "fp16",
    ),
    "ffhq64": (
        ("ffhq-64x64-uncond-vp", 61.8, 0), (1.2, 1.0), 512, 64, 1e-5, 0.5, (500, 200, 100), 0.05, 0.15, "fp16",
    ),
    "afhqv2": (
        ("afhqv2-64x64-uncond-vp", 61.8, 0), (1.0, 1.0), 512, 64, 5e-6, 0.5, (500, 200, 100), 0.05, 0.15, "fp16",
    ),
}  # fmt: skip


def test_every_published_run_has_a_recipe() -> None:
    names = {f"{data}-{method}" for data in PUBLISHED for method in ("sid", "sida", "sid2a")}
    summaries = packaged_recipes()
    assert names | {*TEXT} == {name for name in summaries if "digits" not in name}
    for name in names:
        assert "FID" in summaries[name].description


@pytest.mark.parametrize("data", PUBLISHED)
def test_a_published_recipe_has_the_published_settings(data: str) -> None:
    (
        (file, parameters, classes),
        alphas,
        batch,
        group,
        rate,
        halflife,
        lengths,
        dropout,
        augment,
        precision,
    ) = PUBLISHED[data]
    sid, sida, sid2a = (
        load_recipe(f"{data}-{method}", kind="distill") for method in ("sid", "sida", "sid2a")
    )
    for config in (sid, sida, sid2a):
        assert config.teacher.path == f"{EDM}{file}.pkl"
        network = config.teacher.network
        assert network is not None and network.label_dim == classes
        assert millions_of_parameters(config) == parameters
        assert config.schedule == "alternating"  # the published FIDs are for the authors' order
        assert (config.batch_size, config.precision) == (batch, precision)
        for learner in (config.generator, config.fake_score):
            assert (learner.lr, learner.dropout) == (rate, dropout)
            assert learner.eps == (1e-8 if precision == "float32" else 1e-6)
        assert config.generator.betas == ((0.9, 0.999) if config is sid and data == "ffhq64" else (0, 0.999))
        assert config.fake_score.betas == (0, 0.999)
        assert config.fake_score.augment == augment
        assert augment == 0 or network.augment_dim == 9
        assert config.ema.halflife_images == halflife * MIMG and config.ema.rampup_ratio == 0.05
        assert (config.method.sid_weight, config.method.sigma_init) == (100, 2.5)
    assert [c.total_images for c in (sid, sida, sid2a)] == [length * MIMG for length in lengths]
    assert (sid.method.alpha, sida.method.alpha, sid2a.method.alpha) == (*alphas, alphas[1])
    assert sid.method.adversarial is None and sid.data.source is None
    for config in (sida, sid2a):
        adversarial = config.method.adversarial
        assert adversarial is not None and config.data.source and config.data.origin
        assert adversarial.group_size == group
        assert (adversarial.generator_weight, adversarial.discriminator_weight) == (0.01, 1.0)
        assert (adversarial.generator_start_images, adversarial.adversarial_start_images) == (
            100_000,
            200_000,
        )
        assert adversarial.clip_gradient == 1.0
    assert sida.generator.path is None
    assert (sid2a.generator.path or "").startswith("https://huggingface.co/UT-Austin-PML/SiD/")


# Teacher of the Hub, length in millions of images.
TEXT = {
    "sd15-lsg": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 18.8),
    "sd21-base-lsg": ("stabilityai/stable-diffusion-2-1-base", 9.7),
}


@pytest.mark.parametrize("name", TEXT)
def test_a_text_recipe_has_the_published_settings(name: str) -> None:
    teacher, length = TEXT[name]
    config = load_recipe(name, kind="distill")
    assert (config.teacher.path, config.total_images) == (teacher, length * MIMG)
    assert config.data.source is None and config.schedule == "alternating"
    method, guidance = config.method, config.method.guidance
    assert (method.alpha, method.sid_weight, method.sigma_init, method.adversarial) == (1.0, 1.0, 2.5, None)
    assert (guidance.train_fake, guidance.eval_fake, guidance.eval_teacher) == (1.5, 1.5, 1.5)
    assert guidance.condition_drop == 0.1
    assert (config.batch_size, config.precision) == (512, "float32")
    for learner in (config.generator, config.fake_score):
        assert (learner.lr, learner.betas, learner.eps) == (1e-6, (0, 0.999), 1e-8)
    assert (config.ema.halflife_images, config.ema.rampup_ratio) == (50_000, 0.05)
    assert config.lr_schedule.decay == "constant"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("sd15-lsg", 859.5), ("sd21-base-lsg", 865.9)])
def test_a_text_recipe_fits_cards_of_80_gb(name: str, millions: float) -> None:
    """By the planner's count of the whole U-Net on the meta device, of which 71.4 GB are usable."""
    config = load_recipe(name, kind="distill")
    assert config.teacher.diffusers is not None
    costs = network_costs(config.teacher.diffusers)
    assert costs.parameters / 1e6 == pytest.approx(millions, abs=0.1)
    usable_bytes = usable(80e9, 1)
    assert max(role.total for role in role_memory(config, costs).values()) < usable_bytes
    twice = config.model_copy(update={"microbatch_size": 2 * config.microbatch})
    assert max(role.total for role in role_memory(twice, costs).values()) > usable_bytes
    text = 2 * costs.text_parameters
    assert (whole_memory(config, costs).weights - text) / 1e9 == pytest.approx(34.5, abs=0.2)


def millions_of_parameters(config: Config) -> float:
    """Parameters, in millions to one decimal, of a recipe's network, built on the meta device."""
    assert config.teacher.network is not None
    with torch.device("meta"):
        network = build_denoiser(config.teacher.network)
    return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1)
