"""Fixtures of the tests of whole runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raysid.config import Config
from raysid.trainers.distill import distill
from tests.support.small_disk import Disk
from tests.support.tiny_run import run_of, tiny_config, tiny_teacher


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny teacher's folder."""
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def whole_config(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The settings of `whole_run`, which keeps every checkpoint."""
    return tiny_config(teacher, tmp_path_factory.mktemp("whole"), checkpoint__keep=100)


@pytest.fixture(scope="session")
def whole_run(ray_cluster: None, whole_config: Config) -> Path:
    """The folder of an undisturbed run on three actors, the reference that other runs are compared with."""
    distill(whole_config)
    return run_of(whole_config)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Restore torch's thread count, which a local placement sets for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    try:
        disk.begin()
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("only root can mount a small file system")
    yield disk
    disk.end()
