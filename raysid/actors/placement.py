"""The roles of a run, assembled behind one interface: in one process, or as actors on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from raysid.actors.build import RunInputs, build_fake_score, build_generator, build_teacher
from raysid.actors.messages import Slice
from raysid.actors.profile import Profile, profile_of
from raysid.actors.saving import Saver
from raysid.checkpoint import StateFile
from raysid.data import ImageSource

if TYPE_CHECKING:
    from raysid.actors.remote import Within


class TeacherService(Protocol):
    """The teacher pool, as the controller sees it. Arguments and results may be object references."""

    def score(self, noised: Any, guidance_scale: float, /) -> Any: ...
    def pullback(self, noised: Any, seed: Any, guidance_scale: float, /) -> Any: ...


class FakeScoreRole(Protocol):
    """The fake-score learner, as the controller sees it. All that is said of a microbatch begins with its address."""

    def score(self, at: Slice, noised: Any, /) -> Any: ...
    def pullback(self, at: Slice, noised: Any, seed: Any, /) -> Any: ...
    def accumulate(self, at: Slice, images: Any, /) -> Any: ...
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

    def save(self, folder: str) -> None:
        """Begin to write both learners' states, as they are now, to a checkpoint's folder."""

    def saved(self, folder: str, wait: bool) -> list[StateFile] | None:
        """The files of the checkpoint begun there; None while they are not all written. Raises RunFailed."""

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        """Begin to write the averaged generator, as it is now, to `folder`."""

    def exported(self, folder: str, wait: bool) -> bool:
        """Whether the generator begun there is written. Raises RunFailed."""

    def report(self) -> dict[str, dict[str, float]]:
        """Each role's figures by role: seconds since it started (`busy_seconds` and so on), and present numbers."""

    def prepare(self, slices: list[Slice]) -> None:
        """Have the real images of a step's microbatches read, before any of it is computed. Raises RunFailed."""

    def bad_images(self) -> dict[int, str]:
        """What is wrong with each real image that was skipped so far, after its name; by its place in their list."""

    def profile(self) -> dict[str, dict[int, Profile]]:
        """What each role's processes have used since they started, by role and number."""

    def check_shared(self, folder: str) -> None:
        """Refuse a run's folder that a role does not share with the driver. Raises UserError."""

    def close(self) -> None:
        """End the roles and give back what they held."""


def place(
    inputs: RunInputs,
    source: ImageSource | None,
    say: Callable[[str], None] = print,
    within: Within | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Placement:
    """The roles where the config wants them; arguments and errors as each placement has them."""
    threads = inputs.config.torch_threads
    if inputs.config.placement == "local":
        return LocalPlacement(inputs, source, threads or all_cores())
    from raysid.actors.remote import SplitPlacement

    return SplitPlacement(inputs, source, threads or 1, say, within, stopping)


def all_cores() -> int:
    """Cores that this process may run on; in a container that is often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalPlacement:
    """`placement: local`: all three roles in this process, without Ray. The readable reference.

    Args:
        source: the real images, for a method that needs them.
        threads: torch's threads.
    """

    def __init__(self, inputs: RunInputs, source: ImageSource | None, threads: int) -> None:
        torch.set_num_threads(threads)
        config = inputs.config
        self.teacher = build_teacher(inputs.teacher, config)
        self.fake_score = build_fake_score(inputs, source)
        self.generator = build_generator(inputs)
        self.roles = Roles(self.teacher, self.fake_score, self.generator)
        self.saver = Saver()

    def collect(self, figures: Any) -> dict[str, float]:
        return figures

    def check_shared(self, folder: str) -> None:
        pass  # there is one process

    def save(self, folder: str) -> None:
        self.saver.state(folder, "fake_score", self.fake_score.state())
        self.saver.state(folder, "generator", self.generator.state())

    def saved(self, folder: str, wait: bool) -> list[StateFile] | None:
        # They are written in order: where the last one is there, all are.
        if (last := self.saver.saved(folder, "generator", wait)) is None:
            return None
        files = [self.saver.saved(folder, "fake_score", wait), last]
        return [file for file in files if isinstance(file, StateFile)]

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        self.saver.product(folder, "generator", self.generator.product(trained))

    def exported(self, folder: str, wait: bool) -> bool:
        return self.saver.saved(folder, "generator", wait) is not None

    def report(self) -> dict[str, dict[str, float]]:
        return {
            "teacher": {"busy_seconds": self.teacher.stopwatch.seconds},
            "fake_score": self.fake_score.report(),
            "generator": self.generator.report(),
        }

    def prepare(self, slices: list[Slice]) -> None:
        self.fake_score.prepare(*slices)

    def bad_images(self) -> dict[int, str]:
        return self.fake_score.bad_images()

    def profile(self) -> dict[str, dict[int, Profile]]:
        roles = {"teacher": self.teacher, "fake_score": self.fake_score, "generator": self.generator}
        return {name: {0: profile_of(role)} for name, role in roles.items()}

    def close(self) -> None:
        self.saver.close()
        if self.fake_score.real_images is not None:
            self.fake_score.real_images.close()
