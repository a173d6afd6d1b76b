"""The teacher of a run: one's own, or trained by recipe and kept for every later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from upath import UPath

from raysid.config import Config, MethodSettings, PretrainConfig
from raysid.data import ImageSource
from raysid.data.pictures import PictureSource
from raysid.errors import UserError
from raysid.method.augment import LABEL_DIM
from raysid.method.noise import DDPMNoise, EDMNoise
from raysid.networks import DiffusersSettings, FactorySettings
from raysid.networks.denoiser import Network
from raysid.networks.diffusers_folder import SAMPLER_STEPS as DDIM_STEPS
from raysid.networks.diffusers_folder import DiffusersNetwork, find_unet, read_diffusers
from raysid.networks.factory import FactoryDenoiser, build_factory, check_factory
from raysid.networks.files import (
    CONFIG,
    AnySettings,
    NetworkCard,
    Shapes,
    load_network,
    misfits,
    network_files,
    save_network,
    weight_shapes,
)
from raysid.networks.published import Published, read_published
from raysid.recipes import load_recipe
from raysid.roles.compute import checkpoint_activations
from raysid.storage import is_local, reaching, storage_folder
from raysid.storage.download import file_name, local_copy
from raysid.trainers.evaluation import measure, measures, teacher_sampler

SAMPLER_STEPS = 18  # 35 evaluations, as EDM's 32x32 results

# What does not make another teacher: where it is kept, how the work is shared out, what is said of its data.
NOT_ITS_IDENTITY: Any = dict.fromkeys(
    ("storage", "num_workers", "worker_resources", "torch_threads", "failure", "checkpoint"), True
) | {"data": {"origin", "max_bad_fraction"}}


@dataclass(frozen=True)
class Teacher:
    """A teacher's folder and what it says of itself."""

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
        """How good it is at `evaluations`: as measured when it was trained, else measured now."""
        known = self.card.trained.get("evaluation")
        if isinstance(known, dict) and known.get("num_samples") == config.evaluation.num_samples:
            return known
        card, network = load_network(self.path, "teacher", config.teacher.factory)
        sampler = teacher_sampler(network, self.sampler_steps)
        assert config.data.source_name is not None
        return measure(sampler, card, config.data.source_name, config.evaluation.num_samples, seed)


@dataclass(frozen=True)
class PublishedTeacher:
    """A teacher from a .pkl file, a folder of diffusers or a factory, and the folder where later runs will find it.

    Attributes:
        network: makes it, with its weights.
    """

    folder: UPath
    card: NetworkCard
    network: Callable[[], Network]


Found = Teacher | PublishedTeacher | PretrainConfig
"""A teacher, or what to make it of: a file, a factory, a recipe."""


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


def find_teacher(config: Config, source: ImageSource | None) -> Found:
    """The teacher that `config` names, or what to make it of where the storage has none yet.

    Args:
        source: the images that it must be for; None where there are none.

    Raises:
        NotHere: its file is not here and cannot be fetched.
        UserError: there is no such teacher or recipe, it is damaged, or it is for other images or labels; or
            the method asks for what the network cannot do.
    """
    found = _find(config, source)
    check_method(config, found)
    return found


def _find(config: Config, source: ImageSource | None) -> Found:
    path = config.teacher.path
    if path is not None and file_name(path).lower().endswith(".pkl"):
        return _find_published(path, config.storage, source)
    if path is not None:
        unet = find_unet(UPath(path))
        if unet is not None:
            return _find_diffusers(unet, config, source)
        teacher, network = _load(path, source, config.teacher.factory)
        if isinstance(network, FactoryDenoiser):
            _check_made(network, config)
        return teacher
    if config.teacher.factory is not None:
        return _find_factory(config.teacher.factory, config, source)
    assert config.teacher.recipe is not None
    recipe = load_recipe(config.teacher.recipe, {"storage": config.storage}, kind="pretrain")
    check_fits(recipe.network, f"teacher.recipe {config.teacher.recipe}", source)
    folder = teacher_folder(recipe)
    return load_teacher(folder, source) if (folder / CONFIG).exists() else recipe


def _find_published(path: str, storage: str, source: ImageSource | None) -> Teacher | PublishedTeacher:
    """The teacher in a .pkl file: the folder made of it before, or what to make one of."""
    file = local_copy(path)
    published = read_published(file, path)
    check_fits(published.settings, f"teacher {path}", source)
    name = file_name(path)
    return _kept(published, name, PurePath(name).stem, storage, source)


