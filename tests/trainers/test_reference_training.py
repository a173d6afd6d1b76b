"""Three iterations in the authors' order give the authors' losses and weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.protocols import Roles
from raysid.roles.step import StepResult, take_step
from raysid.roles.teacher import TeacherScorer
from tests.support.reference_folder import reference_cases, reference_folder
from tests.support.reference_training import (
    RecordedDraws,
    RecordedStream,
    initial_network,
    reference_config,
    relative_change_error,
    weights_under,
)

CASES = reference_cases("training_")


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[name for name, _ in CASES])
def test_reference_training_in_one_process(name: str, settings: dict[str, Any]) -> None:
    config = reference_config(settings)
    draws = partial(RecordedDraws, name)
    stream = RecordedStream(name, settings["batch"]) if settings["adversarial"] else None
    roles = Roles(
        teacher=TeacherScorer(initial_network(name, settings)),
        fake_score=FakeScoreLearner(
            config, initial_network(name, settings), stream, RecordedStream.pixel_max, draws
        ),
        generator=GeneratorLearner(config, initial_network(name, settings), draws=draws),
    )
    for step, expected in enumerate(settings["losses"]):
        result = take_step(roles, config, step)
        check_losses(result, expected)
    check_weights(name, settings, roles.fake_score.state(), roles.generator.state())


def check_losses(result: StepResult, expected: dict[str, float]) -> None:
    """The losses of one step, to 1e-3."""
    fake, generator = (report.figures for report in result.reports)
    assert fake["loss/fake_score"] == pytest.approx(expected["fake"], rel=1e-3)
    assert fake.get("loss/discriminator", 0.0) == pytest.approx(expected["disc"], rel=1e-3)
    assert generator["loss/sid"] == pytest.approx(expected["sid"], rel=1e-3)
    assert generator.get("loss/adversarial", 0.0) == pytest.approx(expected["adv"], rel=1e-3)


def check_weights(
    name: str, settings: dict[str, Any], fake_score: dict[str, Any], generator: dict[str, Any]
) -> None:
    """Final weights: the difference is under 2% of the change."""
    start = initial_network(name, settings).state_dict()
    ends = {
        "fake_score": fake_score["network"],
        "generator": generator["network"],
        "generator_ema": generator["ema"],
    }
    with np.load(reference_folder() / f"{name}.npz") as case:
        for role, ours in ends.items():
            error = relative_change_error(start, ours, weights_under(case, f"final/{role}/"))
            assert error < 0.02, f"{role} is {error:.1%} of its change away"
