"""raysid: one-step generators from diffusion models, by Score identity Distillation on a Ray cluster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysid.config import Config, PretrainConfig
    from raysid.distillation import DistillResult, distill
    from raysid.errors import RunFailed, UserError
    from raysid.generator import Generator, load_generator
    from raysid.method.noise import DDPMNoise, EDMNoise, NoiseProcess
    from raysid.recipes import load_recipe
    from raysid.trainers.pretrain import PretrainResult, pretrain

_HOMES = {
    "Config": "raysid.config",
    "PretrainConfig": "raysid.config",
    "RunFailed": "raysid.errors",
    "UserError": "raysid.errors",
    "Generator": "raysid.generator",
    "load_generator": "raysid.generator",
    "DDPMNoise": "raysid.method.noise",
    "EDMNoise": "raysid.method.noise",
    "NoiseProcess": "raysid.method.noise",
    "load_recipe": "raysid.recipes",
    "DistillResult": "raysid.trainers.distill",
    "distill": "raysid.distillation",
    "PretrainResult": "raysid.trainers.pretrain",
    "pretrain": "raysid.trainers.pretrain",
}

__all__ = [
    "Config",
    "DDPMNoise",
    "DistillResult",
    "EDMNoise",
    "Generator",
    "NoiseProcess",
    "PretrainConfig",
    "PretrainResult",
    "RunFailed",
    "UserError",
    "distill",
    "load_generator",
    "load_recipe",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    # torch and Ray take seconds to import: a name is imported when it is first used.
    if name not in _HOMES:
        raise AttributeError(f"module 'raysid' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
