"""The roles as Ray actors: `placement: split`.

Each role lives in one actor. A handle turns a role's calls into actor calls whose arguments and results are
object references, so that the controller never holds an image. Scorers are replaceable: they restart, and
their calls are tried again. Learners are not: when one is lost, the run restores both from a checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysid.actors.build import RunInputs, build_fake_score, build_generator, build_teacher
from raysid.actors.messages import Noised, Prediction, Pull, Seed, Slice
from raysid.actors.placement import Roles
from raysid.checkpoint import StateFile, write_state
from raysid.config import RoleResources
from raysid.data import ImageSource, ray_blocks
from raysid.errors import LearnerLost, RunFailed

PLACING_SECONDS = 120.0
RETRY_SECONDS = 0.2


class TeacherActor:
    """One scorer of the teacher service.

    Both calls return a second, empty value: whoever waits for it knows that the first is there, without
    fetching it.
    """

    def __init__(self, inputs: RunInputs, threads: int) -> None:
        torch.set_num_threads(threads)
        self.role = build_teacher(inputs)

    def score(self, noised: Noised, moved: bool) -> tuple[Prediction, None]:
        prediction = self.role.score(noised)
        again = moved or _attempts_before() > 0
        return dataclasses.replace(prediction, recomputed=int(again)), None

    def pullback(self, noised: Noised, seed: Seed, moved: bool) -> tuple[Pull, None]:
        return self.role.pullback(noised, seed), None

    def report(self) -> dict[str, float]:
        return self.role.report()


class LearnerActor:
    """Base of the learners' actors. A learner writes its own state and product: weights never travel."""

    name: str
    role: Any

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.role, method)(*arguments)
        except Exception as error:
            at = next((f" ({value})" for value in arguments if isinstance(value, Slice)), "")
            raise RunFailed(f"the {self.name} learner failed in `{method}`{at}: {error}") from error

    def save(self, folder: str) -> StateFile:
        return write_state(folder, self.name, self.role.state())


class FakeScoreActor(LearnerActor):
    """The fake-score learner; it streams the real images itself, through Ray Data."""

    name = "fake_score"

    def __init__(self, inputs: RunInputs, threads: int, dataset: Any) -> None:
        torch.set_num_threads(threads)
        self.role = build_fake_score(inputs, ray_blocks(dataset) if dataset is not None else None)


class GeneratorActor(LearnerActor):
    """The generator learner."""

    name = "generator"

    def __init__(self, inputs: RunInputs, threads: int) -> None:
        torch.set_num_threads(threads)
        self.role = build_generator(inputs)


class PoolCall:
    """A call on a pool of several scorers: settled once one of them has answered it."""

    def __init__(self, pool: TeacherPool, method: str, scorer: int, arguments: tuple[Any, ...]) -> None:
        self.pool, self.method, self.arguments, self.scorer = pool, method, arguments, scorer
        self.result, self.answered = self._submit(moved=False)

    def settle(self) -> Any:
        """Wait for an answer, moving the call to the next scorer whenever one is lost; return its reference."""
        moves, unable = 0, set()
        while True:
            try:
                ray.get(self.answered)
                return self.result
            except RayError as error:
                if isinstance(error, RayTaskError) or not isinstance(error, RayActorError):
                    # The call itself failed, or its inputs are lost: no other scorer could do it. As with one
                    # scorer, the error goes where the result goes, and comes out when the driver asks for it.
                    return self.result
                if error.actor_init_failed:
                    unable.add(self.scorer)
                    if len(unable) == len(self.pool.scorers):
                        return self.result  # none of them can even start
                moves += 1
                self.scorer = (self.scorer + 1) % len(self.pool.scorers)
                if moves % len(self.pool.scorers) == 0:
                    time.sleep(RETRY_SECONDS)  # all of them are restarting
                self.result, self.answered = self._submit(moved=True)

    def _submit(self, moved: bool) -> tuple[Any, Any]:
        method = getattr(self.pool.scorers[self.scorer], self.method)
        # Without a retry of Ray's own a lost scorer's call fails at once, and can go to another.
        return method.options(num_returns=2, max_task_retries=0).remote(*self.arguments, moved)


class TeacherPool:
    """The teacher service: one scorer or several, which may die and come back.

    With one, calls are passed on at once, and Ray repeats them after a restart. With several, a call's
    completion (not its data) is waited for before its result is passed on, so that another scorer can take
    over from one that died.
    """

    def __init__(self, scorers: list[Any]) -> None:
        self.scorers = scorers
        self.turn = 0

    def score(self, noised: Any) -> Any:
        self.turn = (self.turn + 1) % len(self.scorers)
        return self._call("score", noised)

    def pullback(self, noised: Any, seed: Any) -> Any:
        return self._call("pullback", noised, seed)  # to the scorer that keeps the graph

    def report(self) -> list[Any]:
        return [scorer.report.remote() for scorer in self.scorers]

    def _call(self, method: str, *arguments: Any) -> Any:
        if len(self.scorers) > 1:
            return PoolCall(self, method, self.turn, arguments)
        call = getattr(self.scorers[0], method)
        return call.options(num_returns=2).remote(*arguments, False)[0]


