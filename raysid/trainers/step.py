"""One step of distillation: which role does what, in order.

The step passes what the roles return from one to the other without looking at it: values in one process,
object references on a cluster. It is the same function for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysid.actors.messages import Slice
from raysid.actors.placement import Roles
from raysid.config import Config
from raysid.schedules import generator_learns


@dataclass(frozen=True)
class StepResult:
    """What the two learners said of their step: losses per image and rates, or references to them."""

    fake_score: Any
    generator: Any | None


def take_step(roles: Roles, config: Config, step: int) -> StepResult:
    """Run step `step` of the schedule that `config` names."""
    if config.schedule == "alternating":
        return alternating_step(roles, config, step)
    return overlapped_step(roles, config, step)


def overlapped_step(roles: Roles, config: Config, step: int) -> StepResult:
    """theta's update, and psi's from the same images, side by side: 10 F.

    The first step updates psi alone: while psi equals phi theta's gradient is rounding noise, along which
    Adam would take a full step.
    """
    generator, fake = roles.generator, roles.fake_score
    learns = step > 0 and theta_learns(config, step)
    done, learnt = [], []
    for at in microbatches(config, step):
        noised, images = generator.generate(at)
        if learns:
            done.append(generator_pass(roles, at, noised))
        else:
            generator.discard(at)
        learnt.append(fake.accumulate(images))
    return StepResult(
        generator=generator.step(step, *done) if learns else None,
        fake_score=fake.step(step, *learnt),
    )


def alternating_step(roles: Roles, config: Config, step: int) -> StepResult:
    """The authors' order: psi's whole update on fresh images, then theta's on fresh images again: 11 F."""
    generator, fake = roles.generator, roles.fake_score
    learnt = [fake.accumulate(generator.images(at)) for at in microbatches(config, step)]
    fake_figures = fake.step(step, *learnt)
    if not theta_learns(config, step):
        return StepResult(generator=None, fake_score=fake_figures)
    done = []
    for at in microbatches(config, step):
        noised, _ = generator.generate(at)
        done.append(generator_pass(roles, at, noised))
    return StepResult(generator=generator.step(step, *done), fake_score=fake_figures)


def generator_pass(roles: Roles, at: Slice, noised: Any) -> Any:
    """One microbatch of theta's gradient: two predictions, their seeds, two exact pulls, the backward pass."""
    generator, teacher, fake = roles.generator, roles.teacher, roles.fake_score
    x_teacher, x_fake = teacher.score(noised), fake.score(noised)
    teacher_seed, fake_seed = generator.seeds(at, x_teacher, x_fake)
    teacher_pull, fake_pull = teacher.pullback(noised, teacher_seed), fake.pullback(noised, fake_seed)
    return generator.accumulate(at, teacher_pull, fake_pull)


def microbatches(config: Config, step: int) -> list[Slice]:
    """The step's batch, cut into microbatches."""
    size = config.microbatch_size or config.batch_size
    return [Slice(step, start, size) for start in range(0, config.batch_size, size)]


def theta_learns(config: Config, step: int) -> bool:
    """Whether the generator takes this step (SiDA's first phase trains psi alone)."""
    return generator_learns(config.method.adversarial, step * config.batch_size)
