"""Refuse a teacher that does not fit the images or the method, before anything starts."""

from __future__ import annotations

from raysid.config import Config, MethodSettings, PretrainConfig
from raysid.data import ImageSource
from raysid.data.picture_source import PictureSource
from raysid.errors import UserError
from raysid.method.augment import LABEL_DIM
from raysid.method.noise import DDPMNoise, EDMNoise
from raysid.networks import DiffusersSettings, FactorySettings, NetworkSettings
from raysid.networks.diffusers_folder import check_runs
from raysid.networks.factory import FactoryDenoiser
from raysid.networks.factory_check import check_factory
from raysid.networks.files import AnySettings, Shapes, misfits, weight_shapes
from raysid.roles.compute import checkpoint_activations
from raysid.trainers.measuring import measures
from raysid.trainers.noise_steps import check_noise_steps, step_warning


def shapes_or_refuse(network: AnySettings, name: str) -> Shapes:
    """Return the name and shape of every weight of a network.

    Args:
        name: the network's name in the error.

    Raises:
        UserError: the network cannot be built.
    """
    try:
        return weight_shapes(network)
    except ValueError as error:
        raise UserError(f"{name} cannot be built: {error}") from None


def check_fits(network: AnySettings, name: str, source: ImageSource | None) -> None:
    """Check that a network can be built and is for the images and labels of `source`.

    Args:
        name: the network's name in the error.
        source: real images; None checks only the network.

    Raises:
        UserError: it cannot be built, or its images or classes differ from the source's.
    """
    if not isinstance(network, FactorySettings):  # a factory's module exists already; its settings build none
        shapes_or_refuse(network, name)
    if source is None:
        return
    if network.text_width:
        raise UserError(f"{name} is distilled from prompts alone, without real images: give data.source null")
    _check_images(network, name, source)


def check_trains(config: PretrainConfig, source: ImageSource) -> None:
    """Check that a teacher's network can be built and run, and is for the images and labels of `source`.

    Raises:
        UserError: as `check_fits`.
    """
    network, name = config.denoiser, "network" if config.network else "diffusers"
    shapes_or_refuse(network, name)
    if isinstance(network, DiffusersSettings):
        try:
            check_runs(network)
        except ValueError as error:
            raise UserError(f"{name} cannot be run: {error}") from None
    _check_images(network, name, source)


def _check_images(network: AnySettings, name: str, source: ImageSource) -> None:
    """Check that a network is for the images and labels of `source`. Raises UserError."""
    if (wanted := network.sample_shape) != source.image_shape:
        other = "other images (`null` for none)"
        if isinstance(source, PictureSource) and len(wanted) == 3:
            odd = wanted[1:] != source.image_shape[1:]
            other += f", or data.resolution {wanted[-1]}" if odd else f", or data.channels {wanted[0]}"
        raise UserError(
            f"{name} makes images of shape {wanted}, but data.source {source.name} has {source.image_shape}: give a "
            f"teacher for these images, or {other}"
        )
    if network.label_dim and not source.num_classes:
        raise UserError(
            f"{name} knows {network.label_dim} classes, but data.source {source.name} has no labels: give images with "
            "labels, or a teacher without classes"
        )
    if network.label_dim not in (0, source.num_classes):
        raise UserError(
            f"{name} knows {network.label_dim} classes, but data.source {source.name} has "
            f"{source.num_classes}: give a teacher for these labels"
        )


def check_method(config: Config, network: AnySettings) -> None:
    """Check that copies of the teacher can serve the method as fake score (psi) and generator (theta).

    Args:
        network: the settings of the teacher's network.

    Raises:
        UserError: the method asks for something that this network cannot do.
    """
    teacher = config.teacher
    name = f"teacher.factory {teacher.factory}" if teacher.factory else f"teacher.recipe {teacher.recipe}"
    if teacher.path:
        name = f"teacher {teacher.path}"
    if isinstance(network, FactorySettings):
        _check_factory_method(config, network, name)
    else:
        _check_described(config, network, name)
    _check_prompts(config, network, name)
    if isinstance(network, DiffusersSettings):
        _check_diffusers_method(config.method, network, name)
    elif config.method.noise_steps is not None:
        raise UserError(f"method.noise_steps is for networks of diffusers, not for {name}: give null")
    if not network.discrete_levels and config.method.tmax is not None and config.method.tmax > 1000:
        raise UserError(
            f"method.tmax is {config.method.tmax}; allowed for {name}: integer above 0, at most 1000"
        )
    if config.fake_score.augment and network.augment_dim != LABEL_DIM:
        raise UserError(
            f"fake_score.augment is {config.fake_score.augment:g}, but {name} has augment_dim "
            f"{network.augment_dim}: give a teacher whose network has augment_dim {LABEL_DIM}, or "
            "fake_score.augment 0"
        )


