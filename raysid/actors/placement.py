"""The roles of a run, assembled behind one interface: in one process, or as actors on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raysid.actors.build import RunInputs, build_fake_score, build_generator, build_teacher
from raysid.actors.messages import Slice
from raysid.checkpoint import StateFile, write_state
from raysid.data import ImageSource


class TeacherService(Protocol):
    """The teacher pool, as the controller sees it. Arguments and results may be object references."""

    def score(self, noised: Any, guidance_scale: float, /) -> Any: ...
    def pullback(self, noised: Any, seed: Any, guidance_scale: float, /) -> Any: ...


class FakeScoreRole(Protocol):
    """The fake-score learner, as the controller sees it."""

    def score(self, noised: Any, /) -> Any: ...
    def pullback(self, noised: Any, seed: Any, /) -> Any: ...
    def accumulate(self, images: Any, /) -> Any: ...
    def step(self, step: int, /, *tokens: Any) -> Any: ...


class GeneratorRole(Protocol):
    """The generator learner, as the controller sees it."""

    def images(self, at: Slice, /) -> Any: ...
    def generate(self, at: Slice, /) -> tuple[Any, Any]: ...
    def seeds(self, at: Slice, teacher: Any, fake: Any, /) -> tuple[Any, Any]: ...
    def accumulate(self, at: Slice, teacher: Any, fake: Any, /) -> Any: ...
    def discard(self, at: Slice, /) -> Any: ...
    def step(self, step: int, /, *tokens: Any) -> Any: ...


@dataclass(frozen=True)
class Roles:
    """The three roles of one run."""

    teacher: TeacherService
    fake_score: FakeScoreRole
    generator: GeneratorRole


class Placement(Protocol):
    """Where the roles of a run live, and what the driver asks of them besides the steps."""

    roles: Roles

    def collect(self, figures: Any) -> dict[str, float]:
        """What a learner's `step` returned, waiting for it where it is still on its way."""

    def save(self, folder: str) -> list[StateFile]:
        """Write both learners' states to a checkpoint's folder."""

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        """Write the averaged generator to `folder`."""

    def report(self) -> dict[str, dict[str, float]]:
        """Each role's figures by role: seconds since it started (`busy_seconds` and so on), and present numbers."""

    def close(self) -> None:
        """End the roles and give back what they held."""


class LocalPlacement:
    """`placement: local`: all three roles in this process, without Ray. The readable reference.

    Args:
        source: the real images, for a method that needs them.
        threads: torch's threads.
    """

    def __init__(self, inputs: RunInputs, source: ImageSource | None, threads: int) -> None:
        torch.set_num_threads(threads)
        config = inputs.config
        self.teacher = build_teacher(inputs.teacher, config.resources.teacher.device, config.graphs_kept)
        self.fake_score = build_fake_score(inputs, source.blocks if source else None)
        self.generator = build_generator(inputs)
        self.roles = Roles(self.teacher, self.fake_score, self.generator)

    def collect(self, figures: Any) -> dict[str, float]:
        return figures

    def save(self, folder: str) -> list[StateFile]:
        return [
            write_state(folder, "fake_score", self.fake_score.state()),
            write_state(folder, "generator", self.generator.state()),
        ]

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        self.generator.export(folder, trained)

    def report(self) -> dict[str, dict[str, float]]:
        return {
            "teacher": {"busy_seconds": self.teacher.busy_seconds},
            "fake_score": self.fake_score.report(),
            "generator": self.generator.report(),
        }

    def close(self) -> None:
        if self.fake_score.real_images is not None:
            self.fake_score.real_images.close()