def _find_diffusers(unet: UPath, config: Config, source: ImageSource | None) -> Teacher | PublishedTeacher:
    """The teacher in a folder of diffusers, as `_find_published`."""
    path = str(config.teacher.path)
    network = read_diffusers(unet, source.num_classes if source else 0)
    check_fits(network.settings, f"teacher {path}", source)
    name = UPath(path).name
    return _kept(network, name, name, config.storage, source)


def _kept(
    published: Published | DiffusersNetwork, name: str, stem: str, storage: str, source: ImageSource | None
) -> Teacher | PublishedTeacher:
    """The folder made of a network from elsewhere before, or what to make one of."""
    folder = kept_folder(storage, "teachers", stem, published.sha256)
    if (folder / CONFIG).exists():
        return load_teacher(folder, source)
    return PublishedTeacher(folder, published.card(name), published.network)


def kept_folder(storage: str, kind: Literal["teachers", "generators"], stem: str, digest: str) -> UPath:
    """Where a storage keeps what it made of a network from elsewhere: `<storage>/<kind>/<stem>-<digest's begin>`."""
    return storage_folder(storage) / kind / f"{stem}-{digest[:16]}"


def _find_factory(name: str, config: Config, source: ImageSource | None) -> Teacher | PublishedTeacher:
    """The teacher that a function makes: the folder that holds these weights of it already, or what to make one of."""
    network = build_factory(name)
    check_fits(network.settings, f"teacher.factory {name}", source)
    _check_made(network, config)
    steps = {"sampler_steps": DDIM_STEPS} if network.settings.discrete_levels else {}
    card = NetworkCard(kind="teacher", network=network.settings, trained=steps)
    digest = hashlib.sha256(b"".join(network_files(card, network).values())).hexdigest()
    folder = kept_folder(config.storage, "teachers", name.replace(":", "-"), digest)
    if (folder / CONFIG).exists():
        return load_teacher(folder, source, name)
    return PublishedTeacher(folder, card, lambda: network)


def _check_made(network: FactoryDenoiser, config: Config) -> None:
    """Refuse what a function of the user's made where the roles could not run it, or nothing could measure it."""
    check_factory(network, config.method.sigma_init, config.method.tmax)
    if config.compute.activation_checkpointing or config.teacher_compute.activation_checkpointing:
        checkpoint_activations(network)  # for its refusal: every role has a network of its own
    if measures(config.data.source_name) and not isinstance(network.noise, EDMNoise | DDPMNoise):
        raise UserError(
            f"teacher.factory {config.teacher.factory} cannot be measured by data.source {config.data.source_name}: "
            f"there is no sampler for its noise process {type(network.noise).__name__}; give data.source null"
        )


def trained_teacher(config: Config, found: Found, source: ImageSource | None) -> Teacher:
    """What `find_teacher` found for `config`, in a folder; where that is a recipe, the teacher it trains.

    Says so where one is trained.
    """
    if isinstance(found, Teacher):
        return found
    if isinstance(found, PublishedTeacher):
        with reaching(config.storage):
            save_network(found.folder, found.card, found.network())
        return load_teacher(found.folder, source, config.teacher.factory)
    from raysid.trainers.pretrain import pretrain

    print(
        f"no teacher in {config.storage} yet: training it by the recipe {config.teacher.recipe}", flush=True
    )
    return load_teacher(pretrain(found).path, source)


def load_teacher(folder: str | UPath, source: ImageSource | None, factory: str | None = None) -> Teacher:
    """The teacher in `folder`, checked against the images; `factory` as in `load_network`.

    Raises:
        UserError: as `find_teacher`.
    """
    return _load(folder, source, factory)[0]


def _load(folder: str | UPath, source: ImageSource | None, factory: str | None) -> tuple[Teacher, Network]:
    """As `load_teacher`, with the network."""
    card, network = load_network(folder, "teacher", factory)
    check_fits(card.network, f"teacher {folder}", source)
    steps = card.trained.get("sampler_steps", SAMPLER_STEPS)
    if not isinstance(steps, int) or steps < 2:
        raise UserError(
            f"{UPath(folder) / CONFIG}: trained.sampler_steps is {steps!r}; allowed: integer at least 2"
        )
    whole = UPath(folder)
    return Teacher(storage_folder(str(whole)) if is_local(whole) else whole, card), network


def settings_of(found: Found) -> AnySettings:
    """The settings of a teacher's network."""
    return found.network if isinstance(found, PretrainConfig) else found.card.network


