"""The placements of a recipe on given hardware, compared."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from raysid.config import Config
from raysid.errors import UserError
from raysid.plan.hardware import Hardware
from raysid.plan.parts import ROLES
from raysid.plan.predict import Prediction, predict
from raysid.recipes import load_recipe, override

SCHEDULES = ("overlapped", "alternating")
SIMULATED = 8  # shapes of a split placement, the fastest by their bounds
KEPT = 3  # of them
CUTS = (1, 2, 4)  # microbatches a worker, unless the recipe has microbatch_size
CLOSE = 0.02  # predictions that differ by at most this share count as equal
ACCELERATOR = "ray.io/accelerator-type"  # Ray's label of nodes


@dataclass(frozen=True)
class Option:
    """One placement, with the settings that select it.

    Attributes:
        settings: values by dotted name, as for `raysid distill`.
        prediction: its predicted memory and speed.
    """

    settings: dict[str, Any]
    prediction: Prediction

    @property
    def fits(self) -> bool:
        return self.prediction.images_per_second is not None


@dataclass(frozen=True)
class Plan:
    """The placements of a recipe on some hardware.

    Attributes:
        config: the recipe.
        as_given: prediction of the recipe as it is.
        options: the placements compared, by schedule, the fastest first.
    """

    config: Config
    hardware: Hardware
    as_given: Prediction
    options: list[Option]

    def best(self, schedule: str | None = None) -> Option | None:
        """Return the fastest that fits, by default in the recipe's schedule; the simplest of those about as fast."""
        fitting = [one for one in self.in_schedule(schedule or self.config.schedule) if one.fits]
        fastest = max(map(_speed, fitting), default=0.0)
        equal = [one for one in fitting if _speed(one) >= (1 - CLOSE) * fastest]
        return min(equal, key=_effort, default=None)

    def in_schedule(self, schedule: str) -> list[Option]:
        """Return the placements with a schedule, the fastest first."""
        return [one for one in self.options if one.prediction.config.schedule == schedule]

    def overrides(self, option: Option) -> dict[str, Any]:
        """Return the settings of an option that differ from the recipe's."""
        given = self.config
        return {name: value for name, value in option.settings.items() if value != _setting(given, name)}


def make_plan(config: Config, hardware: Hardware) -> Plan:
    """Compare the placements of a recipe.

    Raises:
        UserError: the devices lack the recipe's precision.
    """
    options = []
    for schedule in SCHEDULES:
        given = config.model_copy(update={"schedule": schedule})
        found = [_whole(given, hardware, 1)]
        if hardware.devices.count > 1:
            found.append(_whole(given, hardware, hardware.devices.count))
        options += sorted([*found, *_splits(given, hardware)], key=_speed, reverse=True)
    if config.placement == "colocated":
        as_given = _whole(config, hardware, config.colocated.num_workers).prediction
    else:
        as_given = predict(config, hardware)
    return Plan(config, hardware, as_given, options)


