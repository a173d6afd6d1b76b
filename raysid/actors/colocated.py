"""`placement: colocated`: every worker holds all three networks, and takes a share of every batch.

The workers are Ray Train's (`raysid.actors.train_workers`), data parallel: each runs whole steps of the schedule on its
share, and their sums of gradients meet in the learners' `step`. No image leaves its worker.
"""

from __future__ import annotations

import math
from typing import Any

from raysid.actors.mailbox import Call
from raysid.actors.placing import Say, wait_for_reading
from raysid.actors.results import RemoteWrite, get_ranks
from raysid.actors.shared_folder import check_shared
from raysid.actors.train_workers import TrainWorkers
from raysid.data import ImageSource
from raysid.data.faults import all_faults
from raysid.roles.build import RunInputs
from raysid.roles.fake_score import of_a_step, of_all_ranks
from raysid.roles.profile import Profile
from raysid.roles.state_files import StateFile
from raysid.roles.step import StepResult, updates_theta


class ColocatedPlacement:
    """The roles of a run in the workers that Ray Train has at present.

    Args:
        source: the real images, for a method that needs them; each worker streams them by Ray Data.
        workers: under which they run; this placement is of its newest group.
        say: takes what there is to tell while places are waited for.

    Raises:
        RunFailed: no room for the workers within `failure.placement_timeout_s`, or a role cannot be built.
        LearnerLost: a worker died meanwhile.
    """

    def __init__(
        self, inputs: RunInputs, source: ImageSource | None, workers: TrainWorkers, say: Say
    ) -> None:
        self.config = inputs.config
        self.workers = workers
        self.group = workers.next_group(say)
        self._numbers = [0] * self.group.size
        self.images_until = math.inf if source is None else 0.0  # then as a step's workers say
        get_ranks(self._all("build", inputs, source), workers.check)
        # Last: evaluations ask for as much as reading does, of what the workers have left.
        wait_for_reading(self.config.failure.placement_timeout_s, say)

    def step(self, step: int) -> StepResult:
        answers = self._all("step", step, num_returns=2)
        theta = [answer[1] for answer in answers] if updates_theta(self.config, step) else None
        return StepResult([answer[0] for answer in answers], theta)

    def collect(self, figures: Any) -> dict[str, float]:
        """What the workers returned of a learner: it is the same, each having all tokens."""
        answers = get_ranks(figures, self.workers.check)
        answer, self.images_until = of_a_step(answers, self.images_until)
        return answer

    def check_shared(self, folder: str) -> None:
        """Refuse a run's folder that a worker does not share with the driver. Raises UserError."""
        check_shared(folder, "worker", lambda *file: get_ranks(self._all("sees", *file), self.workers.check))

    def save(self, folder: str) -> RemoteWrite[list[StateFile]]:
        return self._write(self._ask(0, "save", folder))

    def export(self, folder: str, trained: dict[str, Any]) -> RemoteWrite[None]:
        return self._write(self._ask(0, "export", folder, trained))

    def report(self) -> dict[str, dict[str, float]]:
        reports = get_ranks(self._all("report"), self.workers.check)
        busiest = {role: of_all_ranks([report[role] for report in reports]) for role in reports[0]}
        return busiest | {"worker": {"replicas": float(self.group.size)}}

    def prepare(self, step: int) -> None:
        get_ranks(self._all("prepare", step), self.workers.check)

    def bad_images(self) -> dict[int, str]:
        return all_faults(get_ranks(self._all("bad_images"), self.workers.check))

    def profile(self) -> dict[str, dict[int, Profile]]:
        profiles = get_ranks(self._all("profile"), self.workers.check)
        return {role: {rank: each[role][0] for rank, each in enumerate(profiles)} for role in profiles[0]}

    def close(self) -> None:
        pass  # the workers stay, for a run that goes back to a checkpoint

    def _ask(self, rank: int, method: str, *arguments: Any, num_returns: int = 1) -> Any:
        number = self._numbers[rank]
        self._numbers[rank] += 1
        ask = self.workers.mailbox.ask.options(num_returns=num_returns)
        return ask.remote(self.group.name, rank, number, Call(method, arguments))

    def _all(self, method: str, *arguments: Any, num_returns: int = 1) -> list[Any]:
        return [
            self._ask(rank, method, *arguments, num_returns=num_returns) for rank in range(self.group.size)
        ]

    def _write(self, written: Any) -> RemoteWrite[Any]:
        """A write of worker 0, which writes for all."""
        return RemoteWrite([written], lambda: get_ranks([written], self.workers.check)[0])
