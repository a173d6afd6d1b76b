"""Checkpoints of training state, which are whole or absent.

A checkpoint is a folder `step-XXXXXXXX` with a file for each learner and a manifest, written last, of the files' sizes
and digests. A folder without a manifest is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from upath import UPath

from raysid.errors import UserError
from raysid.roles.state_files import StateFile
from raysid.storage import (
    children,
    file_size,
    is_local,
    read_whole,
    remove_file,
    remove_folder,
    write_whole,
)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        step: number of steps taken, which is the index of the next step.
        images: number of images generated, which is also the position in the stream of real images.
        files: the learners' files.
    """

    path: UPath
    step: int
    images: int
    files: tuple[StateFile, ...]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the folder that holds them.
        keep: number of newest checkpoints to keep beside the best.
    """

    def __init__(self, folder: UPath, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> UPath:
        """The folder for the checkpoint of `step`, written or not."""
        return self.folder / f"step-{step:08d}"

    def finish(self, step: int, images: int, files: list[StateFile]) -> Checkpoint:
        """Write the manifest, which makes the files of `step` a checkpoint."""
        content = {"step": step, "images": images, "files": [vars(file) for file in files]}
        write_whole(self.path(step) / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
        return Checkpoint(self.path(step), step, images, tuple(files))

    def remove_old(self, distances: Mapping[int, float]) -> None:
        """Remove all but the newest and the best.

        Args:
            distances: Fréchet distances of evaluated checkpoints, by step.
        """
        whole = self.all()
        best = _best(whole, distances)
        for old in whole[: -self.keep]:
            if old is not best:
                self._remove(old)

    def best(self, distances: Mapping[int, float]) -> Checkpoint | None:
        """The checkpoint with the smallest distance, the earliest of equals; None if none was evaluated."""
        return _best(self.all(), distances)

    def all(self) -> list[Checkpoint]:
        """The whole checkpoints, oldest first."""
        found = (read_manifest(path) for path in children(self.folder) if path.name.startswith("step-"))
        return sorted((c for c in found if c is not None), key=lambda c: c.step)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files match its manifest; None if there is none."""
        return next((whole for whole in reversed(self.all()) if not _damaged(whole)), None)

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint, without a check of its files; None if there is none."""
        return max((whole.step for whole in self.all()), default=None)

    def remove_unfinished(self, after_step: int) -> None:
        """Remove folders without a manifest, and checkpoints after `after_step`."""
        for path in children(self.folder):
            checkpoint = read_manifest(path)
            if checkpoint is None:
                remove_folder(path)
            elif checkpoint.step > after_step:
                self._remove(checkpoint)

    def _remove(self, checkpoint: Checkpoint) -> None:
        # The manifest first: an interrupted removal leaves no checkpoint, not half of one.
        remove_file(checkpoint.path / MANIFEST)
        remove_folder(checkpoint.path)


def read_manifest(path: UPath) -> Checkpoint | None:
    """Read the checkpoint at `path`; None if there is no manifest or it is damaged.

    Raises:
        StorageError: the storage cannot be read.
    """
    try:
        text = read_whole(path / MANIFEST)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        files = tuple(StateFile(**file) for file in content["files"])
        return Checkpoint(path, int(content["step"]), int(content["images"]), files)
    except (ValueError, KeyError, TypeError):
        return None


def _best(checkpoints: list[Checkpoint], distances: Mapping[int, float]) -> Checkpoint | None:
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.step in distances]
    return min(evaluated, key=lambda checkpoint: distances[checkpoint.step], default=None)


def find_checkpoint(path: str | UPath) -> Checkpoint:
    """Find the checkpoint to branch from: `path` is a checkpoint's folder, or a run's (its newest).

    Raises:
        UserError: there is none, or the one at `path` is damaged.
    """
    folder = UPath(path)
    checkpoint = read_manifest(folder)
    if checkpoint is not None and (damaged := _damaged(checkpoint)):
        raise UserError(
            f"{folder / damaged[0]} is damaged: it does not match {MANIFEST}; give another checkpoint"
        )
    checkpoint = checkpoint or Checkpoints(folder / "checkpoints").newest()
    if checkpoint is None:
        raise UserError(
            f"no whole checkpoint at {folder}: give a run's folder or one of its checkpoints/step-*"
        )
    return checkpoint


def _damaged(checkpoint: Checkpoint) -> list[str]:
    """The files of a checkpoint that do not match its manifest."""
    return [file.name for file in checkpoint.files if not _intact(checkpoint.path / file.name, file)]


def _intact(path: UPath, file: StateFile) -> bool:
    """True if a file matches the manifest.

    In a bucket the size is enough: uploads are compared with a checksum, and the learners download the gigabytes of
    a checkpoint anyway.
    """
    try:
        if not is_local(path):
            return file_size(path) == file.size
        content = read_whole(path)
    except FileNotFoundError:
        return False
    return len(content) == file.size and hashlib.sha256(content).hexdigest() == file.sha256
