"""The health of a run: what goes wrong is recorded, warned about, and ends a run that has diverged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from upath import UPath

from raysid.errors import Diverged, RunFailed, UserError
from raysid.networks import EDMDenoiser
from raysid.networks.files import WEIGHTS, load_network, save_network
from raysid.roles.messages import StepReport
from raysid.run.checkpoint import Checkpoints
from raysid.run.metrics import read_metrics
from raysid.run.watch import state_of
from raysid.trainers.distill import distill
from raysid.trainers.distill.health import LINES_KEPT, LOSSES, Health
from tests.support.tiny_run import NETWORK, SHORT, run_of, tiny_config, tiny_teacher


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return tiny_teacher(tmp_path / "teacher")


def change_weights(folder: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = Path(folder) / WEIGHTS
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: change(value) for name, value in weights.items()}, file)


def warnings_of(run: Path) -> list[str]:
    return [entry["text"] for entry in read_metrics(run) if entry["kind"] == "warning"]


def test_a_run_without_one_good_sample_fails_and_names_its_checkpoint(teacher: str, tmp_path: Path) -> None:
    """The teacher's weights are finite, but its images overflow. Such a run used to end with a loss of 0."""
    change_weights(teacher, lambda value: value * 1e20)
    config = tiny_config(teacher, tmp_path, **SHORT)
    with pytest.raises(Diverged, match="every sample of the last 5 steps is NaN or infinite") as failed:
        distill(config)
    first = run_of(config) / "checkpoints" / "step-00000000"
    assert f"the last whole checkpoint is {first}" in str(failed.value) and "\n" not in str(failed.value)
    lines = [entry for entry in read_metrics(run_of(config)) if entry["kind"] == "train"]
    assert all(math.isnan(line["loss/fake_score"]) for line in lines)
    assert all(line["fake_score/bad_samples"] == 8 for line in lines)
    assert any("8 of 8 samples of step 1 are NaN or infinite" in text for text in warnings_of(run_of(config)))
    shown = state_of(str(run_of(config))).text
    assert "failed: every sample" in shown and "left out    samples of a step" in shown


def test_a_run_ends_after_max_bad_steps(teacher: str, tmp_path: Path) -> None:
    change_weights(teacher, lambda value: value * 1e20)
    config = tiny_config(teacher, tmp_path, **SHORT, failure__max_bad_steps=2)
    with pytest.raises(RunFailed, match=r"last 2 steps .*failure.max_bad_steps.* diverged at step 2"):
        distill(config)


