"""Two ways of computing the same steps, in turns, so that other load of the machine affects both."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from upath import UPath

from raysid.actors.placement import torch_threads
from raysid.bench.sides import Round, Side
from raysid.cluster.connect import connect
from raysid.config import Config
from raysid.data import ImageSource, open_source
from raysid.errors import UserError
from raysid.networks import DiffusersSettings, NetworkSettings, build_denoiser
from raysid.networks.files import NetworkCard, save_network
from raysid.recipes import load_recipe
from raysid.roles.build import RunInputs
from raysid.roles.profile import Span
from raysid.storage import remove_folder, storage_folder
from raysid.trainers.inputs import run_inputs
from raysid.trainers.teachers import find_teacher, trained_teacher

NO_RATE = 1e-12  # a bench's teacher has random weights, from which nothing should be learnt


class Timed(Protocol):
    """A round of one side."""

    @property
    def images_per_second(self) -> float: ...


class InRounds:
    """The rounds of a side, and their speeds."""

    rounds: Sequence[Timed]

    @property
    def speeds(self) -> list[float]:
        """Images per second of each round."""
        return [one.images_per_second for one in self.rounds]

    @property
    def images_per_second(self) -> float:
        """The median speed."""
        return statistics.median(self.speeds)


@dataclass(frozen=True)
class SideResult(InRounds):
    """The config of one side as it was run, its rounds, and the spans of its last steps."""

    config: Config
    rounds: list[Round]
    spans: dict[str, list[tuple[Span, ...]]]

    @property
    def middle(self) -> Round:
        """The round of median speed."""
        speeds = self.speeds
        return self.rounds[speeds.index(statistics.median_low(speeds))]


@dataclass(frozen=True)
class Comparison:
    """The results of a bench; `against` is None if only one side was measured."""

    this: SideResult
    against: SideResult | None


def compare(
    config: Config,
    against: Config | None,
    rounds: int = 5,
    seconds: float = 10.0,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Measure steps of one config, or of two in turns.

    Nothing is trained: learning rates are nearly zero, SiDA's start-up phases are skipped, and a teacher with random
    weights replaces that of a recipe that has the teacher's network.

    Args:
        rounds: rounds of each side.
        seconds: approximate length of a round of one side.
        report: called with a line after every round.

    Raises:
        UserError: an argument cannot be used.
        RunFailed: the cluster lacks resources, or a role failed.
    """
    if against is not None and _network(against) != _network(config):
        raise UserError(
            "both sides of a bench have the same teacher: give no --against.teacher.path or the like"
        )
    configs = [steady(each) for each in (config, against) if each is not None]
    if any(each.placement != "local" for each in configs):
        connect()
    found: list[list[Round]] = [[] for _ in configs]
    with ExitStack() as stack:
        folder = stack.enter_context(stand_in_teacher(config))
        sides = [stack.enter_context(closing(Side(*role_inputs(each, folder)))) for each in configs]
        steps = [side.warm_up(seconds) for side in sides]
        for number in range(rounds):
            for side, count, own in zip(sides, steps, found, strict=True):
                own.append(side.round(count))
            speeds = " against ".join(f"{own[-1].images_per_second:,.1f}" for own in found)
            report(f"round {number + 1} of {rounds}: {speeds} images/s")
        spans = [side.spans for side in sides]
    results = [SideResult(*parts) for parts in zip(configs, found, spans, strict=True)]
    return Comparison(results[0], results[1] if against is not None else None)


def ratio(this: InRounds, against: InRounds | None) -> dict[str, float]:
    """Return the ratio of two speeds, its least and its largest value by round; empty without another side."""
    if against is None:
        return {}
    by_round = [a / b for a, b in zip(this.speeds, against.speeds, strict=True)]
    return {
        "ratio": this.images_per_second / against.images_per_second,
        "ratio_low": min(by_round),
        "ratio_high": max(by_round),
    }


def format_ratio(found: dict[str, float]) -> str:
    """Return the result of `ratio` as a line."""
    return f"ratio {found['ratio']:.3f} ({found['ratio_low']:.3f} to {found['ratio_high']:.3f})"


def _network(config: Config) -> tuple[Any, ...]:
    """Return the settings that determine the network of the roles."""
    teacher = config.teacher
    return teacher.path, teacher.factory, teacher.recipe, teacher.network, teacher.diffusers


def steady(config: Config) -> Config:
    """Return a config as in the middle of a run, with learning rates of nearly zero."""
    method = config.method
    if method.adversarial is not None:
        no_phases = {"generator_start_images": 0, "adversarial_start_images": 0}
        method = method.model_copy(update={"adversarial": method.adversarial.model_copy(update=no_phases)})
    learners = {
        name: getattr(config, name).model_copy(update={"lr": NO_RATE}) for name in ("generator", "fake_score")
    }
    threads = torch_threads(config)
    return config.model_copy(update={"method": method, "torch_threads": threads} | learners)


def role_inputs(config: Config, teacher: str) -> tuple[RunInputs, ImageSource | None]:
    """Return the inputs of the roles with a teacher's folder, and real images if the method uses them."""
    source = open_source(config.data) if config.method.adversarial is not None else None
    return run_inputs(config, teacher, source), source


def recipe_network(config: Config) -> NetworkSettings | DiffusersSettings | None:
    """Return the settings of the teacher's network if the recipe, or that of its teacher, has them."""
    teacher = config.teacher
    own = teacher.network or teacher.diffusers
    if teacher.recipe is None or own or teacher.path is not None or teacher.factory is not None:
        return own
    return load_recipe(teacher.recipe, kind="pretrain").network


@contextmanager
def stand_in_teacher(config: Config) -> Iterator[str]:
    """Yield a folder of a teacher with the recipe's network, in its storage, which all nodes can read.

    A teacher that takes text is its own pipeline, whose text encoder the roles need.
    """
    settings = recipe_network(config)
    if settings is None or settings.text_width:
        yield str(trained_teacher(config, find_teacher(config, None), None).path)
        return
    folder = storage_folder(config.storage) / f".bench-{uuid.uuid4().hex[:8]}"
    _save_random(folder, settings)
    try:
        yield str(folder)
    finally:
        remove_folder(folder)


def _save_random(folder: UPath, settings: NetworkSettings | DiffusersSettings) -> None:
    network = build_denoiser(settings)
    with torch.no_grad():
        # EDM's last layers start at zero, and their gradients would be zero.
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_network(folder, NetworkCard(kind="teacher", network=settings), network)
