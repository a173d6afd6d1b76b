"""Find the teacher of a run: the user's folder or file, or a recipe whose teacher is trained once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from upath import UPath

from raysid.config import Config, PretrainConfig
from raysid.data import ImageSource
from raysid.data.captions import evaluation_captions
from raysid.data.prompts import PromptSource
from raysid.data.prompts.source import all_prompts
from raysid.errors import NotHere, UserError
from raysid.networks.denoiser import Network
from raysid.networks.diffusers_folder import SAMPLER_STEPS as DDIM_STEPS
from raysid.networks.diffusers_folder import DiffusersNetwork, find_unet, read_diffusers
from raysid.networks.factory import FactoryDenoiser, build_factory
from raysid.networks.files import (
    CONFIG,
    AnySettings,
    NetworkCard,
    load_network,
    network_files,
    save_network,
    weights_digest,
)
from raysid.networks.hub import hub_folder, is_hub_name, pinned
from raysid.networks.parts import TEXT_ENCODER, copy_parts
from raysid.networks.published import Published, read_published
from raysid.networks.text import keep_texts
from raysid.recipes import load_recipe
from raysid.roles.build import use_text
from raysid.storage import exists, is_local, location, storage_folder
from raysid.storage.download import file_name, read_copy
from raysid.trainers.measuring import HELD_OUT_SAMPLES, measure, measured_by, teacher_sampler
from raysid.trainers.pretrain import pretrain, teacher_folder
from raysid.trainers.teacher_checks import check_factory_network, check_fits, check_method

FEW_PROMPTS = 16_384
SAMPLER_STEPS = 18  # 35 evaluations, as EDM's 32x32 results


@dataclass(frozen=True)
class Teacher:
    """A teacher's folder and its card."""

    path: UPath
    card: NetworkCard

    @property
    def evaluations(self) -> int:
        """Network evaluations of its sampler: DDIM's where noise levels are steps, else Heun's."""
        steps = self.sampler_steps
        return steps if self.card.network.discrete_levels else 2 * steps - 1

    @property
    def sampler_steps(self) -> int:
        return int(self.card.trained.get("sampler_steps", SAMPLER_STEPS))

    def figures(self, config: Config, seed: int) -> dict[str, Any]:
        """Return its evaluation: the recorded one if it used as many samples, else one measured now.

        A teacher that takes text is sampled with the guidance that theta's loss has.
        """
        known, samples = self.card.trained.get("evaluation"), config.evaluation.num_samples
        scale = config.method.guidance.eval_teacher if self.card.network.text_width else 1.0
        if isinstance(known, dict) and (known.get("num_samples"), known.get("guidance", 1.0)) == (
            samples,
            scale,
        ):
            return known
        card, network = load_network(self.path, "teacher", config.teacher.factory)
        text = use_text(network, str(self.path))
        sampler = teacher_sampler(network, self.sampler_steps, scale)
        source = measured_by(card.network, config.data.source_name, config.prompts.source_name)
        assert source is not None
        encode = None if text is None else text.encode
        figures = measure(sampler, card, source, samples, seed, encode)
        return figures | {"guidance": scale} if text is not None else figures


@dataclass(frozen=True)
class ForeignTeacher:
    """A teacher from a .pkl file, a diffusers folder or a factory that is not converted yet.

    Attributes:
        folder: where the converted teacher will be kept.
        network: builds it, with its weights.
        parts: folder of the other parts of its pipeline, which the converted teacher keeps; None for no pipeline.
    """

    folder: UPath
    card: NetworkCard
    network: Callable[[], Network]
    parts: UPath | None = None


Found = Teacher | ForeignTeacher | PretrainConfig
"""A teacher in a folder, one to convert, or a recipe that trains one."""


def find_teacher(config: Config, source: ImageSource | None) -> Found:
    """Find the teacher that `config` names, without training or converting it.

    Args:
        source: the real images that it must fit; None if the run uses none.

    Raises:
        NotHere: its file is not here and cannot be downloaded.
        UserError: there is no such teacher or recipe, it is damaged, or it is for other images or labels; or
            the method asks for something that its network cannot do.
    """
    found = _find(config, source)
    check_method(config, network_settings(found))
    return found


def _find(config: Config, source: ImageSource | None) -> Found:
    path, factory = config.teacher.path, config.teacher.factory
    if path is not None and file_name(path).lower().endswith(".pkl"):
        published = read_copy(path, lambda copy: read_published(copy, path))
        name = file_name(path)
        return _find_converted(published, path, name, config.storage, source, PurePath(name).stem)
    if path is not None:
        if is_hub_name(path):
            return _find_hub(path, config, source)
        if (unet := find_unet(location(path))) is not None:
            network = read_diffusers(unet, source.num_classes if source else 0)
            return _find_converted(network, path, UPath(path).name, config.storage, source)
        teacher, loaded = _load(path, source, factory)
        if isinstance(loaded, FactoryDenoiser):
            check_factory_network(loaded, config)
        return teacher
    if factory is not None:
        return _find_factory(factory, config, source)
    assert config.teacher.recipe is not None
    recipe = load_recipe(config.teacher.recipe, {"storage": config.storage}, kind="pretrain")
    check_fits(recipe.denoiser, f"teacher.recipe {config.teacher.recipe}", source)
    folder = teacher_folder(recipe)
    return load_teacher(folder, source) if exists(folder / CONFIG) else recipe


