"""The steps of a discrete noise process: by their sigmas in a new run, as they were in one begun before."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import DDPMScheduler

from raysid.config import Config, MethodSettings
from raysid.config.networks import NetworkSettings, ScheduleSettings
from raysid.errors import UserError
from raysid.generator import load_generator
from raysid.networks import DiffusersSettings
from raysid.networks.files import weights_digest
from raysid.trainers.distill import distill
from raysid.trainers.noise_steps import step_warning, with_noise_steps
from tests.support import points
from tests.support.tiny_run import run_of, tiny_config
from tests.trainers.test_diffusers_teacher import BATCH, unet

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
BEFORE = {"tau": 625, "tmin": 20, "tmax": 980}


def filled(schedule: dict[str, Any], begun: MethodSettings | None = None, **method: Any) -> MethodSettings:
    """The method's settings of a run with a network of this schedule."""
    network = DiffusersSettings(unet={"sample_size": 8}, scheduler=ScheduleSettings.model_validate(schedule))
    config = Config.model_validate({"teacher": {"path": "t"}, "total_images": 1, "method": method})
    return with_noise_steps(config, network, begun).method


def steps_of(method: MethodSettings) -> tuple[Any, ...]:
    assert method.noise_steps is not None
    return (*method.noise_steps.model_dump().values(), method.tmax)


def test_a_new_run_takes_the_steps_of_its_sigmas() -> None:
    assert steps_of(filled(SD)) == (625, 20, 980, 980)
    assert steps_of(filled({})) == (440, 38, 712, 712)
    assert steps_of(filled({"num_train_timesteps": 4000})) == (871, 69, 1415, 1415)
    assert steps_of(filled({"num_train_timesteps": 500})) == (312, 28, 500, 500)
    assert filled({}, sigma_init=1.0).noise_steps.tau < 440  # type: ignore[union-attr]


def test_steps_that_are_given_stay() -> None:
    assert steps_of(filled({}, noise_steps={"tau": 500})) == (500, 38, 712, 712)
    assert steps_of(filled({}, noise_steps=BEFORE, tmax=700)) == (625, 20, 980, 700)
    long = {"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2"}
    assert steps_of(filled(long, tmax=3900)) == (3022, 320, 3802, 3900)


def test_a_run_begun_before_keeps_its_steps() -> None:
    begun = MethodSettings(tmax=980)
    assert steps_of(filled({}, begun)) == (625, 20, 980, 980)
    assert steps_of(filled({"beta_end": 0.002}, begun)) == (625, 20, 980, 980)  # it began without a check
    recorded = MethodSettings(tmax=712, noise_steps={"tau": 439, "tmin": 37, "tmax": 712})  # type: ignore[arg-type]
    assert steps_of(filled({}, recorded)) == (439, 37, 712, 712)
    assert steps_of(filled({}, recorded, sigma_init=2.6)) != (
        439,
        37,
        712,
        712,
    )  # a branch with another level


@pytest.mark.parametrize(
    ("schedule", "method", "line"),
    [
        (
            {"beta_end": 0.002},
            {},
            r"sigma_init is 2.5, but .* sigmas from 0.01 to 1.*sigma_init, or method.noise_st",
        ),
        ({}, {"sigma_init": 500}, r"sigmas from 0.01 to 157"),
        ({}, {"sigma_init": 0.001}, r"sigmas from 0.01 to 157"),
        ({}, {"noise_steps": {"tau": 1000}}, r"method.noise_steps.tau is 1000; allowed .* below 1000"),
        (
            {},
            {"noise_steps": {"tmax": 1001}},
            r"method.noise_steps.tmax is 1001; .* above 38 .* at most 1000",
        ),
        ({}, {"noise_steps": {"tmin": 900}}, r"method.noise_steps.tmax is 712; .* above 900"),
        ({"num_train_timesteps": 500}, {"tmax": 980}, r"method.tmax is 980; .* at most 500"),
    ],
)
def test_steps_that_a_noise_process_does_not_have_are_refused(
    schedule: dict[str, Any], method: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError) as caught:
        filled(schedule, **method)
    assert re.search(line, str(caught.value)) and "\n" not in str(caught.value)