class RemoteLearner:
    """A learner's actor: calls return references."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def call(self, method: str, *arguments: Any, num_returns: int = 1) -> Any:
        settled = [a.settle() if isinstance(a, PoolCall) else a for a in arguments]
        return self.actor.call.options(num_returns=num_returns).remote(method, *settled)

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
        return self.call("seeds", at, teacher, fake, num_returns=2)

    def accumulate(self, at: Slice, teacher: Any, fake: Any) -> Any:
        return self.call("accumulate", at, teacher, fake)

    def discard(self, at: Slice) -> Any:
        return self.call("discard", at)

    def step(self, step: int, *tokens: Any) -> Any:
        return self.call("step", step, *tokens)


class SplitPlacement:
    """`placement: split`: a teacher pool and two learners as Ray actors.

    The learners sit in a placement group; the scorers outside it, since a group cannot grow.

    Args:
        source: the real images, for a method that needs them; the fake-score learner streams them by Ray Data.
        threads: torch's threads in each actor.

    Raises:
        RunFailed: the cluster has no room for the roles within two minutes.
    """

    def __init__(self, inputs: RunInputs, source: ImageSource | None, threads: int) -> None:
        resources = inputs.config.resources
        self.group = _reserve(resources.fake_score, resources.generator)
        scorer = ray.remote(TeacherActor).options(
            max_restarts=-1,
            max_task_retries=-1,
            resources=resources.teacher.resources,
            label_selector=resources.teacher.label_selector,
            **_amounts(resources.teacher),
        )
        self.pool = TeacherPool(
            [scorer.remote(inputs, threads) for _ in range(inputs.config.teacher.num_replicas)]
        )
        dataset = source.dataset() if source else None
        fake_score = self._learner(FakeScoreActor, 0, resources.fake_score)
        generator = self._learner(GeneratorActor, 1, resources.generator)
        self.fake_score = RemoteFakeScore(fake_score.remote(inputs, threads, dataset))
        self.generator = RemoteGenerator(generator.remote(inputs, threads))
        self.roles = Roles(self.pool, self.fake_score, self.generator)

    def collect(self, figures: Any) -> dict[str, float]:
        return get(figures)

    def save(self, folder: str) -> list[StateFile]:
        return get([role.actor.save.remote(folder) for role in (self.fake_score, self.generator)])

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        get(self.generator.call("export", folder, trained))

    def report(self) -> dict[str, dict[str, float]]:
        scorers = get(self.pool.report())
        busy = sum(report["busy_seconds"] for report in scorers) / len(scorers)
        return {
            "teacher": {"busy_seconds": busy},
            "fake_score": get(self.fake_score.report()),
            "generator": get(self.generator.report()),
        }

    def close(self) -> None:
        for actor in (*self.pool.scorers, self.fake_score.actor, self.generator.actor):
            ray.kill(actor)
        remove_placement_group(self.group)

    def _learner(self, actor: type[LearnerActor], bundle: int, resources: RoleResources) -> Any:
        place = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return ray.remote(actor).options(
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=place,
            resources=resources.resources,
            **_amounts(resources),
        )


def get(references: Any) -> Any:
    """Wait for values from the roles.

    Raises:
        LearnerLost: a process that a value depended on died.
        RunFailed: a role's own code failed, or it could not start; one line says which and where.
    """
    try:
        return ray.get(references)
    except (RayActorError, ObjectLostError, WorkerCrashedError) as error:
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise RunFailed(_why_not_started(error)) from error
        raise LearnerLost(_what_died(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, RunFailed):
            raise RunFailed(str(error.cause)) from error
        raise RunFailed(f"a role failed: {_first_line(error.cause)}") from error


def _reserve(*learners: RoleResources) -> PlacementGroup:
    bundles = [
        {"CPU": r.num_cpus, "GPU": r.num_gpus, **r.resources}
        if r.num_gpus
        else {"CPU": r.num_cpus, **r.resources}
        for r in learners
    ]
    group = placement_group(bundles, bundle_label_selector=[r.label_selector for r in learners])
    if not group.wait(PLACING_SECONDS):
        remove_placement_group(group)
        raise RunFailed(
            f"no place for the learners within {PLACING_SECONDS:.0f} s: they ask for {bundles}, the cluster "
            f"has {ray.available_resources()} free; lower resources.* or add nodes"
        )
    return group


def _amounts(resources: RoleResources) -> dict[str, float]:
    return {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}


def _attempts_before() -> int:
    """How often Ray has run this very call before, its process having died. Only Ray's own code is told."""
    return ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()  # type: ignore[attr-defined]


def _why_not_started(error: RayActorError) -> str:
    """Which role could not start, and the last line of its trace, which is the reason."""
    role = re.search(r"ray::(\w+)\.__init__", str(error))
    return f"{role[1] if role else 'a role'} could not start: {str(error).strip().splitlines()[-1].strip()}"


def _what_died(error: RayError) -> str:
    """Which role's process died and where: taken from what Ray says of it, which may be deep in a trace."""
    said = dict(re.findall(r"^\s*(class_name|pid|ip): (\S+)$", str(error), re.MULTILINE))
    if "class_name" not in said:
        return _first_line(error)
    where = f"process {said['pid']} on {said['ip']}" if {"pid", "ip"} <= said.keys() else "its process"
    return f"{said['class_name']}: {where} died"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