def _find_converted(
    foreign: Published | DiffusersNetwork,
    path: str,
    name: str,
    storage: str,
    source: ImageSource | None,
    stem: str | None = None,
) -> Teacher | ForeignTeacher:
    """Return the converted teacher if it exists, else the source to convert.

    Args:
        name: recorded on its card as where it is from.
        stem: begins the name of its folder; `name` by default.
    """
    check_fits(foreign.settings, f"teacher {path}", source)
    folder = converted_folder(storage, "teachers", stem or name, foreign.sha256)
    if exists(folder / CONFIG):
        return load_teacher(folder, source)
    parts = foreign.parts if isinstance(foreign, DiffusersNetwork) else None
    return ForeignTeacher(folder, foreign.card(name), foreign.network, parts)


def _find_hub(path: str, config: Config, source: ImageSource | None) -> Teacher | ForeignTeacher:
    """Return the converted teacher of a model of the Hub if it exists, else the model to convert.

    A folder of raysid's is converted too, that is copied: other nodes do not have this machine's cache.
    """
    cached = hub_folder(path)
    name = path.partition("@")[0]
    stem, revision = name.rpartition("/")[2], f"{name}@{cached.name}"
    if (unet := find_unet(UPath(cached))) is not None:
        network = read_diffusers(unet, source.num_classes if source else 0)
        return _find_converted(network, path, revision, config.storage, source, stem)
    teacher, loaded = _load(UPath(cached), source, config.teacher.factory)
    if isinstance(loaded, FactoryDenoiser):
        check_factory_network(loaded, config)
    folder = converted_folder(config.storage, "teachers", stem, weights_digest(UPath(cached)))
    if exists(folder / CONFIG):
        return load_teacher(folder, source, config.teacher.factory)
    trained = teacher.card.trained | {"imported_from": revision}
    return ForeignTeacher(folder, teacher.card.model_copy(update={"trained": trained}), lambda: loaded)


def with_revision(config: Config, recorded: str | None) -> Config:
    """Return a config whose `teacher.path`, if it is a model of the Hub, names the commit, so that the run records it.

    Args:
        recorded: the path that the run to resume recorded, whose commit stays.
    """
    path = config.teacher.path
    if path is None or not is_hub_name(path):
        return config
    with suppress(NotHere):  # `find_teacher` raises it together with other files that are missing
        path = pinned(path, recorded)
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"path": path})})


def _find_factory(name: str, config: Config, source: ImageSource | None) -> Teacher | ForeignTeacher:
    """Return the converted teacher of a factory's module if it exists, else the module to convert."""
    network = build_factory(name)
    check_fits(network.settings, f"teacher.factory {name}", source)
    check_factory_network(network, config)
    steps = {"sampler_steps": DDIM_STEPS} if network.settings.discrete_levels else {}
    card = NetworkCard(kind="teacher", network=network.settings, trained=steps)
    digest = hashlib.sha256(b"".join(network_files(card, network.state_dict()).values())).hexdigest()
    folder = converted_folder(config.storage, "teachers", name.replace(":", "-"), digest)
    if exists(folder / CONFIG):
        return load_teacher(folder, source, name)
    return ForeignTeacher(folder, card, lambda: network)


def converted_folder(storage: str, kind: Literal["teachers", "generators"], stem: str, digest: str) -> UPath:
    """Return `<storage>/<kind>/<stem>-<digest>`, where a network converted from another format is kept."""
    return storage_folder(storage) / kind / f"{stem}-{digest[:16]}"


def trained_teacher(config: Config, found: Found, source: ImageSource | None) -> Teacher:
    """Return what `find_teacher` found as a teacher in a folder, after converting or training it if need be."""
    if isinstance(found, Teacher):
        return found
    if isinstance(found, ForeignTeacher):
        if found.parts is not None:
            copy_parts(found.parts, found.folder)
        save_network(found.folder, found.card, found.network())
        return load_teacher(found.folder, source, config.teacher.factory)
    print(
        f"no teacher in {config.storage} yet: training it with the recipe {config.teacher.recipe}", flush=True
    )
    return load_teacher(pretrain(found).path, source)


def keep_prompts(teacher: Teacher, prompts: PromptSource) -> None:
    """Have the prompts of a run encoded once for all of its processes, if they are few."""
    if prompts.num_prompts > FEW_PROMPTS or not exists(teacher.path / TEXT_ENCODER):
        return
    texts = [*all_prompts(prompts)]
    if measured_by(teacher.card.network, None, prompts.name) is not None:
        texts += evaluation_captions(HELD_OUT_SAMPLES, held_out=True)
    keep_texts(teacher.path, texts)


def load_teacher(folder: str | UPath, source: ImageSource | None, factory: str | None = None) -> Teacher:
    """Load the teacher in `folder` and check it against the images; `factory` as in `load_network`.

    Raises:
        UserError: as `find_teacher`.
    """
    return _load(folder, source, factory)[0]


def _load(folder: str | UPath, source: ImageSource | None, factory: str | None) -> tuple[Teacher, Network]:
    card, network = load_network(folder, "teacher", factory)
    check_fits(card.network, f"teacher {folder}", source)
    steps = card.trained.get("sampler_steps", SAMPLER_STEPS)
    if not isinstance(steps, int) or steps < 2:
        raise UserError(
            f"{UPath(folder) / CONFIG}: trained.sampler_steps is {steps!r}; allowed: integer at least 2"
        )
    whole = UPath(folder)
    return Teacher(storage_folder(str(whole)) if is_local(whole) else whole, card), network


def network_settings(found: Found) -> AnySettings:
    """Return the settings of a teacher's network."""
    return found.denoiser if isinstance(found, PretrainConfig) else found.card.network
