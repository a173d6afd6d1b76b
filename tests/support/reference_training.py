"""The authors' `training_*` runs as raysid runs: their settings, draws and results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from raysid.config import Config
from raysid.data import ImageStream
from raysid.networks import EDMDenoiser, NetworkSettings, build_denoiser
from raysid.roles.step import StepResult
from tests.support.reference_folder import reference_folder


@dataclass(frozen=True)
class RecordedDraws:
    """The random numbers of a step of the authors' run, with the interface of `raysid.method.draws.Draws`."""

    name: str
    step: int
    start: int
    count: int

    def uniform(self, purpose: str, shape: Any = ()) -> Tensor:
        return self._recorded(purpose).reshape(self.count, *shape)

    normal = uniform

    def labels(self, purpose: str, frequencies: Any) -> Tensor:
        return self._recorded(purpose).argmax(1)

    def dropout_seed(self, purpose: str) -> int:
        return 0

    def _recorded(self, purpose: str) -> Tensor:
        with np.load(reference_folder() / f"{self.name}.npz") as case:
            whole = case[f"step{self.step}/{purpose}"]
        return torch.from_numpy(whole[self.start : self.start + self.count])


def reference_config(settings: Mapping[str, Any], **changes: Any) -> Config:
    """The run's settings in raysid's names."""
    learner = {"betas": settings["betas"], "eps": settings["eps"]}
    adversarial = None
    if settings["adversarial"]:
        adversarial = {
            "generator_weight": settings["adv_weight"],
            "group_size": settings["batch"],
            "generator_start_images": 0,
            "adversarial_start_images": 0,
        }
    tree: dict[str, Any] = {
        "schedule": "alternating",
        "teacher": {"path": "unused"},
        "method": {
            "alpha": settings["alpha"],
            "tmax": settings["tmax"],
            "sigma_init": settings["init_sigma"],
            "sid_weight": settings["sid_weight"],
            "adversarial": adversarial,
        },
        "batch_size": settings["batch"],
        "total_images": settings["batch"] * settings["steps"],
        "fake_score": {"lr": settings["fake_lr"], **learner},
        "generator": {"lr": settings["generator_lr"], **learner},
        "ema": {
            "halflife_images": settings["ema_halflife_images"],
            "rampup_ratio": settings["ema_rampup_ratio"],
        },
    }
    return Config.model_validate(tree | changes)


class RecordedStream(ImageStream):
    """The real images of the authors' run, at their positions in the stream, with the step's labels.

    They were recorded in [-1, 1]; the stream holds 0 to `pixel_max` = 2, which the learner maps to [-1, 1].
    """

    pixel_max = 2
    faults: ClassVar[dict[int, str]] = {}  # type: ignore[misc]

    def __init__(self, name: str, batch: int) -> None:
        self.name, self.batch, self.wait_seconds = name, batch, 0.0

    def loaded_until(self, position: int) -> float:
        return math.inf

    def read(self, start: int, count: int) -> tuple[Any, Any]:
        step, offset = divmod(start, self.batch)
        with np.load(reference_folder() / f"{self.name}.npz") as case:
            images = case[f"step{step}/fake/real_images"][offset : offset + count]
            labels = case[f"step{step}/fake/labels"][offset : offset + count].argmax(1)
        return images + 1, labels


def initial_network(name: str, settings: Mapping[str, Any]) -> EDMDenoiser:
    """The network that all three roles start from."""
    network = build_denoiser(NetworkSettings.model_validate(settings["network"]))
    with np.load(reference_folder() / f"{name}.npz") as case:
        network.load_state_dict(weights_under(case, "param/"))
    return network


def weights_under(case: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """The tensors of a case whose names start with `prefix`, by name without the prefix."""
    return {k.removeprefix(prefix): torch.from_numpy(case[k]) for k in case if k.startswith(prefix)}


def relative_change_error(
    start: Mapping[str, Tensor], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> float:
    """Norm of the difference between two results over the norm of the change; without attention's key bias."""
    difference = change = 0.0
    for name, end in theirs.items():
        here, begin = ours[name], start[name]
        if name.endswith("qkv.bias"):
            keep = torch.arange(len(end)) % 3 != 1
            here, end, begin = here[keep], end[keep], begin[keep]
        difference += float((here - end).double().square().sum())
        change += float((end - begin).double().square().sum())
    return (difference / change) ** 0.5


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
