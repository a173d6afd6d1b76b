"""`placement: local`: all three roles in one process, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from raysid.data import ImageSource
from raysid.data.windows import ReadBlocks
from raysid.errors import LearnerLost, RunFailed
from raysid.networks.files import write_network
from raysid.roles.build import RunInputs, build_conditions, build_fake_score, build_generator, build_teacher
from raysid.roles.faults import describe_fault, is_device_fault
from raysid.roles.messages import StepReport, merge_step_reports
from raysid.roles.profile import Profile, profile_of
from raysid.roles.protocols import Report, Roles
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import StateFile, write_state
from raysid.roles.step import WHOLE, Share, microbatches, take_step


class LocalPlacement:
    """All three roles in this process: the readable reference of a `raysid.actors.placement.Placement`.

    Each worker of `placement: colocated` has one, too, which takes the worker's share of each step as a rank of both
    learners.

    Args:
        source: the real images, for a method that needs them.
        threads: torch's threads.
        ranks: all workers; None if this process has none beside it.
        read_blocks: reads the real images; None reads them in this process.
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
        self.conditions = build_conditions(inputs)
        self.roles = Roles(self.teacher, self.fake_score, self.generator, self.conditions)
        self._next_step = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writing")

    @property
    def images_until(self) -> float:
        return self.fake_score.images_until(self._next_step)

    def step(self, step: int) -> list[StepReport]:
        self._next_step = step + 1
        try:
            return take_step(self.roles, self.config, step, self.share).reports
        except RuntimeError as error:
            # A worker of several names itself in the message. A fault of a device ends the process it is in.
            if self.share is not WHOLE or not (
                is_device_fault(error) or isinstance(error, torch.OutOfMemoryError)
            ):
                raise
            again = "run the same command to resume from the newest checkpoint"
            raise RunFailed(f"step {step:,} failed: {describe_fault(error)}; {again}") from error

    def is_done(self, reports: list[StepReport]) -> bool:
        return True

    def collect(self, reports: list[StepReport]) -> StepReport:
        return merge_step_reports(reports)

    def notice(self) -> None:
        return None  # there is no cluster

    def leave(self, why: str) -> None:
        pass

    def check_shared(self, folder: str) -> None:
        pass  # there is one process

    def save(self, folder: str) -> Future[list[StateFile]]:
        states = {"fake_score": self.fake_score.state(), "generator": self.generator.state()}
        return self._writer.submit(lambda: [write_state(folder, *state) for state in states.items()])

    def export(self, folder: str, trained: dict[str, Any]) -> Future[None]:
        return self._writer.submit(write_network, folder, *self.generator.product(trained))

    def report(self) -> Report:
        return {
            "teacher": {"busy_seconds": self.teacher.stopwatch.seconds},
            "fake_score": self.fake_score.report(),
            "generator": self.generator.report(),
        } | self._prompt_figures()

    def _prompt_figures(self) -> dict[str, dict[str, float]]:
        figures = self.conditions.report()
        return {"conditions": figures} if figures else {}

    def begin_report(self) -> Callable[[], Report]:
        report = self.report()
        return lambda: report

    def prepare(self, step: int) -> None:
        try:
            self.fake_score.prepare(*microbatches(self.config, step, self.share))
        except (RunFailed, LearnerLost):
            raise
        except Exception as error:  # a storage's client or an image's decoder may raise anything
            raise RunFailed(f"reading the real images failed: {error}") from error

    def bad_images(self) -> dict[int, str]:
        return self.fake_score.bad_images()

    def profile(self) -> dict[str, dict[int, Profile]]:
        roles = {"teacher": self.teacher, "fake_score": self.fake_score, "generator": self.generator}
        return {name: {0: profile_of(role)} for name, role in roles.items()}

    def close(self) -> None:
        self._writer.shutdown()
        self.conditions.close()
        if self.fake_score.real_images is not None:
            self.fake_score.real_images.close()
