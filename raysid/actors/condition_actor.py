"""The source of prompts as a Ray actor, for `placement: split`: roles fetch the token ids from it."""

from __future__ import annotations

from typing import Any

import ray

from raysid.data import ray_blocks
from raysid.roles.build import RunInputs, build_conditions
from raysid.roles.messages import Conditions, Slice
from raysid.roles.protocols import Purpose, Ref


class ConditionActor:
    """Reads prompts through Ray Data, and turns them into token ids. Ray restarts it and repeats its calls."""

    def __init__(self, inputs: RunInputs) -> None:
        self.role = build_conditions(inputs, ray_blocks)

    def of(self, at: Slice, purpose: Purpose) -> Conditions:
        return self.role.of(at, purpose)

    def report(self) -> dict[str, float]:
        return self.role.report()


class RemoteConditions:
    """The handle of a `ConditionActor`. Implements `raysid.roles.protocols.ConditionService`."""

    def __init__(self, inputs: RunInputs) -> None:
        # A call is a pure function of the address, so one that is lost can be repeated.
        actor: Any = ray.remote(ConditionActor).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        self.actor = actor.remote(inputs)

    def of(self, at: Slice, purpose: Purpose) -> Ref[Conditions]:
        return self.actor.of.remote(at, purpose)

    def report(self) -> Any:
        return self.actor.report.remote()

    def close(self) -> None:
        ray.kill(self.actor)
