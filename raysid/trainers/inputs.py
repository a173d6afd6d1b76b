"""Find and check the inputs of a run: real images, the teacher, the generator to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar

from upath import UPath

from raysid.config import Config
from raysid.data import ImageSource, open_source
from raysid.data.prompts import PromptSource, open_prompts
from raysid.errors import NotHere, UserError
from raysid.generator import generator_folder
from raysid.networks import FactorySettings
from raysid.networks.files import (
    CONFIG,
    NetworkCard,
    load_card,
    load_network,
    misfits,
    save_network,
)
from raysid.networks.published import SIGMA_INIT, read_published
from raysid.roles.build import RunInputs
from raysid.run.checkpoint import Checkpoint
from raysid.storage import exists, location, storage_folder
from raysid.storage.download import file_name, read_copy
from raysid.trainers.teacher_checks import shapes_or_refuse
from raysid.trainers.teachers import Found, converted_folder, find_teacher, network_settings

Value = TypeVar("Value")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run.

    Attributes:
        source: the real images, if the config names any.
        teacher: the teacher, or what to convert or train it from.
        start: folder of the generator to start from, if the config names one.
        prompts: the prompts, if the config names any.
    """

    source: ImageSource | None
    teacher: Found
    start: str | None
    prompts: PromptSource | None


def find_inputs(config: Config) -> Inputs:
    """Find and check everything that a run needs. Nothing is trained yet.

    Raises:
        NotHere: files are missing; lists all of them, where to get them, and the settings that name them.
        UserError: a file cannot be used.
    """
    missing: dict[str, NotHere] = {}

    def find(setting: str, get: Callable[[], Value]) -> Value | None:
        try:
            return get()
        except NotHere as error:
            missing[setting] = error
            return None

    data = config.data
    source = find("data.source", lambda: None if data.source is None else open_source(data))
    teacher = find("teacher.path", lambda: find_teacher(config, source))
    start = find("generator.path", lambda: _find_start(config, teacher))
    prompts = find(
        "prompts.source", lambda: None if config.prompts.source is None else open_prompts(config.prompts)
    )
    if missing:
        lines = [f"{setting}: {error}" for setting, error in missing.items()]
        if "data.source" in missing and data.origin:
            lines[0] += f"; to get it: {data.origin}"  # it was looked for first
        raise NotHere("\n  ".join(["files that this run needs are missing", *lines]), tuple(missing))
    assert teacher is not None
    return Inputs(source, teacher, start, prompts)


def run_inputs(
    config: Config,
    teacher: str,
    source: ImageSource | None,
    checkpoint: Checkpoint | None = None,
    start: str | None = None,
) -> RunInputs:
    """Return the inputs from which the roles are built.

    Args:
        teacher: the teacher's folder.
        source: the real images, if the method needs them.
        checkpoint: the one to resume from.
        start: as in `RunInputs`.
    """
    classes = load_card(teacher, "teacher").network.label_dim
    return RunInputs(
        config=config,
        teacher=teacher,
        label_frequencies=tuple(source.label_counts.tolist()) if source and classes else (1.0,) * classes,
        checkpoint=str(checkpoint.path) if checkpoint else None,
        files=checkpoint.files if checkpoint else (),
        start=start,
    )


def _find_start(config: Config, teacher: Found | None) -> str | None:
    """Return the folder of the generator that `generator.path` names, converted from a .pkl file if need be."""
    path = config.generator.path
    if path is None:
        return None
    if not file_name(path).lower().endswith(".pkl"):
        if not exists(location(path)):
            raise NotHere(f"no run and no generator at {path}")
        folder = storage_folder(str(generator_folder(path)))
        card = load_card(folder, "generator")
        _check_start(config, card, teacher)
        if isinstance(card.network, FactorySettings):
            _check_start_level(config, folder)
        return str(folder)
    published = read_copy(path, lambda copy: read_published(copy, path))
    name = file_name(path)
    card = published.card(name, "generator", SIGMA_INIT)
    _check_start(config, card, teacher)
    folder = converted_folder(config.storage, "generators", PurePath(name).stem, published.sha256)
    if not exists(folder / CONFIG):
        save_network(folder, card, published.network())
    return str(folder)


def _check_start(config: Config, card: NetworkCard, teacher: Found | None) -> None:
    """Refuse a generator that is not of this teacher's network, or runs at another noise level."""
    what, sigma_init = f"generator.path {config.generator.path}", config.method.sigma_init
    network = card.network if teacher is None else network_settings(teacher)
    if isinstance(network, FactorySettings) or isinstance(card.network, FactorySettings):
        if network != card.network:
            raise UserError(f"{what} is another network than the teacher: give a generator of that teacher")
        return
    if card.sigma_init is not None and card.sigma_init != sigma_init:
        raise UserError(
            f"{what} runs at sigma_init {card.sigma_init:g}, and method.sigma_init is {sigma_init:g}: give the same"
        )
    if odd := misfits(shapes_or_refuse(network, "the teacher"), shapes_or_refuse(card.network, what)):
        raise UserError(
            f"{what} is another network than the teacher ({len(odd)} weights differ, {odd[0]} the first): give a "
            "generator of that teacher"
        )


def check_start_step(config: Config, start: str | None) -> None:
    """Refuse a generator to start from that runs at another step than the run's generator.

    Args:
        config: as `with_noise_steps` returns it.
        start: the generator's folder, as in `Inputs`.

    Raises:
        UserError: its card has another tau.
    """
    steps = config.method.noise_steps
    if start is not None and steps is not None and (tau := load_card(start, "generator").tau) != steps.tau:
        raise UserError(
            f"generator.path {config.generator.path} runs at step {tau}, and this run's generator at step "
            f"{steps.tau}: give --method.noise_steps.tau {tau}"
        )


def _check_start_level(config: Config, folder: UPath) -> None:
    """Refuse a generator of a factory's module that runs at another noise level than this run's."""
    card, network = load_network(folder, "generator", config.teacher.factory)
    level = network.noise.start_level(config.method.sigma_init)
    if card.level != level:
        raise UserError(
            f"generator.path {config.generator.path} runs at noise level {card.level:g}, and with method.sigma_init "
            f"{config.method.sigma_init:g} this run's generator at {level:g}: give the sigma_init it was made with"
        )
