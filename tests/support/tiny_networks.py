"""Networks, settings and roles small enough for tests of milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from upath import UPath

from raysid.config import Config
from raysid.data import ImageStream
from raysid.method.draws import Draws, DrawsAt
from raysid.networks import EDMDenoiser, NetworkSettings, build_denoiser
from raysid.networks.files import NetworkCard, save_network
from raysid.roles.conditions import LabelConditions
from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.messages import Images, Noised, Slice, Token
from raysid.roles.protocols import Purpose, Roles
from raysid.roles.teacher import TeacherScorer

CLASSES = 3
SHAPE = (1, 4, 4)
PIXEL_MAX = 16


def tiny_settings(**changes: Any) -> NetworkSettings:
    """A conditional DDPM++ of 4x4 images, 4 channels, no dropout: 3,000 parameters."""
    tree: dict[str, Any] = {
        "img_resolution": SHAPE[1],
        "img_channels": SHAPE[0],
        "label_dim": CLASSES,
        "model_channels": 4,
        "channel_mult": (1,),
        "num_blocks": 1,
        "attn_resolutions": (),
        "dropout": 0.0,
    }
    return NetworkSettings.model_validate(tree | changes)


def tiny_network(seed: int, **changes: Any) -> EDMDenoiser:
    """A denoiser in which every layer has an effect: EDM's initial weights give outputs near zero."""
    network = build_denoiser(tiny_settings(**changes))
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
    return network


def digits_network(seed: int, **changes: Any) -> EDMDenoiser:
    """`tiny_network` for the handwritten digits: 8x8 images of 10 classes."""
    return tiny_network(seed, **{"img_resolution": 8, "label_dim": 10} | changes)


def save_teacher(folder: str | UPath, network: EDMDenoiser, **trained: Any) -> str:
    """Save a network as a teacher; return the folder."""
    save_network(folder, NetworkCard(kind="teacher", network=network.settings, trained=trained), network)
    return str(folder)


def save_generator(folder: str | UPath, network: EDMDenoiser, **trained: Any) -> str:
    """Save a network as a generator; return the folder."""
    card = NetworkCard(kind="generator", network=network.settings, sigma_init=2.5, trained=trained)
    save_network(folder, card, network)
    return str(folder)


def tiny_config(adversarial: dict[str, Any] | None = None, **changes: Any) -> Config:
    """Settings of SiD, or of SiDA without start-up phases if `adversarial` is given: batches of 4, one group."""
    method: dict[str, Any] = {"alpha": 1.2, "adversarial": None} | changes.pop("method", {})
    if adversarial is not None:
        phases = {"group_size": 4, "generator_start_images": 0, "adversarial_start_images": 0}
        method["adversarial"] = phases | adversarial
    tree: dict[str, Any] = {
        "teacher": {"path": "unused"},
        "method": method,
        "batch_size": 4,
        "total_images": 4000,
        "fake_score": {"lr": 1e-3},
        "generator": {"lr": 1e-3},
    }
    return Config.model_validate(tree | changes)


class FixedStream(ImageStream):
    """Real images that are a function of their position: image i has class i % 3, its pixels are i % 17."""

    faults: ClassVar[dict[int, str]] = {}  # type: ignore[misc]

    def __init__(self) -> None:
        self.wait_seconds = 0.0

    def loaded_until(self, position: int) -> float:
        return math.inf

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        position = np.arange(start, start + count)
        pixels = np.broadcast_to((position % (PIXEL_MAX + 1))[:, None, None, None], (count, *SHAPE))
        return pixels.astype(np.uint8), (position % CLASSES).astype(np.int64)


@dataclass(frozen=True)
class TinyRoles:
    """The three roles in this process, with their concrete classes, so that tests can look inside."""

    teacher: TeacherScorer
    fake_score: FakeScoreLearner
    generator: GeneratorLearner
    conditions: LabelConditions

    @property
    def roles(self) -> Roles:
        """The roles as `take_step` expects them."""
        return Roles(self.teacher, self.fake_score, self.generator, self.conditions)

    def generate(self, at: Slice) -> tuple[Noised, Images]:
        """Make images for theta's update, with the conditions of the address."""
        return self.generator.generate(at, self.conditions.of(at, "generator"))

    def images(self, at: Slice) -> Images:
        """Make images for psi's update in the alternating order."""
        return self.generator.images(at, self.conditions.of(at, "fake"))

    def accumulate(self, at: Slice, images: Images, purpose: Purpose = "generator") -> Token:
        """Add images of an address to psi's gradient, with the conditions that they were made with."""
        return self.fake_score.accumulate(at, images, self.conditions.of(at, purpose))


def tiny_roles(
    config: Config,
    draws: DrawsAt | None = None,
    label_frequencies: Sequence[float] = (1.0,) * CLASSES,
    **network: Any,
) -> TinyRoles:
    """Roles with three different networks; with equal networks theta's gradient would be rounding noise."""
    return TinyRoles(
        TeacherScorer(tiny_network(1, **network), config.graphs_kept),
        FakeScoreLearner(config, tiny_network(2, **network), FixedStream(), PIXEL_MAX, draws),
        GeneratorLearner(config, tiny_network(3, **network), draws),
        LabelConditions(label_frequencies, draws or partial(Draws, config.seed)),
    )
