"""One step of distillation: which role does what, in order.

The step passes one role's results to another without looking into them: they are values in one process and object
references on a cluster. `raysid.roles.protocols` states what each call takes and returns.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysid.config import Config
from raysid.method.schedules import generator_learns
from raysid.roles.messages import Conditions, Noised, Pull, Slice, StepReport
from raysid.roles.protocols import Ref, Reports, Roles

STEPS_IN_FLIGHT = 2  # steps that a driver submits ahead, so that no role waits for it


@dataclass(frozen=True)
class StepResult:
    """The two learners' reports of a step; the generator has none if theta was not updated."""

    fake_score: Reports
    generator: Reports | None

    @property
    def reports(self) -> list[Ref[StepReport]]:
        """All reports in one list, psi's first."""
        learners = [self.fake_score] if self.generator is None else [self.fake_score, self.generator]
        lists = [[reports] if isinstance(reports, StepReport) else reports for reports in learners]
        return [report for reports in lists for report in reports]


@dataclass(frozen=True)
class Share:
    """A worker's part of each batch, for workers that each hold all three roles."""

    rank: int
    ranks: int

    def bounds(self, config: Config) -> tuple[int, int]:
        """Return the first and last offset in the batch. A group that SiDA's discriminator judges is not divided."""
        adversarial = config.method.adversarial
        unit = adversarial.group_size if adversarial else 1
        units = config.batch_size // unit
        begin, end = (units * number // self.ranks for number in (self.rank, self.rank + 1))
        return unit * begin, unit * end


WHOLE = Share(0, 1)


def take_step(roles: Roles, config: Config, step: int, share: Share = WHOLE) -> StepResult:
    """Run step `step` of the config's schedule, or a worker's share of it.

    Raises:
        RunFailed: no teacher scorer is available. Other failures appear where the reports are read.
    """
    if config.schedule == "alternating":
        return alternating_step(roles, config, step, share)
    return overlapped_step(roles, config, step, share)


def updates_theta(config: Config, step: int) -> bool:
    """True if the step updates theta: SiDA's first phase, and step 0 of the overlapped order, train only psi."""
    learns = generator_learns(config.method.adversarial, step * config.batch_size)
    return learns and (config.schedule == "alternating" or step > 0)


def overlapped_step(roles: Roles, config: Config, step: int, share: Share = WHOLE) -> StepResult:
    """Update theta, and psi from the same images, at the same time: 10 F (F: a forward pass over the batch).

    Step 0 updates only psi: while psi equals phi, theta's gradient is rounding noise, along which Adam would take
    a full step.
    """
    generator, fake = roles.generator, roles.fake_score
    learns = updates_theta(config, step)
    done, learnt = [], []
    for group in in_flight(config, step, share):
        conds = [roles.conditions.of(at, "generator") for at in group]
        made = [generator.generate(at, cond) for at, cond in zip(group, conds, strict=True)]
        if learns:
            pulls = scores_and_pulls(roles, config, group, [noised for noised, _ in made], conds)
        learnt += [
            fake.accumulate(at, images, cond)
            for at, (_, images), cond in zip(group, made, conds, strict=True)
        ]
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
    """Update psi on fresh images, then theta on fresh images again, in the authors' order: 11 F."""
    generator, fake = roles.generator, roles.fake_score
    learnt = []
    for at in microbatches(config, step, share):
        cond = roles.conditions.of(at, "fake")
        learnt.append(fake.accumulate(at, generator.images(at, cond), cond))
    fake_reports = fake.step(step, *learnt)
    if not updates_theta(config, step):
        return StepResult(fake_reports, generator=None)
    done = []
    for group in in_flight(config, step, share):
        conds = [roles.conditions.of(at, "generator") for at in group]
        noised = [generator.generate(at, cond)[0] for at, cond in zip(group, conds, strict=True)]
        pulls = scores_and_pulls(roles, config, group, noised, conds)
        done += [generator.accumulate(at, *pull) for at, pull in zip(group, pulls, strict=True)]
    return StepResult(fake_reports, generator.step(step, *done))


def scores_and_pulls(
    roles: Roles,
    config: Config,
    group: list[Slice],
    noised: list[Ref[Noised]],
    conds: list[Ref[Conditions]],
) -> list[tuple[Ref[Pull], Ref[Pull]]]:
    """Score a group of microbatches, and pull the loss's cotangents back through both scorers.

    The scorers work on all microbatches of the group at the same time, and each microbatch's pullbacks follow as soon
    as both of its predictions are there. The order makes no difference to the results.

    Returns:
        For each microbatch the teacher's pull and the fake score's.
    """
    teacher, fake, scale = roles.teacher, roles.fake_score, config.method.guidance.eval_teacher
    batches = list(zip(group, noised, conds, strict=True))
    predictions = [
        (teacher.score(batch, cond, scale), fake.score(at, batch, cond)) for at, batch, cond in batches
    ]
    pulls: dict[int, tuple[Ref[Pull], Ref[Pull]]] = {}
    for number in roles.arrivals(predictions):
        at, batch, cond = batches[number]
        for_teacher, for_fake = roles.generator.cotangents(at, *predictions[number])
        pulls[number] = teacher.pullback(batch, cond, for_teacher, scale), fake.pullback(at, batch, for_fake)
    return [pulls[number] for number in range(len(group))]


def microbatches(config: Config, step: int, share: Share = WHOLE) -> list[Slice]:
    """Cut the step's batch, or a worker's share of it, into microbatches."""
    begin, end = share.bounds(config)
    starts = range(begin, end, config.microbatch)
    return [Slice(step, start, min(config.microbatch, end - start)) for start in starts]


def all_microbatches(config: Config, step: int, ranks: int) -> list[Slice]:
    """Cut the step's batch as `ranks` workers do, one share after the other."""
    return [at for rank in range(ranks) for at in microbatches(config, step, Share(rank, ranks))]


def in_flight(config: Config, step: int, share: Share = WHOLE) -> list[list[Slice]]:
    """Cut the step's microbatches into groups, each of which is under way at a time."""
    cut = microbatches(config, step, share)
    return [cut[first : first + config.in_flight] for first in range(0, len(cut), config.in_flight)]