def changed(recipe: str, given: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return the given overrides that change the recipe.

    Args:
        given: overrides by dotted name.
        config: the recipe with them.
    """
    try:
        plain = load_recipe(recipe, kind="distill")
    except UserError:  # it is not complete without them
        return dict(given)
    return {name: value for name, value in given.items() if _setting(config, name) != _setting(plain, name)}


def _speed(option: Option) -> float:
    return option.prediction.images_per_second or 0.0


def _effort(option: Option) -> tuple[int, int, int, int]:
    """Return the complexity of an option: devices, then processes, then microbatches."""
    found = option.prediction
    config = found.config
    processes = found.workers or sum(config.learner_workers.values()) + config.teacher.num_replicas
    return found.devices, int(found.placement == "split"), processes, config.batch_size // config.microbatch


def _whole(config: Config, hardware: Hardware, workers: int) -> Option:
    """Return `local`, or `colocated` with so many workers, with the largest microbatches that fit."""
    one: dict[str, Any] = {f"{learner}.num_workers": 1 for learner in config.learner_workers}
    one |= {"teacher.num_replicas": 1, "teacher.autoscaling_config": None}
    settings: dict[str, Any] = {"placement": "local", "schedule": config.schedule, **one}
    if workers == 1:
        settings |= _on(config, hardware)
    else:
        gpus = 0.0 if hardware.shared_cores else 1.0
        settings |= {"placement": "colocated", "colocated.num_workers": workers}
        settings |= {"resources.worker.num_gpus": gpus}
    if config.batch_size % workers:
        why_not = f"batch_size {config.batch_size} does not divide among {workers} workers"
        return Option(settings, Prediction(config, workers, workers, why_not=why_not))
    share = config.batch_size // workers
    local = {"placement": "local", "batch_size": share, **one, **_on(config, hardware)}
    first = min(config.microbatch_size or share, share)
    sizes = [size for size in range(first, 0, -1) if share % size == 0]
    found = _largest(config, hardware, local, sizes, workers)
    if found.why_not is None:
        found = predict(found.config, hardware, workers)
    if found.config.microbatch != share:
        settings["microbatch_size"] = found.config.microbatch
    return Option(settings, found)


def _splits(config: Config, hardware: Hardware) -> list[Option]:
    """Return the fastest split placements; if none fits, one of them with the reason."""
    tried: list[list[Option]] = []  # by shape, an option for each cut of the batch
    for shape in _shapes(config, hardware):
        settings = _settings(config, hardware, shape)
        workers = math.lcm(shape.fake_score, shape.generator)
        found_cuts: dict[int, Option] = {}
        for first in _first_sizes(config, shape):
            sizes = [
                size
                for size in range(first, 0, -1)
                if config.batch_size % size == 0 and config.batch_size // size % workers == 0
            ]
            found = _largest(config, hardware, settings, sizes)
            size = found.config.microbatch
            found_cuts[size] = Option(settings | {"microbatch_size": size}, found)
        tried.append([*found_cuts.values()])
    fitting = [cuts for cuts in ([one for one in cuts if one.fits] for cuts in tried) if cuts]
    if not fitting:
        return tried[0][:1] if tried else []
    fitting.sort(key=lambda cuts: max(map(_speed, cuts)), reverse=True)
    best: list[Option] = []
    for cuts in fitting[:SIMULATED]:
        # The quick prediction, as if nothing ever waited, is a bound.
        if len(best) == KEPT and max(map(_speed, cuts)) <= _speed(best[-1]):
            break
        options = [Option(one.settings, predict(one.prediction.config, hardware)) for one in cuts]
        fastest = max(map(_speed, options))
        # No more microbatches than help.
        best.append(next(one for one in options if _speed(one) >= (1 - CLOSE) * fastest))
        best = sorted(best, key=_speed, reverse=True)[:KEPT]
    return best


@dataclass(frozen=True)
class _Shape:
    """The number of processes of each role, and the share of a device of each."""

    fake_score: int
    generator: int
    teacher: int
    shares: dict[str, float]


def _shapes(config: Config, hardware: Hardware) -> Iterator[_Shape]:
    """Yield the numbers of workers and scorers that the devices allow and that divide the batch.

    Two roles share a device only if each has one process: Ray would put two halves of one role on the same device.
    """
    count, teachers = hardware.devices.count, hardware.teacher_devices
    numbers = [number for number in range(1, count + 1) if config.batch_size % number == 0]
    if hardware.shared_cores:
        most = max(count, len(ROLES))
        for fake, generator in itertools.product(numbers, repeat=2):
            for scorers in range(1, most - fake - generator + 1):
                yield _Shape(fake, generator, scorers, dict.fromkeys(ROLES, 0.0))
        return
    own = dict.fromkeys(ROLES, 1.0)
    for fake, generator in itertools.product(numbers, repeat=2):
        for scorers in range(1, (teachers.count if teachers else count - fake - generator) + 1):
            if fake + generator <= count:
                yield _Shape(fake, generator, scorers, own)
    if teachers is not None:
        if count == 1:
            for scorers in range(1, teachers.count + 1):
                yield _Shape(1, 1, scorers, own | {"fake_score": 0.5, "generator": 0.5})
        return
    if count == 1:
        yield _Shape(1, 1, 1, dict.fromkeys(ROLES, 0.33))
    for role in ROLES:  # the two others share a device
        for number in range(1, count) if role == "teacher" else [n for n in numbers if n < count]:
            counts = dict.fromkeys(ROLES, 1) | {role: number}
            yield _Shape(**counts, shares=dict.fromkeys(ROLES, 0.5) | {role: 1.0})


def _settings(config: Config, hardware: Hardware, shape: _Shape) -> dict[str, Any]:
    """Return the settings that select a shape."""
    settings: dict[str, Any] = {
        "placement": "split",
        "schedule": config.schedule,
        "fake_score.num_workers": shape.fake_score,
        "generator.num_workers": shape.generator,
        "teacher.num_replicas": shape.teacher,
        "teacher.autoscaling_config": None,
    }
    settings |= {f"resources.{role}.num_gpus": share for role, share in shape.shares.items()}
    teachers = hardware.teacher_devices
    if teachers is not None and teachers.device != hardware.devices.device:
        on = {"teacher": teachers.device, **dict.fromkeys(config.learner_workers, hardware.devices.device)}
        settings |= {
            f"resources.{role}.label_selector": {ACCELERATOR: device.label}
            for role, device in on.items()
            if device.label is not None
        }
    return settings


def _on(config: Config, hardware: Hardware) -> dict[str, Any]:
    """Return the settings that put all roles of one process on the devices."""
    if hardware.shared_cores:
        return {f"resources.{role}.num_gpus": 0.0 for role in ROLES}
    return {
        f"resources.{role}.num_gpus": 1.0 for role in ROLES if getattr(config.resources, role).num_gpus == 0
    }


def _first_sizes(config: Config, shape: _Shape) -> list[int]:
    """Return the largest microbatches to try: the recipe's own, or those of a few per worker."""
    if config.microbatch_size is not None:
        return [config.microbatch_size]
    workers = math.lcm(shape.fake_score, shape.generator)
    counts = {workers * cut for cut in CUTS} | {workers * -(-shape.teacher // workers)}
    sizes = {config.batch_size // count for count in counts if config.batch_size % count == 0}
    return sorted(sizes, reverse=True)


def _largest(
    config: Config, hardware: Hardware, settings: dict[str, Any], sizes: list[int], workers: int | None = None
) -> Prediction:
    """Return a quick prediction with the first size that fits, else the reason why the smallest does not."""
    found = Prediction(config, workers or 0, 0, why_not="no microbatch divides the batch among the workers")
    for size in sizes:
        try:
            cut = override(config, settings | {"microbatch_size": size})
        except ValidationError as error:
            # A smaller one is refused for the same reason; a reason of memory comes first.
            if found.memory is None:
                reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ").splitlines()[0]
                found = dataclasses.replace(found, why_not=reason)
            continue
        found = predict(cut, hardware, workers, quick=True)
        if found.why_not is None or found.memory is None:
            break
    return found


def _setting(config: Config, path: str) -> Any:
    """Return a setting by its dotted name; None if this config lacks it."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part, None)
    return value
