"""The roles as Ray actors: `placement: split`.

Each role lives in actors of its own. A handle turns a role's calls into actor calls whose arguments and
results are object references, so that the controller never holds an image. Scorers are replaceable
(`raysid.actors.pool`). Learners are not: when one is lost, the run restores both from a checkpoint.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from upath import UPath

from raysid.actors.build import RunInputs, build_fake_score, build_generator
from raysid.actors.fleet import Asked, Members, ScorerFleet
from raysid.actors.messages import Slice
from raysid.actors.placement import Roles
from raysid.actors.placing import Say, reserve, wait_for_room
from raysid.actors.pool import PoolCall, TeacherActor, TeacherPool
from raysid.actors.results import get, is_ready
from raysid.actors.saving import Saver
from raysid.checkpoint import StateFile
from raysid.config import Config, RoleResources
from raysid.data import ImageSource, ray_blocks
from raysid.errors import LearnerLost, RunFailed, UserError
from raysid.storage import holds, remove_file, write_whole

COLLECT_SECONDS = 2.0


class LearnerActor:
    """Base of the learners' actors. A learner writes its own state and product: weights never travel."""

    name: str
    role: Any

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.saver = Saver()

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.role, method)(*arguments)
        except Exception as error:
            at = next((f" ({value})" for value in arguments if isinstance(value, Slice)), "")
            raise RunFailed(f"the {self.name} learner failed in `{method}`{at}: {error}") from error

    def save(self, folder: str) -> None:
        self.saver.state(folder, self.name, self.role.state())

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        self.saver.product(folder, self.name, self.role.product(trained))

    def saved(self, folder: str, wait: bool, begun: None) -> StateFile | bool | None:
        return self.saver.saved(folder, self.name, wait)

    def sees(self, file: str, content: str) -> str | None:
        """None where this process finds the driver's file as it was written; otherwise the node it runs on."""
        return None if holds(UPath(file), content) else ray.util.get_node_ip_address()


class FakeScoreActor(LearnerActor):
    """The fake-score learner; it streams the real images itself, through Ray Data."""

    name = "fake_score"

    def __init__(self, inputs: RunInputs, threads: int, dataset: Any) -> None:
        super().__init__(threads)
        self.role = build_fake_score(inputs, ray_blocks(dataset) if dataset is not None else None)


class GeneratorActor(LearnerActor):
    """The generator learner."""

    name = "generator"

    def __init__(self, inputs: RunInputs, threads: int) -> None:
        super().__init__(threads)
        self.role = build_generator(inputs)


class RemoteLearner:
    """A learner's actor: calls return references."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def call(self, method: str, *arguments: Any, num_returns: int = 1) -> Any:
        return self.actor.call.options(num_returns=num_returns).remote(method, *arguments)

    def report(self) -> Any:
        return self.call("report")


class RemoteFakeScore(RemoteLearner):
    """The fake-score learner's actor."""

    def score(self, noised: Any) -> Any:
        return self.call("score", noised)

    def pullback(self, noised: Any, seed: Any) -> Any:
        return self.call("pullback", noised, seed)

    def accumulate(self, images: Any) -> Any:
        return self.call("accumulate", images)

    def step(self, step: int, *tokens: Any) -> Any:
        return self.call("step", step, *tokens)


class RemoteGenerator(RemoteLearner):
    """The generator learner's actor."""

    def images(self, at: Slice) -> Any:
        return self.call("images", at)

    def generate(self, at: Slice) -> tuple[Any, Any]:
        return self.call("generate", at, num_returns=2)

    def seeds(self, at: Slice, teacher: Any, fake: Any) -> tuple[Any, Any]:
        return self.call("seeds", at, _answered(teacher, fake), fake, num_returns=2)

    def accumulate(self, at: Slice, teacher: Any, fake: Any) -> Any:
        return self.call("accumulate", at, _answered(teacher, fake), fake)

    def discard(self, at: Slice) -> Any:
        return self.call("discard", at)

    def step(self, step: int, *tokens: Any) -> Any:
        return self.call("step", step, *tokens)


def _answered(answer: Any, beside: Any) -> Any:
    """The reference of a scorer's answer; where another scorer could still be asked, once it is there."""
    return answer.settle(beside) if isinstance(answer, PoolCall) else answer