def test_weights_that_overflow_are_never_written(teacher: str, tmp_path: Path) -> None:
    """A learning rate without measure: the run ends, and its generator and checkpoints are those from before."""
    config = tiny_config(teacher, tmp_path, **SHORT, generator__lr=1e38)
    with pytest.raises(Diverged, match=r"(weights are NaN or infinite|every sample of the last)") as failed:
        distill(config)
    assert str(failed.value).count("run the same command") == 1
    load_network(run_of(config) / "generator", "generator")  # refuses what is not finite
    assert Checkpoints(UPath(run_of(config)) / "checkpoints").newest() is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: torch.full_like(value, math.nan), "has values that are NaN or infinite"),
        (lambda value: torch.full_like(value, math.inf), "has values that are NaN or infinite"),
        (lambda value: value.to(torch.int64), "torch.int64, not torch.float32"),
        (lambda value: value > 0, "torch.bool, not torch.float32"),
    ],
    ids=["nan", "inf", "int64", "bool"],
)
def test_weights_that_are_no_numbers_of_a_network_are_refused(
    teacher: str, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    change_weights(teacher, change)
    with pytest.raises(UserError, match=words):
        distill(tiny_config(teacher, tmp_path, **SHORT))


def test_a_large_alpha_is_warned_about(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(teacher, tmp_path, **SHORT, method__alpha=2.0)
    distill(config)
    alpha = warnings_of(run_of(config))[0]
    assert alpha.startswith("method.alpha is 2: published runs use 0.5 to 1.2")
    assert f"warning: {alpha}" in capsys.readouterr().err
    assert "warnings    " in state_of(str(run_of(config))).text


def test_a_denoiser_is_not_warned_about(teacher: str, tmp_path: Path) -> None:
    """EDM's network before training removes the share of noise that is best for data of its standard deviation."""
    card, _ = load_network(teacher, "teacher")
    save_network(teacher, card, EDMDenoiser(NETWORK))
    config = tiny_config(teacher, tmp_path, **SHORT)
    distill(config)
    assert warnings_of(run_of(config)) == []
    lines = [entry for entry in read_metrics(run_of(config)) if entry["kind"] == "train"]
    assert all(line["generator/bad_samples"] == 0 for line in lines[1:])
    assert 0 < lines[-1]["generator/teacher_relative_error"] < 3
    assert lines[-1]["generator/image_spread"] > 0


# -- warnings, from figures --------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Health, list[str]]:
    """The health of a run of 640 images in steps of 32, and its warnings."""
    warnings: list[str] = []
    health = Health(tiny_config("teacher", tmp_path), [], lambda step, text: warnings.append(text))
    return health, warnings


def line(**changes: float) -> dict[str, float]:
    usual = {"loss/sid": -3.0, "loss/fake_score": 40.0, "generator/image_spread": 0.5}
    return usual | {name.replace("__", "/"): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (line(loss__sid=-70.0), "loss/sid is -70 at step 12, where 3 was usual"),
        (line(loss__fake_score=900.0), "loss/fake_score is 900 at step 12, where 40 was usual"),
        (
            line(generator__image_spread=0.01),
            "are nearly the same: they differ by 0.01 on average, at the start by 0.5",
        ),
        (line(generator__clamped_logits=1.0), "all logits of the discriminator are beyond the clamp"),
    ],
    ids=["sid", "fake_score", "collapse", "logits"],
)
def test_a_figure_that_goes_wrong_is_warned_about_once(
    watched: tuple[Health, list[str]], figures: dict[str, float], words: str
) -> None:
    health, warnings = watched
    for step in range(2, 12, 2):
        health.line(step, line())
    assert warnings == []
    health.line(12, figures)
    assert len(warnings) == 1 and words in warnings[0]
    health.line(14, figures)
    assert len(warnings) == 1
    health.line(16, line())  # it has recovered
    health.line(18, figures)
    assert len(warnings) == 2


def test_a_teacher_that_does_not_denoise_is_warned_about(watched: tuple[Health, list[str]]) -> None:
    """Only at the start, while the generator is still close to the teacher."""
    health, warnings = watched
    figures = {"generator/teacher_relative_error": 20.0}
    health.step(2, StepReport(figures))
    assert len(warnings) == 1 and "the teacher does not denoise: its error" in warnings[0]
    health.step(3, StepReport({"generator/teacher_relative_error": 0.4}))
    health.line(4, line())
    health.step(5, StepReport(figures))
    assert len(warnings) == 1


def test_a_distance_that_explodes_is_warned_about(watched: tuple[Health, list[str]]) -> None:
    health, warnings = watched
    for distance in (100.0, 20.0, 50.0, 40.0):
        health.evaluation(8, {"frechet_distance": distance})
    assert warnings == []
    health.evaluation(16, {"frechet_distance": 80.0})
    health.evaluation(20, {"frechet_distance": math.nan})
    assert warnings == ["the distance is 80.000 at step 16, and was 20.000 before: the run may be diverging"]


def test_first_evaluations_that_get_worse_are_warned_about_with_the_likely_causes(
    watched: tuple[Health, list[str]],
) -> None:
    health, warnings = watched
    for distance in (10.0, 8.0, 9.0):
        health.evaluation(8, {"frechet_distance": distance})
    assert warnings == []
    health.evaluation(12, {"frechet_distance": 11.0})
    health.evaluation(16, {"frechet_distance": 12.0})
    (warning,) = warnings
    assert warning.startswith(
        "the distance is 11.000 at step 12, was 8.000 before, and has been getting worse for 2 "
    )
    assert "a learning rate that is too high (generator.lr 0.001, fake_score.lr 0.001)" in warning
    assert "prediction type or scheduler" in warning and "fp16" not in warning


def test_agreement_that_falls_at_first_is_warned_about_and_a_good_run_is_not(
    watched: tuple[Health, list[str]],
) -> None:
    health, warnings = watched
    good = [
        (42.9, 0.73),
        (7.0, 0.72),
        (6.0, 0.74),
        (6.2, 0.73),
        (5.3, 0.78),
        (4.6, 0.79),
        (4.7, 0.78),
    ]
    for number, (distance, agreement) in enumerate(good):
        health.evaluation(number, {"frechet_distance": distance, "agreement": agreement})
    assert warnings == []
    for number, agreement in enumerate((0.70, 0.60)):
        health.evaluation(number, {"frechet_distance": 4.4, "agreement": agreement})
    assert len(warnings) == 1 and warnings[0].startswith("the agreement is 70.0% at step 0, was 79.0% before")


def test_a_resumed_run_compares_with_its_record(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [{"kind": "train", **line()} for _ in range(5)]
    entries.append({"kind": "evaluation", "frechet_distance": 2.0})
    warnings: list[str] = []
    health = Health(
        tiny_config("teacher", tmp_path),
        json.loads(json.dumps(entries)),
        lambda _, text: warnings.append(text),
    )
    health.line(12, line(loss__sid=100.0))
    health.evaluation(12, {"frechet_distance": 7.0})
    assert len(warnings) == 2


def test_a_few_bad_steps_do_not_end_a_run(watched: tuple[Health, list[str]]) -> None:
    health, warnings = watched
    bad = StepReport({"generator/bad_samples": 32.0, "fake_score/bad_samples": 0.0})
    good = StepReport({"generator/bad_samples": 3.0, "fake_score/bad_samples": 0.0})
    for step in range(9):
        health.step(step, bad)
    health.step(9, good)
    for step in range(10, 19):
        health.step(step, bad)
    with pytest.raises(Diverged):
        health.step(19, bad)
    assert len(warnings) == 1


def test_the_memory_of_a_long_run_is_bounded(watched: tuple[Health, list[str]]) -> None:
    """The last lines are kept for a median; a run of weeks has hundreds of thousands."""
    health, warnings = watched
    for step in range(2 * LINES_KEPT):
        health.line(step, line(loss__sid=-3.0 if step < LINES_KEPT else -40.0))
    assert {len(health._losses[name]) for name in LOSSES} == {LINES_KEPT}
    assert len(warnings) == 0  # 40 is usual by now
    health.line(step, line(loss__sid=-900.0))
    assert len(warnings) == 1 and "where 40 was usual" in warnings[0]
