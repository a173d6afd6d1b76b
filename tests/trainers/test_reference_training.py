"""Three iterations in the authors' order give the authors' losses and weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from raysid.roles.conditions import LabelConditions
from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.protocols import Roles
from raysid.roles.step import take_step
from raysid.roles.teacher import TeacherScorer
from tests.support.reference_folder import reference_cases
from tests.support.reference_training import (
    RecordedDraws,
    RecordedStream,
    check_losses,
    check_weights,
    initial_network,
    reference_config,
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
        conditions=LabelConditions((1.0,) * settings["network"]["label_dim"], draws),
    )
    for step, expected in enumerate(settings["losses"]):
        result = take_step(roles, config, step)
        check_losses(result, expected)
    check_weights(name, settings, roles.fake_score.state(), roles.generator.state())
