"""The roles of a run, assembled behind one interface: in one process, or as actors on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from raysid.config import Config
from raysid.data import ImageSource
from raysid.data.windows import ReadBlocks
from raysid.errors import LearnerLost, RunFailed
from raysid.networks.files import write_network
from raysid.roles.build import RunInputs, build_fake_score, build_generator, build_teacher
from raysid.roles.joint import JointLearner
from raysid.roles.profile import Profile, profile_of
from raysid.roles.protocols import Roles
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import StateFile, Write, state_bytes, write_state
from raysid.roles.step import WHOLE, Share, StepResult, microbatches, take_step

if TYPE_CHECKING:
    from raysid.actors.split import Within
    from raysid.actors.train_workers import TrainWorkers


class Placement(Protocol):
    """Where the roles of a run live, and what the driver asks of them."""

    @property
    def images_until(self) -> float:
        """Up to which place of the stream real images are known to be there; later ones may be waited for, or fail.

        Infinite where none are needed.
        """

    def step(self, step: int) -> StepResult:
        """Begin step `step` of the schedule, or take it."""

    def collect(self, figures: Any) -> dict[str, float]:
        """What a learner's `step` returned, waiting for it where it is still on its way."""

    def save(self, folder: str) -> Write[list[StateFile]]:
        """Begin to write both learners' states, as they are now, to a checkpoint's folder."""

    def export(self, folder: str, trained: dict[str, Any]) -> Write[None]:
        """Begin to write the averaged generator, as it is now, to `folder`; `trained` is for its card."""

    def report(self) -> dict[str, dict[str, float]]:
        """Each role's figures by role: seconds since it started (`busy_seconds` and so on), and present numbers."""

    def prepare(self, step: int) -> None:
        """Have the real images of a step read, before any of it is computed. Raises RunFailed."""

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
    workers: TrainWorkers | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Placement:
    """The roles where the config wants them; arguments and errors as each placement has them."""
    threads = torch_threads(inputs.config)
    if inputs.config.placement == "local":
        return LocalPlacement(inputs, source, threads)
    if inputs.config.placement == "colocated":
        from raysid.actors.colocated import ColocatedPlacement

        assert workers is not None
        return ColocatedPlacement(inputs, source, workers, say)
    from raysid.actors.split import SplitPlacement

    return SplitPlacement(inputs, source, threads, say, within, stopping)


def lacks_images(placement: Placement, config: Config, step: int, finish_steps: Callable[[], None]) -> bool:
    """Whether a step's real images are not known to be in memory, so that it is to be prepared before it begins.

    Args:
        finish_steps: takes in the steps under way, which say more.
    """
    needed = (step + 1) * config.batch_size
    if placement.images_until < needed:
        finish_steps()
    return placement.images_until < needed


@contextmanager
def workers_for(config: Config, folder: str) -> Iterator[TrainWorkers | None]:
    """Ray Train's workers, where the config has its roles in such; they outlive a placement that one of them ends.

    Args:
        folder: for Ray Train's own notes, which all nodes must see; removed at the end.
    """
    if config.placement != "colocated":
        yield None
        return
    from raysid.actors.train_workers import TrainWorkers

    with closing(TrainWorkers(config, folder, torch_threads(config))) as workers:
        yield workers


def torch_threads(config: Config) -> int:
    """Torch's threads in each process of a run."""
    if config.torch_threads is not None:
        return config.torch_threads
    if config.placement == "colocated":
        return max(1, int(config.resources.worker.num_cpus))
    return all_cores() if config.placement == "local" else 1


def all_cores() -> int:
    """Cores that this process may run on; in a container that is often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalPlacement:
    """`placement: local`: all three roles in this process, without Ray. The readable reference.

    A worker of `placement: colocated` is one, too: it takes its share of each step, as a rank of both learners.

    Args:
        source: the real images, for a method that needs them.
        threads: torch's threads.
        ranks: the other workers; None where this is the only one.
        read_blocks: reads them otherwise than in this process.
    """

    def __init__(
        self,
        inputs: RunInputs,
        source: ImageSource | None,
        threads: int,
        ranks: Ranks | None = None,
        read_blocks: ReadBlocks | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.config = inputs.config
        self.teacher = build_teacher(inputs.teacher, self.config)
        self.share = WHOLE if ranks is None else Share(ranks.rank, ranks.size)
        parts = [self.share.bounds(self.config)]
        self.fake_score = build_fake_score(inputs, source, read_blocks, ranks, parts)
        self.generator = build_generator(inputs, ranks)
        self.roles = Roles(self.teacher, self.fake_score, self.generator)
        if ranks is not None:
            joint = [JointLearner(role, ranks, self.config) for role in (self.fake_score, self.generator)]
            self.roles = Roles(self.teacher, *joint)
        self._next_step = 0
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="writing")

    @property
    def images_until(self) -> float:
        return self.fake_score.images_until(self._next_step)

    def step(self, step: int) -> StepResult:
        self._next_step = step + 1
        return take_step(self.roles, self.config, step, self.share)

    def collect(self, figures: Any) -> dict[str, float]:
        return figures

    def check_shared(self, folder: str) -> None:
        pass  # there is one process

    def save(self, folder: str) -> Future[list[StateFile]]:
        roles = (("fake_score", self.fake_score.state()), ("generator", self.generator.state()))
        files = [(name, state_bytes(state)) for name, state in roles]
        return self.writer.submit(lambda: [write_state(folder, *file) for file in files])

    def export(self, folder: str, trained: dict[str, Any]) -> Future[None]:
        return self.writer.submit(write_network, folder, self.generator.product(trained))

    def report(self) -> dict[str, dict[str, float]]:
        return {
            "teacher": {"busy_seconds": self.teacher.stopwatch.seconds},
            "fake_score": self.fake_score.report(),
            "generator": self.generator.report(),
        }

    def prepare(self, step: int) -> None:
        try:
            self.fake_score.prepare(*microbatches(self.config, step, self.share))
        except (RunFailed, LearnerLost):
            raise
        except Exception as error:
            raise RunFailed(f"reading the real images failed: {error}") from error

    def bad_images(self) -> dict[int, str]:
        return self.fake_score.bad_images()

    def profile(self) -> dict[str, dict[int, Profile]]:
        roles = {"teacher": self.teacher, "fake_score": self.fake_score, "generator": self.generator}
        return {name: {0: profile_of(role)} for name, role in roles.items()}

    def close(self) -> None:
        self.writer.shutdown()
        if self.fake_score.real_images is not None:
            self.fake_score.real_images.close()
