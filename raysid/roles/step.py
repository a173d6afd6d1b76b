"""One step of distillation: which role does what, in order.

The step passes what the roles return from one to the other without looking at it: values in one process,
object references on a cluster. It is the same function for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysid.config import Config
from raysid.method.schedules import generator_learns
from raysid.roles.messages import Slice
from raysid.roles.protocols import Roles

STEPS_IN_FLIGHT = 2  # how far a driver submits ahead: enough that no role waits for it, little enough to keep


@dataclass(frozen=True)
class StepResult:
    """What the two learners said of their step: losses per image and rates, or references to them."""

    fake_score: Any
    generator: Any | None


@dataclass(frozen=True)
class Share:
    """A worker's part of each batch, where several workers each hold all three roles."""

    rank: int
    ranks: int

    def bounds(self, config: Config) -> tuple[int, int]:
        """Where it begins and ends in the batch. Groups that are judged together are not cut."""
        adversarial = config.method.adversarial
        unit = adversarial.group_size if adversarial else 1
        units = config.batch_size // unit
        begin, end = (units * number // self.ranks for number in (self.rank, self.rank + 1))
        return unit * begin, unit * end


WHOLE = Share(0, 1)


def take_step(roles: Roles, config: Config, step: int, share: Share = WHOLE) -> StepResult:
    """Run step `step` of the schedule that `config` names, or a share of it."""
    if config.schedule == "alternating":
        return alternating_step(roles, config, step, share)
    return overlapped_step(roles, config, step, share)


def updates_theta(config: Config, step: int) -> bool:
    """Whether a step of the schedule updates the generator."""
    return theta_learns(config, step) and (config.schedule == "alternating" or step > 0)


def overlapped_step(roles: Roles, config: Config, step: int, share: Share = WHOLE) -> StepResult:
    """theta's update, and psi's from the same images, side by side: 10 F.

    The first step updates psi alone: while psi equals phi theta's gradient is rounding noise, along which
    Adam would take a full step.
    """
    generator, fake = roles.generator, roles.fake_score
    learns = updates_theta(config, step)
    done, learnt = [], []
    for group in in_flight(config, step, share):
        made = [generator.generate(at) for at in group]
        if learns:
            pulls = scores_and_pulls(roles, config, group, [noised for noised, _ in made])
        learnt += [fake.accumulate(at, images) for at, (_, images) in zip(group, made, strict=True)]
        if learns:
            done += [generator.accumulate(at, *pull) for at, pull in zip(group, pulls, strict=True)]
        else:
            for at in group:
                generator.discard(at)
    return StepResult(
        generator=generator.step(step, *done) if learns else None,
        fake_score=fake.step(step, *learnt),
    )


def alternating_step(roles: Roles, config: Config, step: int, share: Share = WHOLE) -> StepResult:
    """The authors' order: psi's whole update on fresh images, then theta's on fresh images again: 11 F."""
    generator, fake = roles.generator, roles.fake_score
    learnt = [fake.accumulate(at, generator.images(at)) for at in microbatches(config, step, share)]
    fake_figures = fake.step(step, *learnt)
    if not updates_theta(config, step):
        return StepResult(generator=None, fake_score=fake_figures)
    done = []
    for group in in_flight(config, step, share):
        noised = [generator.generate(at)[0] for at in group]
        pulls = scores_and_pulls(roles, config, group, noised)
        done += [generator.accumulate(at, *pull) for at, pull in zip(group, pulls, strict=True)]
    return StepResult(generator=generator.step(step, *done), fake_score=fake_figures)


def scores_and_pulls(
    roles: Roles, config: Config, group: list[Slice], noised: list[Any]
) -> list[tuple[Any, Any]]:
    """For each microbatch two predictions, their cotangents, and two exact pulls: the teacher's and the fake score's.

    All microbatches of the group are with the scorers at the same time.
    """
    teacher, fake, scale = roles.teacher, roles.fake_score, config.method.guidance.eval_teacher
    batches = list(zip(group, noised, strict=True))
    predictions = [(teacher.score(batch, scale), fake.score(at, batch)) for at, batch in batches]
    cotangents = [
        roles.generator.cotangents(at, *predicted) for at, predicted in zip(group, predictions, strict=True)
    ]
    return [
        (teacher.pullback(batch, teacher_cotangent, scale), fake.pullback(at, batch, fake_cotangent))
        for (at, batch), (teacher_cotangent, fake_cotangent) in zip(batches, cotangents, strict=True)
    ]


def microbatches(config: Config, step: int, share: Share = WHOLE) -> list[Slice]:
    """The step's batch, or a share of it, cut into microbatches."""
    begin, end = share.bounds(config)
    starts = range(begin, end, config.microbatch)
    return [Slice(step, start, min(config.microbatch, end - start)) for start in starts]


def all_microbatches(config: Config, step: int, ranks: int) -> list[Slice]:
    """The step's microbatches as so many workers cut it, those of each worker's share in a row."""
    return [at for rank in range(ranks) for at in microbatches(config, step, Share(rank, ranks))]


def in_flight(config: Config, step: int, share: Share = WHOLE) -> list[list[Slice]]:
    """The step's microbatches, in groups of those that are under way at the same time."""
    cut = microbatches(config, step, share)
    return [cut[first : first + config.in_flight] for first in range(0, len(cut), config.in_flight)]


def theta_learns(config: Config, step: int) -> bool:
    """Whether the generator takes this step (SiDA's first phase trains psi alone)."""
    return generator_learns(config.method.adversarial, step * config.batch_size)
