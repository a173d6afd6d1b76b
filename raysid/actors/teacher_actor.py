"""One scorer of the teacher service as a Ray actor."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raysid.actors.capacity import this_node
from raysid.config import Config
from raysid.ray_internals import task_attempt
from raysid.roles.build import build_teacher
from raysid.roles.faults import describe_fault, is_device_fault
from raysid.roles.messages import Conditions, Cotangent, Noised, Prediction, Pull, Slice
from raysid.roles.profile import Profile, Traffic, profile_of


@dataclass(frozen=True)
class Answered:
    """The end of a scorer's call, which reaches the driver without the call's result.

    Attributes:
        at: the microbatch.
        node: ID of the node that holds the result.
    """

    at: Slice
    node: str


class TeacherActor:
    """One scorer of the teacher service.

    `score` and `pullback` return the end of the call beside its result: its reference shows that the result is there,
    without fetching it.

    Args:
        teacher: folder of the teacher.
        config: the run's settings, or those that all runs to be served have in common.
        runs_kept: number of runs that graphs are kept for.
        threads: torch's threads.
    """

    def __init__(self, teacher: str, config: Config, runs_kept: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.role = build_teacher(teacher, config, runs_kept)
        self.traffic = Traffic()
        self.node = this_node()

    def score(
        self, noised: Noised, cond: Conditions, scale: float, run: str, moved: bool
    ) -> tuple[Prediction, Answered]:
        with _exit_on_device_fault():
            prediction = self.traffic.call(self.role.score, noised, cond, scale, run)
        again = moved or task_attempt() > 0
        return dataclasses.replace(prediction, recomputed=int(again)), Answered(noised.at, self.node)

    def pullback(
        self, noised: Noised, cond: Conditions, cotangent: Cotangent, scale: float, run: str, moved: bool
    ) -> tuple[Pull, Answered]:
        with _exit_on_device_fault():
            pull = self.traffic.call(self.role.pullback, noised, cond, cotangent, scale, run)
        return pull, Answered(noised.at, self.node)

    def forget(self, run: str) -> None:
        self.role.forget(run)

    def report(self) -> dict[str, float]:
        return self.role.report()

    def profile(self) -> Profile:
        return profile_of(self.role, self.traffic)


@contextmanager
def _exit_on_device_fault() -> Iterator[None]:
    """End this process if its accelerator fails: Ray starts another one, and its work moves."""
    try:
        yield
    except Exception as error:  # only to look for the fault
        if not is_device_fault(error):
            raise
        print(f"TeacherActor: {describe_fault(error)}", file=sys.stderr, flush=True)
        os._exit(1)
