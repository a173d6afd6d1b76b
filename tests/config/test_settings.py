"""The marks that settings carry, and what reads them."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from raysid.config import Config, PretrainConfig, TeacherSettings, TuneConfig, fixed_settings
from raysid.config.fields import config_fields
from raysid.config.method import UNRECORDED_STEPS
from raysid.config.tune import BETTER
from raysid.method.noise import DDPMNoise, EDMNoise
from raysid.recipes import load_recipe
from raysid.trainers.pretrain import teacher_digest


def test_the_settings_that_may_not_change_on_resume() -> None:
    fixed = fixed_settings(load_recipe("digits-sida", kind="distill"))
    assert {name for name in fixed if not isinstance(fixed[name], dict)} == {
        "kind",
        "seed",
        "schedule",
        "batch_size",
        "precision",
    }
    assert fixed["teacher"] == {"precision": None} and fixed["compute"] == {"tf32": False}
    assert {"kind", "seed", "schedule", "batch_size", "precision", "data", "prompts", "teacher", "method"} | {
        "compute",
        "generator",
        "fake_score",
        "ema",
    } == set(fixed)
    assert {"origin", "max_bad_fraction"}.isdisjoint(fixed["data"]) and "lanes" in fixed["data"]
    assert {"source", "column", "shuffle_window"} < set(fixed["prompts"])
    assert "num_workers" not in fixed["generator"] and "lr" in fixed["fake_score"]
    assert fixed["method"]["adversarial"]["group_size"] == 32


def test_a_teachers_identity_has_the_hash_it_always_had() -> None:
    config = load_recipe("digits-teacher", kind="pretrain")
    assert teacher_digest(config) == "fece9702d0d1f50f"
    free = {
        "storage": "elsewhere",
        "num_workers": 2,
        "torch_threads": 2,
        "worker_resources.num_cpus": 2,
        "failure.max_failures": 0,
        "checkpoint.keep": 5,
        "data.origin": "a shop",
        "data.max_bad_fraction": 0.5,
    }
    assert teacher_digest(load_recipe("digits-teacher", free, kind="pretrain")) == teacher_digest(config)
    for name, value in {"seed": 1, "data.crop": "none", "network.dropout": 0.2, "lr": 1e-5}.items():
        changed = load_recipe("digits-teacher", {name: value}, kind="pretrain")
        assert teacher_digest(changed) != teacher_digest(config), name


@pytest.mark.parametrize("model", [Config, PretrainConfig])
def test_a_mark_is_part_of_the_field(model: type[Config | PretrainConfig]) -> None:
    fields = config_fields(model)
    assert fields["storage"].marks == {"common": True, "on_resume": "may change"}
    assert fields["data.shuffle_window"].marks == {"training_only": True}


def test_the_settings_that_only_the_split_placement_has() -> None:
    found = {path for path, field in config_fields(Config).items() if "split_only" in field.marks}
    assert found == {
        "generator.num_workers",
        "fake_score.num_workers",
        "teacher.num_replicas",
        "teacher.autoscaling_config",
    }


def test_all_conflicts_of_a_section_are_reported() -> None:
    with pytest.raises(ValidationError) as caught:
        Config(
            teacher=TeacherSettings(path="t"),
            total_images=1,
            placement="local",
            generator={"num_workers": 3},  # type: ignore[arg-type]
            data={"source": None},  # type: ignore[arg-type]
            method={"adversarial": {}},  # type: ignore[arg-type]
        )
    assert caught.value.errors()[0]["msg"].splitlines() == [
        "Value error, placement local is one process, not generator.num_workers 3 and fake_score.num_workers 1: give "
        "placement split",
        "method.adversarial needs real images: give data.source, or null for method.adversarial",
        "batch_size 256 does not divide among generator.num_workers 3 and fake_score.num_workers 1",
    ]


def test_a_noise_process_has_the_tmax_of_its_networks_settings() -> None:
    from raysid.config.networks import DiffusersSettings, NetworkSettings

    assert NetworkSettings.default_tmax == EDMNoise.default_tmax == 800
    assert DiffusersSettings.default_tmax == DDPMNoise.tmax == 980
    assert UNRECORDED_STEPS.model_dump() == {"tau": DDPMNoise.tau, "tmin": DDPMNoise.tmin, "tmax": 980}


def test_every_figure_of_a_search_has_a_direction() -> None:
    assert set(get_args(TuneConfig.model_fields["metric"].annotation)) == BETTER.keys()