def check_factory_network(network: FactoryDenoiser, config: Config) -> None:
    """Check that the roles can run, and an evaluation can sample, a network that a user's function made.

    Raises:
        UserError: they cannot.
    """
    check_factory(network, config.method.sigma_init, config.method.tmax)
    if (warning := step_warning(network.noise, config.method.sigma_init)) is not None:
        print(f"warning: teacher.factory {config.teacher.factory}: {warning}", flush=True)
    if config.compute.activation_checkpointing or config.teacher_compute.activation_checkpointing:
        checkpoint_activations(network)  # only to raise its error: every role builds a separate network
    if measures(config.data.source_name) and not isinstance(network.noise, EDMNoise | DDPMNoise):
        raise UserError(
            f"teacher.factory {config.teacher.factory} cannot be measured by data.source {config.data.source_name}: "
            f"there is no sampler for its noise process {type(network.noise).__name__}; give data.source null"
        )


def _check_prompts(config: Config, network: AnySettings, name: str) -> None:
    takes_text = network.text_width > 0
    if takes_text and config.prompts.source is None:
        raise UserError(
            f"{name} makes images from text: give prompts.source, such as --prompts.source prompts.txt"
        )
    if not takes_text and config.prompts.source is not None:
        raise UserError(f"prompts.source is for a teacher that takes text, and {name} takes none: give null")


def _check_diffusers_method(method: MethodSettings, network: DiffusersSettings, name: str) -> None:
    if method.adversarial is not None:
        raise UserError(
            f"method.adversarial (SiDA) is not for {name}: a network of diffusers has no encoder logits; give "
            "method.adversarial null (SiD)"
        )
    check_noise_steps(method, network)
    guidance = method.guidance
    scales = (guidance.train_fake, guidance.eval_fake, guidance.eval_teacher)
    if network.label_dim and not network.null_class and scales != (1.0, 1.0, 1.0):
        raise UserError(
            f"method.guidance is not for {name}: its network has no class for unconditional images; give scales of 1"
        )


def _check_described(config: Config, network: NetworkSettings | DiffusersSettings, name: str) -> None:
    """Check that a network is the one that the recipe describes, if it does."""
    for setting in ("network", "diffusers"):
        wanted: AnySettings | None = getattr(config.teacher, setting)
        if wanted is None:
            continue
        if odd := misfits(shapes_or_refuse(wanted, f"teacher.{setting}"), shapes_or_refuse(network, name)):
            raise UserError(
                f"{name} differs from teacher.{setting} ({len(odd)} weights, {odd[0]} the first): give the "
                f"teacher that the recipe is for, or null for teacher.{setting}"
            )


def _check_factory_method(config: Config, network: FactorySettings, name: str) -> None:
    for setting, kind in (("network", "EDM's"), ("diffusers", "diffusers")):
        if getattr(config.teacher, setting) is not None:
            raise UserError(
                f"{name} makes a module of your own, but teacher.{setting} describes a network of {kind}: give null "
                f"for teacher.{setting}"
            )
    if config.method.adversarial is not None:
        raise UserError(
            f"method.adversarial (SiDA) is not for {name}: a module of your own has no encoder logits; give "
            "method.adversarial null (SiD)"
        )
    for learner in ("generator", "fake_score"):
        if (dropout := getattr(config, learner).dropout) is not None:
            raise UserError(
                f"{learner}.dropout is {dropout:g}, which cannot be set for {name}: the function sets its module's "
                f"dropout; leave {learner}.dropout out, or give null"
            )
    guidance = config.method.guidance
    scales = (guidance.train_fake, guidance.eval_fake, guidance.eval_teacher)
    if not network.label_dim and scales != (1.0, 1.0, 1.0):
        raise UserError(
            f"method.guidance is not for {name}: its module has no classes (label_dim 0); give scales of 1"
        )
