"""`placement: colocated`: every worker holds all three networks, and takes a share of every batch.

The workers are Ray Train's (`raysid.actors.train_workers`), data parallel: each runs whole steps of the schedule on its
share, and their gradients are summed in the learners' `step`. No image leaves its worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from raysid.actors.capacity import Notify, this_node, wait_for_reading
from raysid.actors.local import LocalPlacement
from raysid.actors.mailbox import Call
from raysid.actors.notices import LeavingNodes, Notice
from raysid.actors.results import HangLimit, RemoteWrite, get, get_ranks, is_ready
from raysid.actors.shared_folder import check_shared
from raysid.actors.train_workers import TrainWorkers, Worker
from raysid.data import ImageSource
from raysid.data.source import all_faults
from raysid.errors import NoAnswer
from raysid.roles.build import RunInputs
from raysid.roles.fake_score import merge_rank_reports
from raysid.roles.messages import StepReport, merge_step_reports
from raysid.roles.profile import Profile
from raysid.roles.protocols import Ref, Report
from raysid.roles.state_files import StateFile

P = ParamSpec("P")
Callee = TypeVar("Callee", Worker, LocalPlacement)


class ColocatedPlacement:
    """The roles of a run in the present group of Ray Train's workers.

    Args:
        source: the real images, for a method that needs them; each worker streams them by Ray Data.
        workers: Ray Train's workers; this placement is on the newest group.
        notify: prints a line while resources are waited for.

    Raises:
        RunFailed: no resources for the workers within `failure.placement_timeout_s`, or a role cannot be built.
        LearnerLost: a worker died.
    """

    def __init__(
        self, inputs: RunInputs, source: ImageSource | None, workers: TrainWorkers, notify: Notify
    ) -> None:
        self.config = inputs.config
        self.workers = workers
        self.limit = HangLimit(self.config.failure.hang_timeout_s)
        self.group = workers.next_group(notify)
        self._numbers = [0] * self.group.size
        self.images_until = math.inf if source is None else 0.0
        self.nodes = LeavingNodes()
        # Ready once Ray Train wants to change the group.
        self._wanted = workers.mailbox.wanted.remote(self.group.name)
        self._get(self._all(Worker.build, inputs, source))
        # Last, since evaluations need as much of the remaining resources as reading does.
        wait_for_reading(self.config.failure.placement_timeout_s, notify)

    def step(self, step: int) -> list[Ref[StepReport]]:
        return self._all(Worker.step, step)

    def is_done(self, reports: list[Ref[StepReport]]) -> bool:
        return all(map(is_ready, reports))

    def collect(self, reports: list[Ref[StepReport]]) -> StepReport:
        merged = merge_step_reports(self._get(reports))
        self.images_until = merged.images_until
        return merged

    def check_shared(self, folder: str) -> None:
        check_shared(folder, "worker", lambda *file: self._get(self._all(Worker.sees, *file)))

    def save(self, folder: str) -> RemoteWrite[list[StateFile]]:
        return self._write(self._call(0, LocalPlacement.save, folder))

    def export(self, folder: str, trained: dict[str, Any]) -> RemoteWrite[None]:
        return self._write(self._call(0, LocalPlacement.export, folder, trained))

    def report(self) -> Report:
        return self.begin_report()()

    def begin_report(self) -> Callable[[], Report]:
        asked = self._all(LocalPlacement.report)

        def merged() -> Report:
            reports = self._get(asked)
            roles = {role: merge_rank_reports([report[role] for report in reports]) for role in reports[0]}
            return roles | {"worker": {"replicas": float(self.group.size)}}

        return merged

    def prepare(self, step: int) -> None:
        self._get(self._all(LocalPlacement.prepare, step))

    def bad_images(self) -> dict[int, str]:
        return all_faults(self._get(self._all(LocalPlacement.bad_images)))

    def profile(self) -> dict[str, dict[int, Profile]]:
        profiles = self._get(self._all(LocalPlacement.profile))
        return {role: {rank: each[role][0] for rank, each in enumerate(profiles)} for role in profiles[0]}

    def notice(self) -> Notice | None:
        if is_ready(self._wanted) and (wanted := get(self._wanted)) is not None:
            return Notice(wanted, restarts=True)
        if not self.nodes.news():
            return None
        processes = get(self.workers.mailbox.processes.remote())
        return self.nodes.notice({process.node for process in processes}, {this_node()})

    def leave(self, why: str) -> None:
        get(self.workers.mailbox.replace.remote(self.group.name, why))

    def close(self) -> None:
        pass  # the workers stay, for a run that goes back to a checkpoint

    def _call(
        self, rank: int, method: Callable[Concatenate[Callee, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Call a worker's method; returns the reference of its answer."""
        assert not kwargs
        number = self._numbers[rank]
        self._numbers[rank] += 1
        return self.workers.mailbox.ask.remote(self.group.name, rank, number, Call(method, args))

    def _all(
        self, method: Callable[Concatenate[Callee, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> list[Any]:
        return [self._call(rank, method, *args, **kwargs) for rank in range(self.group.size)]

    def _get(self, references: list[Any]) -> list[Any]:
        try:
            return get_ranks(references, self.workers.check, self.limit)
        except NoAnswer as hung:
            self.workers.abandon(str(hung))
            raise

    def _write(self, written: Any) -> RemoteWrite[Any]:
        """Return a write by worker 0, which writes for all, since all hold the same weights."""
        return RemoteWrite([written], lambda: self._get([written])[0])
