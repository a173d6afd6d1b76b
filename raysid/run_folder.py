"""A run's folder: who owns it, what it was started with, what may change when it goes on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import yaml
from pydantic import ValidationError
from upath import UPath

from raysid.checkpoint import Checkpoints
from raysid.config import Config
from raysid.errors import UserError
from raysid.networks.files import read_json, write_whole
from raysid.recipes import config_yaml

# Changing one of these would make another run of it. Everything else (length, evaluation, placement,
# resources, replicas, failure) may change when a run goes on.
FIXED = ("method", "schedule", "seed", "batch_size", "data", "generator", "fake_score", "ema")
LOCK, OWNER = ".lock", "owner.json"


class RunFolder:
    """The folder `<storage>/<run.name>`, owned by this process until `close`.

    Attributes:
        path: the folder.
        checkpoints: its training state.
    """

    def __init__(self, config: Config, fresh: bool = False) -> None:
        """Take the folder, making it when it is not there.

        Args:
            fresh: `begin` is to remove what an earlier run left in it.

        Raises:
            UserError: it cannot be written, another process owns it, it belongs to something else, or it was
                started with settings that may not change.
        """
        assert config.run.name is not None
        self.config = config
        self.path = local_storage(config.storage) / config.run.name
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.checkpoint.keep)
        self._lock = lock_folder(self.path, config.storage, self._owner)
        try:
            self._check(fresh)
        except BaseException:
            self.close()
            raise
        write_whole(self.path / OWNER, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode())
        self._fresh = fresh

    def begin(self, teacher_digest: str, resume_from: str | None = None) -> None:
        """Record the settings and this session; with `fresh`, after removing what was there.

        Args:
            resume_from: what the run branches from, as it was given.

        Raises:
            UserError: the run began with another teacher.
        """
        if self._fresh:
            empty_folder(self.path, keep={LOCK, OWNER})
        record = read_json(self.path / "run.json") or {"sessions": []}
        known = record.setdefault("teacher_sha256", teacher_digest)
        if known != teacher_digest:
            raise UserError(
                f"{self.path} was started with another teacher (its weights differ): give that teacher, "
                "another --run.name, or --fresh"
            )
        record.setdefault("resume_from", resume_from)
        record["sessions"].append(session())
        write_whole(self.path / "run.json", (json.dumps(record, indent=2) + "\n").encode())
        write_whole(self.path / "config.yaml", config_yaml(self.config).encode())

    def resumed_from(self) -> str | None:
        """What the run was branched from, if it was."""
        return (read_json(self.path / "run.json") or {}).get("resume_from")

    def close(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def _check(self, fresh: bool) -> None:
        names = {path.name for path in self.path.iterdir()} - {LOCK}
        if fresh:
            if names and not names & {"config.yaml", OWNER}:
                raise UserError(f"{self.path} is not a run's folder, so --fresh does not empty it")
        elif "config.yaml" in names:
            self._check_unchanged()

    def _owner(self) -> str:
        """Whoever has the folder, as it says itself."""
        owner = read_json(self.path / OWNER) or {}
        return f"process {owner.get('pid', '?')} on {owner.get('host', 'this machine')}"

    def _check_unchanged(self) -> None:
        file = self.path / "config.yaml"
        try:
            before = Config.model_validate(yaml.safe_load(file.read_text()))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
            raise UserError(
                f"{file} cannot be read ({type(error).__name__}): give --fresh to start over"
            ) from None
        for name in FIXED:
            then, now = before.model_dump(mode="json")[name], self.config.model_dump(mode="json")[name]
            if changed := _first_difference(name, then, now):
                where, old, new = changed
                raise UserError(
                    f"{self.path} was started with {where} = {old} and cannot go on with {new}: give another "
                    "--run.name, or --fresh to start over"
                )


def lock_folder(folder: Path | UPath, storage: str, owner: Callable[[], str]) -> filelock.BaseFileLock:
    """Take a folder for this process alone, making it when it is not there.

    Args:
        storage: what the folder lies in, as the user knows it.
        owner: who has the folder; asked when it is taken.

    Raises:
        UserError: another process has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(folder / LOCK))
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{folder} is in use by {owner()}: wait for it, or give another --run.name") from None
    except OSError as error:
        raise UserError(f"storage {storage} cannot be written: {error.strerror or error}") from None
    return lock


def empty_folder(folder: Path | UPath, keep: Set[str]) -> None:
    """Remove what is in a folder, but for the files named in `keep`."""
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(str(path)) if path.is_dir() else path.unlink()


def local_storage(storage: str) -> UPath:
    """The storage folder, absolute.

    Raises:
        UserError: it is not on a file system of this machine (shared or not).
    """
    path = UPath(storage)
    if path.protocol not in ("", "file", "local"):
        raise UserError(f"storage {storage} is not a folder: give a local or a shared one")
    return UPath(Path(path.path).expanduser().absolute())


def session() -> dict[str, Any]:
    """What made this run: versions, commit, command, machine."""
    packages = ("raysid", "torch", "ray", "numpy")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": _commit(),
        "machine": {"host": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
    }


def _commit() -> str | None:
    """The commit of the checkout that raysid runs from, if it runs from one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in before.keys() | now.keys():
            if found := _first_difference(f"{name}.{key}", before.get(key), now.get(key)):
                return found
        return None
    return None if before == now else (name, before, now)
