"""`placement: split`: each role lives in separate Ray actors, which the controller calls through handles.

Scorers are replaceable (`raysid.actors.pool`). Learners (`raysid.actors.remote_learners`) are not: when a rank of one
is lost, the run restores all from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysid.actors.attendance import Attendance
from raysid.actors.capacity import (
    Notify,
    actor_amounts,
    learner_resources,
    reserve,
    this_node,
    wait_for_capacity,
    wait_for_reading,
)
from raysid.actors.condition_actor import RemoteConditions
from raysid.actors.fleet import Members, RunStatus, ScorerFleet
from raysid.actors.notices import LeavingNodes, Notice
from raysid.actors.pool import TeacherPool
from raysid.actors.remote_learners import (
    FakeScoreActor,
    GeneratorActor,
    LearnerActor,
    RemoteFakeScore,
    RemoteGenerator,
    RemoteLearner,
    learner_actor,
)
from raysid.actors.results import HangLimit, RemoteWrite, get, get_ranks, is_ready
from raysid.actors.shared_folder import check_shared
from raysid.actors.teacher_actor import TeacherActor
from raysid.config import Config, RoleResources
from raysid.data import ImageSource
from raysid.data.source import all_faults
from raysid.errors import LearnerLost, RunFailed
from raysid.ray_internals import actor_node
from raysid.roles.build import RunInputs, build_conditions, shared_reading_warning
from raysid.roles.conditions import LabelConditions, PromptConditions
from raysid.roles.fake_score import merge_rank_reports
from raysid.roles.messages import StepReport, merge_step_reports
from raysid.roles.profile import Profile
from raysid.roles.protocols import Ref, Report, Roles
from raysid.roles.state_files import StateFile
from raysid.roles.step import microbatches, take_step


@dataclass(frozen=True)
class Within:
    """The resources of a run that is a trial of a search.

    Attributes:
        group: a placement group whose bundles from 1 on are for the learners, in `learner_resources`' order.
        service: the `FleetActor` of the teacher service that all trials share.
    """

    group: PlacementGroup
    service: Any


class FleetActor:
    """A teacher service for many runs, in a separate process. Arguments as `start_fleet`."""

    def __init__(self, teacher: str, config: Config, threads: int, runs: int) -> None:
        self.fleet = start_fleet(teacher, config, threads, runs=runs)

    def sync(self, status: RunStatus) -> Members:
        return self.fleet.sync(status)

    def forget(self, run: str) -> None:
        self.fleet.forget(run)


class SplitPlacement:
    """`placement: split`: a teacher service and two learners of one rank or several, as Ray actors.

    The learners are in a placement group; the scorers outside it, since a group cannot grow.

    Args:
        source: the real images, for a method that needs them; the fake-score learner streams them by Ray Data.
        threads: torch's threads in each actor.
        notify: prints a line while resources are waited for.
        within: resources and a teacher service of a search; None starts this run's own.
        stopping: True once the run has been asked to stop; it waits for no scorer then.

    Raises:
        RunFailed: no resources for the roles within `failure.placement_timeout_s`, or a role cannot be built.
        LearnerLost: one of several ranks died before they had met.
    """

    def __init__(
        self,
        inputs: RunInputs,
        source: ImageSource | None,
        threads: int,
        notify: Notify = print,
        within: Within | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        config, resources = inputs.config, inputs.config.resources
        timeout = config.failure.placement_timeout_s
        self.run = config.run.name or ""
        self.within = within
        self.fleet: ScorerFleet | None = None
        learners = learner_resources(config)
        if within is None:
            first, self.group = 0, reserve(learners, timeout, notify)
        else:
            first, self.group = 1, within.group
            # Ray reschedules a group that has lost its node.
            wait_for_capacity(self.group.wait, "the learners", learners, timeout, notify)
        self.limit = HangLimit(config.failure.hang_timeout_s)
        self.conditions: RemoteConditions | LabelConditions | PromptConditions | None = None
        self.learners: list[RemoteLearner] = []
        self.nodes = LeavingNodes()
        self.images_until = math.inf if source is None else 0.0
        try:
            fake_score = self._ranks(FakeScoreActor, first, config, inputs, threads, source)
            # A step that may fail for want of a scorer must not have updated psi by then.
            single = config.teacher.scaling.max_replicas == 1
            self.fake_score = RemoteFakeScore(fake_score, config.batch_size if single else None)
            self.learners.append(self.fake_score)
            generator = self._ranks(GeneratorActor, first + len(fake_score), config, inputs, threads)
            self.generator = RemoteGenerator(generator, config.batch_size)
            self.learners.append(self.generator)
            joined = [*self.fake_score.join(), *self.generator.join()]
            if within is None:
                self.fleet = start_fleet(inputs.teacher, config, threads, notify)
            # Labels are few bytes: the driver draws them itself.
            prompts = config.prompts.source is not None
            self.conditions = RemoteConditions(inputs) if prompts else build_conditions(inputs)
            sync = self.fleet.sync if self.fleet else self._sync_shared
            attendance = Attendance(self.run, sync, resources.teacher, timeout, notify, stopping)
            self.pool = TeacherPool(attendance, single, self.limit, self.generator.deliver)
            self._get(joined)
            for learner in self.learners:
                learner.nodes = self._get([rank.node.remote() for rank in learner.ranks])
            if source is not None:  # last: reading uses the remaining resources
                wait_for_reading(timeout, notify)
                if (note := shared_reading_warning(config, source)) is not None:
                    notify(note)
        except BaseException:  # an interrupt, too, releases the resources
            self.close()
            raise
        self.config = config
        self.roles = Roles(self.pool, self.fake_score, self.generator, self.conditions, self.pool.arrivals)

    def step(self, step: int) -> list[Ref[StepReport]]:
        return take_step(self.roles, self.config, step).reports

    def check_shared(self, folder: str) -> None:
        ranks = [rank for learner in self.learners for rank in learner.ranks]
        check_shared(folder, "learner", lambda *file: get([rank.sees.remote(*file) for rank in ranks]))

    def is_done(self, reports: list[Ref[StepReport]]) -> bool:
        return all(map(is_ready, reports))

    def collect(self, reports: list[Ref[StepReport]]) -> StepReport:
        merged = merge_step_reports(self._get(reports))
        self.images_until = merged.images_until
        return merged

    def save(self, folder: str) -> RemoteWrite[list[StateFile]]:
        files = [learner.save(folder) for learner in self.learners]
        return RemoteWrite(files, lambda: self._get(files))

    def export(self, folder: str, trained: dict[str, Any]) -> RemoteWrite[None]:
        written = self.generator.export(folder, trained)
        return RemoteWrite([written], lambda: self._get([written])[0])

    def report(self) -> Report:
        return self.begin_report()()

    def begin_report(self) -> Callable[[], Report]:
        teacher, fake_score, generator = (
            self.pool.begin_report(),
            self.fake_score.report(),
            self.generator.report(),
        )
        prompts = self.conditions
        others = {"conditions": prompts.report()} if isinstance(prompts, RemoteConditions) else {}

        def merged() -> Report:
            figures = self._get([*others.values()])
            return {
                "teacher": teacher(),
                "fake_score": merge_rank_reports(self._get(fake_score)),
                "generator": merge_rank_reports(self._get(generator)),
            } | dict(zip(others, figures, strict=True))

        return merged

    def prepare(self, step: int) -> None:
        self._get(self.fake_score.prepare(microbatches(self.config, step)))

    def bad_images(self) -> dict[int, str]:
        return all_faults(self._get(self.fake_score.bad_images()))

    def profile(self) -> dict[str, dict[int, Profile]]:
        actors: dict[str, dict[int, Any]] = {
            "teacher": {scorer.number: scorer.actor for scorer in self.pool.present()},
            "fake_score": dict(enumerate(self.fake_score.ranks)),
            "generator": dict(enumerate(self.generator.ranks)),
        }
        asked = {
            role: {number: actor.profile.remote() for number, actor in own.items()}
            for role, own in actors.items()
        }
        return {role: {number: get(answer) for number, answer in own.items()} for role, own in asked.items()}

    def notice(self) -> Notice | None:
        if not self.nodes.news():
            return None
        learners = {node for learner in self.learners for node in learner.nodes}
        scorers = {node for one in self.pool.members.scorers if (node := actor_node(one.actor)) is not None}
        # A trial's learners cannot leave their bundles, which Ray moves once the node is gone.
        return self.nodes.notice(learners, scorers | {this_node()}, movable=self.within is None)

    def leave(self, why: str) -> None:
        pass  # the next placement reserves other nodes

    def close(self) -> None:
        if self.fleet is not None:
            self.fleet.close()
        if self.conditions is not None:
            self.conditions.close()
        for learner in self.learners:
            for rank in learner.ranks:
                ray.kill(rank)
        if self.within is None:
            remove_placement_group(self.group)
        else:
            self.within.service.forget.remote(self.run)

    def _get(self, references: list[Any]) -> list[Any]:
        return get_ranks(references, self.pool.check_single, self.limit)

    def _sync_shared(self, status: RunStatus) -> Members:
        assert self.within is not None
        try:
            return get(self.within.service.sync.remote(status))
        except LearnerLost as lost:
            raise RunFailed(f"the teacher service of this search has ended ({lost})") from lost

    def _ranks(self, actor: type[LearnerActor], first: int, config: Config, *arguments: Any) -> list[Any]:
        """Start a learner's ranks, each in a separate bundle, beginning with bundle `first`."""
        resources: RoleResources = getattr(config.resources, actor.name)

        def started(rank: int) -> Any:
            bundle = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=first + rank)
            learner = learner_actor(actor, scheduling_strategy=bundle, **actor_amounts(resources))
            return learner.remote(*arguments, rank)

        return [started(rank) for rank in range(config.learner_workers[actor.name])]


def start_fleet(
    teacher: str, config: Config, threads: int, notify: Notify = print, runs: int = 1
) -> ScorerFleet:
    """Start the scorers of a teacher; returns once the minimum has joined.

    Args:
        teacher: folder of the teacher.
        config: the run's settings, or those that all runs to be served have in common.
        threads: torch's threads in each scorer.
        runs: number of runs to serve at a time.

    Raises:
        RunFailed: no resources in time, or the scorers cannot start.
    """
    resources = config.resources.teacher
    scorer = ray.remote(TeacherActor).options(
        max_restarts=-1,
        max_task_retries=-1,
        label_selector=resources.label_selector,
        **actor_amounts(resources),
    )
    return ScorerFleet(
        start=lambda: scorer.remote(teacher, config, runs, threads),
        resources=resources,
        scaling=config.teacher.scaling,
        timeout=config.failure.placement_timeout_s,
        notify=notify,
    )
