"""The teacher of a run: one's own, or trained by recipe and kept for every later run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from upath import UPath

from raysid.augment import LABEL_DIM
from raysid.config import Config, PretrainConfig
from raysid.data import ImageSource
from raysid.download import file_name, local_copy
from raysid.errors import UserError
from raysid.networks import NetworkSettings
from raysid.networks.files import CONFIG, NetworkCard, load_network, save_network, weight_shapes
from raysid.networks.published import Published, read_published
from raysid.recipes import load_recipe
from raysid.storage import reaching, storage_folder
from raysid.trainers.evaluation import measure, teacher_sampler

SAMPLER_STEPS = 18  # 35 evaluations, as EDM's 32x32 results

# What does not make another teacher: where it is kept and how the work is shared out.
NOT_ITS_IDENTITY = {"storage", "num_workers", "worker_resources", "torch_threads", "failure", "checkpoint"}


@dataclass(frozen=True)
class Teacher:
    """A teacher's folder and what it says of itself."""

    path: UPath
    card: NetworkCard

    @property
    def evaluations(self) -> int:
        """Network evaluations of its sampler."""
        return 2 * int(self.card.trained.get("sampler_steps", SAMPLER_STEPS)) - 1

    def figures(self, config: Config, seed: int) -> dict[str, Any]:
        """How good it is at `evaluations`: as measured when it was trained, else measured now."""
        known = self.card.trained.get("evaluation")
        if isinstance(known, dict) and known.get("num_samples") == config.evaluation.num_samples:
            return known
        card, network = load_network(self.path, "teacher")
        sampler = teacher_sampler(network, (self.evaluations + 1) // 2)
        return measure(sampler, card, config.data.source, config.evaluation.num_samples, seed)


@dataclass(frozen=True)
class PublishedTeacher:
    """A teacher read from a .pkl file, and the folder where every later run will find it."""

    folder: UPath
    card: NetworkCard
    published: Published


def teacher_folder(config: PretrainConfig) -> UPath:
    """`<storage>/teachers/<hash of what makes this teacher>`."""
    return storage_folder(config.storage) / "teachers" / teacher_digest(config)


def teacher_identity(config: PretrainConfig) -> dict[str, Any]:
    """The settings that make this teacher; a teacher trained by recipe says them in its card."""
    return config.model_dump(mode="json", exclude=NOT_ITS_IDENTITY)


def teacher_digest(config: PretrainConfig) -> str:
    """A short hash of `teacher_identity`."""
    identity = json.dumps(teacher_identity(config), sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def find_teacher(config: Config, source: ImageSource) -> Teacher | PublishedTeacher | PretrainConfig:
    """The teacher that `config` names, or what to make it of where the storage has none yet: a file, a recipe.

    Raises:
        UserError: there is no such teacher or recipe, it is damaged, or it is for other images or labels; or
            psi, a copy of it, could not be told of augmentation.
    """
    if config.teacher.path is not None and file_name(config.teacher.path).lower().endswith(".pkl"):
        published = _find_published(config.teacher.path, config.storage, source)
        check_augment(config, published)
        return published
    if config.teacher.path is not None:
        teacher = load_teacher(config.teacher.path, source)
        check_augment(config, teacher)
        return teacher
    assert config.teacher.recipe is not None
    recipe = load_recipe(config.teacher.recipe, {"storage": config.storage}, kind="pretrain")
    check_fits(recipe.network, f"teacher.recipe {config.teacher.recipe}", source)
    check_augment(config, recipe)
    folder = teacher_folder(recipe)
    return load_teacher(folder, source) if (folder / CONFIG).exists() else recipe


def _find_published(path: str, storage: str, source: ImageSource) -> Teacher | PublishedTeacher:
    """The teacher in a .pkl file: the folder made of it before, or what to make one of."""
    file = local_copy(path)
    published = read_published(file, path)
    check_fits(published.settings, f"teacher {path}", source)
    name = file_name(path)
    folder = storage_folder(storage) / "teachers" / f"{PurePath(name).stem}-{published.sha256[:16]}"
    if (folder / CONFIG).exists():
        return load_teacher(folder, source)
    return PublishedTeacher(folder, published.card(name), published)


def trained_teacher(
    config: Config, found: Teacher | PublishedTeacher | PretrainConfig, source: ImageSource
) -> Teacher:
    """What `find_teacher` found for `config`, in a folder; where that is a recipe, the teacher it trains.

    Says so where one is trained.
    """
    if isinstance(found, Teacher):
        return found
    if isinstance(found, PublishedTeacher):
        with reaching(config.storage):
            save_network(found.folder, found.card, found.published.network())
        return load_teacher(found.folder, source)
    from raysid.trainers.pretrain import pretrain

    print(
        f"no teacher in {config.storage} yet: training it by the recipe {config.teacher.recipe}", flush=True
    )
    return load_teacher(pretrain(found).path, source)


def load_teacher(folder: str | UPath, source: ImageSource) -> Teacher:
    """The teacher in `folder`, checked against the images. Raises UserError as `find_teacher`."""
    card, _ = load_network(folder, "teacher")
    check_fits(card.network, f"teacher {folder}", source)
    steps = card.trained.get("sampler_steps", SAMPLER_STEPS)
    if not isinstance(steps, int) or steps < 2:
        raise UserError(
            f"{UPath(folder) / CONFIG}: trained.sampler_steps is {steps!r}; allowed: integer at least 2"
        )
    return Teacher(UPath(folder), card)


def check_augment(config: Config, found: Teacher | PublishedTeacher | PretrainConfig) -> None:
    """Refuse augmentation where psi, a copy of the teacher, has no place for its labels."""
    if not config.fake_score.augment:
        return
    network = found.network if isinstance(found, PretrainConfig) else found.card.network
    if network.augment_dim != LABEL_DIM:
        teacher = config.teacher
        what = f"teacher {teacher.path}" if teacher.path else f"teacher.recipe {teacher.recipe}"
        raise UserError(
            f"fake_score.augment is {config.fake_score.augment:g}, but {what} has augment_dim "
            f"{network.augment_dim}: give a teacher whose network has augment_dim {LABEL_DIM}, or "
            "fake_score.augment 0"
        )


def check_fits(network: NetworkSettings, what: str, source: ImageSource) -> None:
    """Refuse a network that cannot be built, or is for other images or labels than the source's."""
    try:
        weight_shapes(network)
    except ValueError as error:
        raise UserError(f"{what} cannot be built: {error}") from None
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    if shape != source.image_shape:
        raise UserError(
            f"{what} makes images of shape {shape}, but data.source {source.name} has {source.image_shape}: "
            "give a teacher for these images"
        )
    if network.label_dim not in (0, source.num_classes):
        raise UserError(
            f"{what} knows {network.label_dim} classes, but data.source {source.name} has "
            f"{source.num_classes}: give a teacher for these labels"
        )