@dataclass(frozen=True)
class Within:
    """What a run finds where it is one of many: places for its learners, a teacher service that all share.

    Attributes:
        group: a placement group whose bundles 1 and 2 are for the fake-score and the generator learner.
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
    """`placement: split`: a teacher service and two learners as Ray actors.

    The learners sit in a placement group; the scorers outside it, since a group cannot grow.

    Args:
        source: the real images, for a method that needs them; the fake-score learner streams them by Ray Data.
        threads: torch's threads in each actor.
        say: takes what there is to tell while places are waited for.
        within: places and a teacher service that are there already; None makes its own.
        stopping: whether the run has been asked to stop, so that it waits for no scorer any longer.

    Raises:
        RunFailed: the cluster has no room for the roles within `failure.placement_timeout_s`.
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
        learners = [resources.fake_score, resources.generator]
        if within is None:
            first, self.group = 0, reserve(learners, timeout, say)
        else:
            first, self.group = 1, within.group
            # Ray looks for another place for a group that has lost its node.
            wait_for_room(self.group.wait, "the learners", learners, timeout, say)
        dataset = source.dataset() if source else None
        fake_score = self._learner(FakeScoreActor, first, resources.fake_score)
        generator = self._learner(GeneratorActor, first + 1, resources.generator)
        self.fake_score = RemoteFakeScore(fake_score.remote(inputs, threads, dataset))
        self.generator = RemoteGenerator(generator.remote(inputs, threads))
        self.learners: list[RemoteLearner] = [self.fake_score, self.generator]
        self._begun: dict[tuple[str, RemoteLearner], Any] = {}
        self._asked: dict[str, dict[RemoteLearner, Any]] = {}
        try:
            if within is None:
                self.fleet = start_fleet(inputs.teacher, config, threads, say)
            self.pool = TeacherPool(
                run=self.run,
                sync=self.fleet.sync if self.fleet else self._sync_shared,
                resources=resources.teacher,
                timeout=timeout,
                alone=config.teacher.scaling.max_replicas == 1,
                say=say,
                stopping=stopping,
            )
        except BaseException:
            self.close()
            raise
        self.roles = Roles(self.pool, self.fake_score, self.generator)

    def check_shared(self, folder: str) -> None:
        """Refuse a run's folder that a learner does not share with the driver: it writes its states there.

        Raises:
            UserError: names the learner and its node.
        """
        content = uuid.uuid4().hex
        probe = UPath(folder) / f".shared-{content}"
        write_whole(probe, content.encode())
        try:
            for learner in self.learners:
                node = get(learner.actor.sees.remote(str(probe), content))
                if node is not None:
                    raise UserError(
                        f"{folder} is not shared: the learner on node {node} does not see what the driver writes "
                        "there; give --storage a path that all nodes mount"
                    )
        finally:
            remove_file(probe)

    def collect(self, figures: Any) -> dict[str, float]:
        while not ray.wait([figures], timeout=COLLECT_SECONDS, fetch_local=False)[0]:
            self.pool.check_alone()
        return get(figures)

    def save(self, folder: str) -> None:
        for learner in self.learners:
            self._begun[folder, learner] = learner.actor.save.remote(folder)

    def saved(self, folder: str, wait: bool) -> list[StateFile] | None:
        return self._written(folder, self.learners, wait)

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        self._begun[folder, self.generator] = self.generator.actor.export.remote(folder, trained)

    def exported(self, folder: str, wait: bool) -> bool:
        return self._written(folder, [self.generator], wait) is not None

    def report(self) -> dict[str, dict[str, float]]:
        return {
            "teacher": self.pool.report(),
            "fake_score": get(self.fake_score.report()),
            "generator": get(self.generator.report()),
        }

    def close(self) -> None:
        if self.fleet is not None:
            self.fleet.close()
        for learner in self.learners:
            ray.kill(learner.actor)
        if self.within is None:
            remove_placement_group(self.group)
        else:
            self.within.service.forget.remote(self.run)

    def _written(self, folder: str, learners: list[RemoteLearner], wait: bool) -> list[Any] | None:
        """What learners have written to a folder, once all have; they are asked between the steps' calls."""
        asked = self._asked.setdefault(folder, {})
        while True:
            for learner in learners:
                if learner not in asked:
                    # The beginning goes along: where that has failed, this fails for the same reason.
                    begun = self._begun[folder, learner]
                    asked[learner] = learner.actor.saved.remote(folder, wait, begun)
            if not (wait or all(map(is_ready, asked.values()))):
                return None
            answers = {learner: get(answer) for learner, answer in asked.items()}
            for learner in learners:
                if answers[learner] is None:
                    del asked[learner]  # to be asked again; what has come is kept
            if len(asked) == len(learners):
                del self._asked[folder]
                for learner in learners:
                    del self._begun[folder, learner]
                return [answers[learner] for learner in learners]
            if not wait:
                return None

    def _sync_shared(self, asked: Asked) -> Members:
        assert self.within is not None
        try:
            return get(self.within.service.sync.remote(asked))
        except LearnerLost as lost:
            raise RunFailed(f"the teacher service of this search has ended ({lost})") from lost

    def _learner(self, actor: type[LearnerActor], bundle: int, resources: RoleResources) -> Any:
        place = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return ray.remote(actor).options(
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=place,
            resources=resources.resources,
            **_amounts(resources),
        )


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
        **_amounts(resources),
    )
    return ScorerFleet(
        start=lambda: scorer.remote(teacher, config, runs, threads),
        resources=resources,
        scaling=config.teacher.scaling,
        timeout=config.failure.placement_timeout_s,
        say=say,
    )


def _amounts(resources: RoleResources) -> dict[str, float]:
    return {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