def test_other_networks_have_no_steps() -> None:
    config = Config.model_validate({"teacher": {"path": "t"}, "total_images": 1})
    network = NetworkSettings(img_resolution=8, img_channels=1)
    method = with_noise_steps(config, network, MethodSettings(tmax=800)).method
    assert method.tmax == 800 and method.noise_steps is None


def test_a_factorys_steps_far_from_the_sigma_are_named() -> None:
    line = step_warning(points.DDPM, 2.5)
    assert line is not None and "step 625, where sigma is" in line and "DDPMNoise.nearest" in line
    assert step_warning(points.DDPM.nearest(points.DDPM.alphas_cumprod), 2.5) is None
    assert step_warning(points.FLOW, 2.5) is None  # type: ignore[arg-type]


# -- whole runs ----------------------------------------------------------------------------------------------


def pipeline(folder: Path, **scheduler: Any) -> Path:
    unet().save_pretrained(folder / "unet")
    DDPMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    return folder


def short(teacher: Path | str, storage: Path, steps: int = 2, **changes: Any) -> Config:
    """A run of few steps without evaluation."""
    settings = {
        "method__adversarial": None,
        "data__source": None,
        "placement": "local",
        "total_images": steps * BATCH,
        "checkpoint__every_images": BATCH,
    }
    return tiny_config(str(teacher), storage, **settings | changes)


def recorded_method(config: Config) -> dict[str, Any]:
    return yaml.safe_load((run_of(config) / "config.yaml").read_text())["method"]


@pytest.mark.parametrize(("count", "tau"), [(4000, 871), (500, 312)])
def test_a_run_with_another_number_of_steps(tmp_path: Path, count: int, tau: int) -> None:
    config = short(pipeline(tmp_path / "teacher", num_train_timesteps=count), tmp_path / "runs", steps=1)
    distill(config)
    card = json.loads((run_of(config) / "generator" / "config.json").read_text())
    assert card["tau"] == tau == recorded_method(config)["noise_steps"]["tau"]
    assert load_generator(run_of(config)).sample(2).shape == (2, 1, 8, 8)
    distill(config)  # as the recorded config says, it is finished


def test_a_run_of_an_earlier_release_resumes_with_its_steps(tmp_path: Path) -> None:
    teacher = pipeline(tmp_path / "teacher")
    whole = short(teacher, tmp_path / "whole", steps=3, method__noise_steps=BEFORE)
    distill(whole)
    half = short(teacher, tmp_path / "halves", steps=1, method__noise_steps=BEFORE)
    distill(half)
    file = run_of(half) / "config.yaml"
    values = yaml.safe_load(file.read_text())
    del values["method"]["noise_steps"], values["format"]  # as release 0.1.0 recorded it
    file.write_text(yaml.safe_dump(values))

    with pytest.raises(UserError, match="was started with method.noise_steps.tau = 625"):
        distill(short(teacher, tmp_path / "halves", method__noise_steps={"tau": 440}))
    distill(short(teacher, tmp_path / "halves", steps=3))
    assert weights_digest(run_of(half) / "generator") == weights_digest(run_of(whole) / "generator")
    assert recorded_method(half)["noise_steps"] == BEFORE

    # A branch of such a run keeps its steps, too; a generator made with them is no start for another step.
    branch = short(teacher, tmp_path / "branch")
    distill(branch, resume_from=str(run_of(half)))
    assert recorded_method(branch)["noise_steps"] == BEFORE
    with pytest.raises(
        UserError, match="runs at step 625, and .* at step 440: give --method.noise_steps.tau 625"
    ):
        distill(short(teacher, tmp_path / "start", generator__path=str(run_of(half))))