def check_method(config: Config, found: Found) -> None:
    """Refuse a method that psi and theta, copies of the teacher, cannot follow."""
    network, teacher = settings_of(found), config.teacher
    what = f"teacher.factory {teacher.factory}" if teacher.factory else f"teacher.recipe {teacher.recipe}"
    if teacher.path:
        what = f"teacher {teacher.path}"
    if isinstance(network, FactorySettings):
        _check_own(config, network, what)
    elif teacher.network and (
        odd := misfits(shapes_or_refuse(teacher.network, "teacher.network"), shapes_or_refuse(network, what))
    ):
        raise UserError(
            f"{what} is another network than teacher.network says ({len(odd)} weights differ, {odd[0]} the first): "
            "give the one that the recipe is for, or null for teacher.network"
        )
    if isinstance(network, DiffusersSettings):
        _check_diffusers(config.method, network, what)
    if config.fake_score.augment and network.augment_dim != LABEL_DIM:
        raise UserError(
            f"fake_score.augment is {config.fake_score.augment:g}, but {what} has augment_dim "
            f"{network.augment_dim}: give a teacher whose network has augment_dim {LABEL_DIM}, or "
            "fake_score.augment 0"
        )


def _check_diffusers(method: MethodSettings, network: DiffusersSettings, what: str) -> None:
    """Refuse what a network of diffusers has no place for."""
    if method.adversarial is not None:
        raise UserError(
            f"method.adversarial (SiDA) is not for {what}: a network of diffusers has no encoder logits; give "
            "method.adversarial null (SiD)"
        )
    steps = network.scheduler.num_train_timesteps
    if method.tmax is not None and not DDPMNoise.tmin < method.tmax <= steps:
        raise UserError(
            f"method.tmax is {method.tmax}; allowed for {what}: integer above {DDPMNoise.tmin}, at most {steps}"
        )
    guidance = method.guidance
    scales = (guidance.train_fake, guidance.eval_fake, guidance.eval_teacher)
    if network.label_dim and not network.null_class and scales != (1.0, 1.0, 1.0):
        raise UserError(
            f"method.guidance is not for {what}: its network has no class that stands for no class; give scales of 1"
        )


def _check_own(config: Config, network: FactorySettings, what: str) -> None:
    """Refuse what a module of the user's own has no place for."""
    if config.teacher.network is not None:
        raise UserError(
            f"{what} makes a module of one's own, and teacher.network asks for one of EDM's: give null for "
            "teacher.network"
        )
    if config.method.adversarial is not None:
        raise UserError(
            f"method.adversarial (SiDA) is not for {what}: a module of one's own has no encoder logits; give "
            "method.adversarial null (SiD)"
        )
    for learner in ("generator", "fake_score"):
        if (dropout := getattr(config, learner).dropout) is not None:
            raise UserError(
                f"{learner}.dropout is {dropout:g}, which cannot be set for {what}: the function itself decides about "
                f"its module's dropout; leave {learner}.dropout out, or null"
            )
    guidance = config.method.guidance
    scales = (guidance.train_fake, guidance.eval_fake, guidance.eval_teacher)
    if not network.label_dim and scales != (1.0, 1.0, 1.0):
        raise UserError(
            f"method.guidance is not for {what}: its module has no classes (label_dim 0); give scales of 1"
        )


def shapes_or_refuse(network: AnySettings, what: str) -> Shapes:
    """Name and shape of every weight of a network. Raises UserError where it cannot be built."""
    try:
        return weight_shapes(network)
    except ValueError as error:
        raise UserError(f"{what} cannot be built: {error}") from None


def check_fits(network: AnySettings, what: str, source: ImageSource | None) -> None:
    """Refuse a network that cannot be built, or is for other images or labels than the source's, if there is one."""
    if not isinstance(network, FactorySettings):  # which has been built already, and is built nowhere unasked
        shapes_or_refuse(network, what)
    if source is None:
        return
    if (wanted := network.sample_shape) != source.image_shape:
        other = "other images (`null` for none)"
        if isinstance(source, PictureSource) and len(wanted) == 3:
            odd = wanted[1:] != source.image_shape[1:]
            other += f", or data.resolution {wanted[-1]}" if odd else f", or data.channels {wanted[0]}"
        raise UserError(
            f"{what} makes images of shape {wanted}, but data.source {source.name} has {source.image_shape}: give a "
            f"teacher for these images, or {other}"
        )
    if network.label_dim and not source.num_classes:
        raise UserError(
            f"{what} knows {network.label_dim} classes, but data.source {source.name} has no labels: give images with "
            "labels, or a teacher without classes"
        )
    if network.label_dim not in (0, source.num_classes):
        raise UserError(
            f"{what} knows {network.label_dim} classes, but data.source {source.name} has "
            f"{source.num_classes}: give a teacher for these labels"
        )
