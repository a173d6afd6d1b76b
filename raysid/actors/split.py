"""The roles as Ray actors: `placement: split`.

Each role lives in actors of its own, which the controller calls by handles. Scorers are replaceable
(`raysid.actors.pool`). Learners (`raysid.actors.remote_learners`) are not: when a rank of one is lost, the run
restores all from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysid.actors.fleet import Asked, Members, ScorerFleet
from raysid.actors.placing import (
    Say,
    amounts,
    learner_places,
    reserve,
    wait_for_reading,
    wait_for_room,
)
from raysid.actors.pool import TeacherActor, TeacherPool
from raysid.actors.remote_learners import (
    FakeScoreActor,
    GeneratorActor,
    LearnerActor,
    RemoteFakeScore,
    RemoteGenerator,
    RemoteLearner,
    learner_actor,
)
from raysid.actors.results import RemoteWrite, get, get_ranks
from raysid.actors.shared_folder import check_shared
from raysid.config import Config, RoleResources
from raysid.data import ImageSource
from raysid.data.faults import all_faults
from raysid.errors import LearnerLost, RunFailed
from raysid.roles.build import RunInputs, read_by_several
from raysid.roles.fake_score import of_a_step, of_all_ranks
from raysid.roles.profile import Profile
from raysid.roles.protocols import Roles
from raysid.roles.state_files import StateFile
from raysid.roles.step import StepResult, microbatches, take_step


@dataclass(frozen=True)
class Within:
    """What a run finds where it is one of many: places for its learners, a teacher service that all share.

    Attributes:
        group: a placement group whose bundles from 1 on are for the learners, as `learner_places` has them.
        service: a `FleetActor`.
    """

    group: PlacementGroup
    service: Any


class FleetActor:
    """A teacher service for many runs, in a process of its own; arguments as `start_fleet`."""

    def __init__(self, teacher: str, config: Config, threads: int, runs: int) -> None:
        self.fleet = start_fleet(teacher, config, threads, runs=runs)

    def sync(self, asked: Asked) -> Members:
        return self.fleet.sync(asked)

    def forget(self, run: str) -> None:
        self.fleet.forget(run)


class SplitPlacement:
    """`placement: split`: a teacher service and two learners of one rank or several, as Ray actors.

    The learners sit in a placement group; the scorers outside it, since a group cannot grow.

    Args:
        source: the real images, for a method that needs them; the fake-score learner streams them by Ray Data.
        threads: torch's threads in each actor.
        say: takes what there is to tell while places are waited for.
        within: places and a teacher service that are there already; None makes its own.
        stopping: whether the run has been asked to stop, so that it waits for no scorer any longer.

    Raises:
        RunFailed: the cluster has no room for the roles within `failure.placement_timeout_s`.
        LearnerLost: one of several ranks died before they had met.
    """

    def __init__(
        self,
        inputs: RunInputs,
        source: ImageSource | None,
        threads: int,
        say: Say = print,
        within: Within | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        config, resources = inputs.config, inputs.config.resources
        timeout = config.failure.placement_timeout_s
        self.run = config.run.name or ""
        self.within = within
        self.fleet: ScorerFleet | None = None
        learners = learner_places(config)
        if within is None:
            first, self.group = 0, reserve(learners, timeout, say)
        else:
            first, self.group = 1, within.group
            # Ray looks for another place for a group that has lost its node.
            wait_for_room(self.group.wait, "the learners", learners, timeout, say)
        self.learners: list[RemoteLearner] = []
        self.images_until = math.inf if source is None else 0.0  # then as a step's ranks say
        try:
            fake_score = self._ranks(FakeScoreActor, first, config, inputs, threads, source)
            # Where scorers may be waited for in the middle of a step, psi's update comes after all that.
            alone = config.teacher.scaling.max_replicas == 1
            self.fake_score = RemoteFakeScore(fake_score, config.batch_size if alone else None)
            self.learners.append(self.fake_score)
            generator = self._ranks(GeneratorActor, first + len(fake_score), config, inputs, threads)
            self.generator = RemoteGenerator(generator, config.batch_size)
            self.learners.append(self.generator)
            joined = [*self.fake_score.join(), *self.generator.join()]
            if within is None:
                self.fleet = start_fleet(inputs.teacher, config, threads, say)
            self.pool = TeacherPool(
                run=self.run,
                sync=self.fleet.sync if self.fleet else self._sync_shared,
                resources=resources.teacher,
                timeout=timeout,
                alone=alone,
                say=say,
                stopping=stopping,
            )
            get_ranks(joined, self.pool.check_alone)
            if source is not None:  # last: what it asks for is what the roles have left
                wait_for_reading(timeout, say)
                if (note := read_by_several(config, source)) is not None:
                    say(note)
        except BaseException:
            self.close()
            raise
        self.config = config
        self.roles = Roles(self.pool, self.fake_score, self.generator)

    def step(self, step: int) -> StepResult:
        return take_step(self.roles, self.config, step)

    def check_shared(self, folder: str) -> None:
        """Refuse a run's folder that a learner does not share with the driver: it writes its states there."""
        ranks = [rank for learner in self.learners for rank in learner.ranks]
        check_shared(folder, "learner", lambda *file: get([rank.sees.remote(*file) for rank in ranks]))

    def collect(self, figures: Any) -> dict[str, float]:
        """What a learner's ranks returned: it is the same, each having all tokens."""
        answers = get_ranks(figures, self.pool.check_alone)
        answer, self.images_until = of_a_step(answers, self.images_until)
        return answer

    def save(self, folder: str) -> RemoteWrite[list[StateFile]]:
        files = [learner.save(folder) for learner in self.learners]
        return RemoteWrite(files, lambda: get(files))

    def export(self, folder: str, trained: dict[str, Any]) -> RemoteWrite[None]:
        written = self.generator.export(folder, trained)
        return RemoteWrite([written], lambda: get(written))

    def report(self) -> dict[str, dict[str, float]]:
        return {
            "teacher": self.pool.report(),
            "fake_score": of_all_ranks(get(self.fake_score.report())),
            "generator": of_all_ranks(get(self.generator.report())),
        }

    def prepare(self, step: int) -> None:
        get(self.fake_score.prepare(microbatches(self.config, step)))

    def bad_images(self) -> dict[int, str]:
        return all_faults(get([rank.call.remote("bad_images") for rank in self.fake_score.ranks]))

    def profile(self) -> dict[str, dict[int, Profile]]:
        actors: dict[str, dict[int, Any]] = {
            "teacher": {scorer.number: scorer.actor for scorer in self.pool.present()},
            "fake_score": dict(enumerate(self.fake_score.ranks)),
            "generator": dict(enumerate(self.generator.ranks)),
        }
        asked = {role: {k: actor.profile.remote() for k, actor in of.items()} for role, of in actors.items()}
        return {role: {k: get(answer) for k, answer in of.items()} for role, of in asked.items()}

    def close(self) -> None:
        if self.fleet is not None:
            self.fleet.close()
        for learner in self.learners:
            for rank in learner.ranks:
                ray.kill(rank)
        if self.within is None:
            remove_placement_group(self.group)
        else:
            self.within.service.forget.remote(self.run)

    def _sync_shared(self, asked: Asked) -> Members:
        assert self.within is not None
        try:
            return get(self.within.service.sync.remote(asked))
        except LearnerLost as lost:
            raise RunFailed(f"the teacher service of this search has ended ({lost})") from lost

    def _ranks(self, actor: type[LearnerActor], first: int, config: Config, *arguments: Any) -> list[Any]:
        """Start a learner's ranks, each in a bundle of its own from the `first` on."""
        resources: RoleResources = getattr(config.resources, actor.name)

        def started(rank: int) -> Any:
            place = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=first + rank)
            learner = learner_actor(
                actor,
                scheduling_strategy=place,
                resources=resources.resources,
                **amounts(resources),
            )
            return learner.remote(*arguments, rank)

        return [started(rank) for rank in range(config.learner_workers[actor.name])]


def start_fleet(teacher: str, config: Config, threads: int, say: Say = print, runs: int = 1) -> ScorerFleet:
    """The scorers of a teacher, started and ready as far as the minimum goes.

    Args:
        teacher: its folder.
        config: the run's settings, or what those of all runs to be served have in common.
        threads: torch's threads in each.
        runs: how many runs they are to serve at a time.

    Raises:
        RunFailed: no room for them in time, or they cannot start.
    """
    resources = config.resources.teacher
    scorer = ray.remote(TeacherActor).options(
        max_restarts=-1,
        max_task_retries=-1,
        resources=resources.resources,
        label_selector=resources.label_selector,
        **amounts(resources),
    )
    return ScorerFleet(
        start=lambda: scorer.remote(teacher, config, runs, threads),
        resources=resources,
        scaling=config.teacher.scaling,
        timeout=config.failure.placement_timeout_s,
        say=say,
    )
