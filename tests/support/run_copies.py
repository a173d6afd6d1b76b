"""Copies of a finished run, from which tests resume."""

from __future__ import annotations

import shutil
from pathlib import Path

from upath import UPath

from raysid.config import Config
from raysid.run.checkpoint import Checkpoints
from tests.support.tiny_run import run_of


def copied(run: Path, config: Config, storage: Path, **changes: object) -> Config:
    """Copy the finished run to another storage; return its settings there."""
    shutil.copytree(run, storage / run.name)
    return config.model_copy(update={"storage": str(storage), "placement": "local"} | changes)


def continued(
    run: Path, config: Config, storage: Path, before: int | None = None, **changes: object
) -> Config:
    """A copy of the run without checkpoints from step `before` on; its metrics reach further, as after a kill."""
    config = copied(run, config, storage, **changes)
    for checkpoint in checkpoints_of(config).all():
        if before is not None and checkpoint.step >= before:
            shutil.rmtree(checkpoint.path)
    return config


def checkpoints_of(config: Config) -> Checkpoints:
    return Checkpoints(UPath(run_of(config)) / "checkpoints", keep=100)
