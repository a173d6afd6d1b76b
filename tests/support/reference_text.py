"""The authors' `training_lsg_*` runs as raysid runs: their settings, draws, prompts and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raysid.config import Config
from raysid.config.networks import DiffusersSettings, ScheduleSettings
from raysid.method.draws import DrawsAt
from raysid.networks.denoiser import Network
from raysid.networks.diffusers import DiffusersDenoiser, build_diffusers
from raysid.roles.messages import Conditions, Slice
from raysid.roles.protocols import Purpose
from raysid.roles.step import StepResult
from tests.support.reference_folder import reference_folder
from tests.support.reference_training import relative_change_error, weights_under

DROP = 0.5  # above the recorded draw of a dropped prompt, and below that of a kept one
KEPT = 0.75


def numbers_of(name: str) -> dict[str, np.ndarray]:
    """Every array of a case, by name."""
    with np.load(reference_folder() / f"{name}.npz") as case:
        return dict(case)


@dataclass(frozen=True)
class RecordedTextDraws:
    """The random numbers of a step of the authors' run, with the interface of `raysid.method.draws.Draws`."""

    name: str
    steps: tuple[int, int]  # tmin and tmax, between which levels are drawn
    step: int
    start: int
    count: int

    def uniform(self, purpose: str, shape: Any = ()) -> Tensor:
        """The number that maps to the recorded level, or that drops or keeps the condition."""
        role, _, kind = purpose.partition("/")
        if kind == "condition_drop":
            return torch.where(self._recorded("fake/dropped"), 0.0, KEPT)
        assert kind == "t_uniform"
        first, last = self.steps
        return ((self._recorded(f"{role}/timesteps") - first + 0.5) / (last - first)).float()

    def normal(self, purpose: str, shape: Any = ()) -> Tensor:
        return self._recorded(purpose).reshape(self.count, *shape)

    def dropout_seed(self, purpose: str) -> int:
        return 0

    def _recorded(self, purpose: str) -> Tensor:
        whole = numbers_of(self.name)[f"step{self.step}/{purpose}"]
        return torch.from_numpy(whole[self.start : self.start + self.count])


@dataclass(frozen=True)
class RecordedPrompts:
    """The prompts of the authors' run, as embeddings. Implements `raysid.roles.protocols.ConditionService`."""

    name: str

    def of(self, at: Slice, purpose: Purpose) -> Conditions:
        numbers = numbers_of(self.name)
        prompts = numbers[f"step{at.step}/{purpose}/prompts"][at.start : at.start + at.count]
        return Conditions({"embeddings": torch.from_numpy(numbers["embeddings"][prompts])})


def text_config(settings: Mapping[str, Any], **changes: Any) -> Config:
    """The run's settings in raysid's names."""
    learner = {"betas": settings["betas"], "eps": settings["eps"], "lr": settings["lr"]}
    steps = {name: settings[name] for name in ("tau", "tmin", "tmax")}
    tree: dict[str, Any] = {
        "schedule": "alternating",
        "teacher": {"path": "unused"},
        "method": {
            "alpha": settings["alpha"],
            "sid_weight": 1.0,
            "noise_steps": steps,
            "guidance": {
                "train_fake": settings["kappa1"],
                "eval_fake": settings["kappa2_3"],
                "eval_teacher": settings["kappa4"],
                "condition_drop": DROP,
            },
        },
        "batch_size": settings["batch"],
        "total_images": settings["batch"] * settings["steps"],
        "fake_score": learner,
        "generator": learner,
        "ema": {
            "halflife_images": settings["ema_halflife_images"],
            "rampup_ratio": settings["ema_rampup_ratio"],
        },
    }
    return Config.model_validate(tree | changes)


def text_network(name: str, settings: Mapping[str, Any]) -> DiffusersDenoiser:
    """The network that all three roles start from, with the embeddings of the empty prompt."""
    schedule = {key: v for key, v in settings["scheduler"].items() if key in ScheduleSettings.model_fields}
    network = build_diffusers(
        DiffusersSettings(
            unet_class="UNet2DConditionModel",
            unet=settings["unet"],
            scheduler=ScheduleSettings.model_validate(schedule),
        )
    )
    numbers = numbers_of(name)
    network.model.load_state_dict(weights_under(numbers, "init/"))
    use_null_text(network, name)
    network.use_steps(text_config(settings).method.noise_steps)
    return network


def use_null_text(network: Network, name: str) -> None:
    """Give a network the embeddings of the empty prompt of a case."""
    assert isinstance(network, DiffusersDenoiser)
    network.null_text = torch.from_numpy(numbers_of(name)["null"])


def recorded_text_draws(name: str, config: Config) -> DrawsAt:
    """The draws of a case, for a run with this config."""
    steps = config.method.noise_steps
    assert steps is not None and steps.tmin is not None and steps.tmax is not None
    return partial(RecordedTextDraws, name, (steps.tmin, steps.tmax))


def check_text_losses(result: StepResult, expected: tuple[float, float]) -> None:
    """The losses of one step, to 1e-3."""
    fake, generator = (report.figures for report in result.reports)
    assert fake["loss/fake_score"] == pytest.approx(expected[0], rel=1e-3)
    assert generator["loss/sid"] == pytest.approx(expected[1], rel=1e-3)


def check_text_weights(name: str, fake_score: dict[str, Any], generator: dict[str, Any]) -> None:
    """Final weights: the difference is under 2% of the change."""
    numbers = numbers_of(name)
    start = weights_under(numbers, "init/")
    ends = {"fake": fake_score["network"], "generator": generator["network"], "ema": generator["ema"]}
    for role, ours in ends.items():
        unet = {key.removeprefix("model."): value for key, value in ours.items()}
        error = relative_change_error(start, unet, weights_under(numbers, f"final_{role}/"))
        assert error < 0.02, f"{role} is {error:.1%} of its change away"
