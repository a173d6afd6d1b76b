"""Checkpoints of training state, which are whole or absent.

A checkpoint is a folder `step-XXXXXXXX` with a file for each learner and a manifest, written last, of the files' sizes
and digests. A folder without a manifest is not a checkpoint, and may be removed. A manifest that this release does not
understand, because it is newer or damaged, never leads to a removal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from upath import UPath

from raysid.errors import UserError
from raysid.formats import FORMAT, check_format
from raysid.roles.state_files import StateFile, matches
from raysid.storage import (
    children,
    exists,
    file_size,
    location,
    read_whole,
    remove_file,
    remove_folder,
    write_whole,
)
from raysid.storage.plain_json import parse_json

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-\d{8,}")


class _File(BaseModel):
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    """The content of manifest.json, beside `format`."""

    step: Annotated[int, Field(ge=0)]
    images: Annotated[int, Field(ge=0)]
    files: list[_File]


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

    def finish(self, step: int, images: int, files: list[StateFile]) -> None:
        """Write the manifest, which makes the files of `step` a checkpoint."""
        described = [vars(file) for file in files]
        content = {"format": FORMAT, "step": step, "images": images, "files": described}
        write_whole(self.path(step) / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())

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
        """The checkpoints that have a manifest, oldest first. Raises UserError as `read_manifest`."""
        return sorted((c for _, c in self._found() if c is not None), key=lambda c: c.step)

    def newest(
        self, report: Callable[[str], None] = lambda line: None, contents: bool = True
    ) -> Checkpoint | None:
        """The newest checkpoint whose files match its manifest; None if no checkpoint was ever finished.

        Args:
            report: called with a line for each newer checkpoint that is damaged.
            contents: read the files and compare their digests; otherwise only their sizes are compared.

        Raises:
            UserError: all checkpoints are damaged, or a newer release wrote one.
        """
        damaged = []
        for path, checkpoint in reversed(self._found()):
            if checkpoint is None:
                damaged += [path / MANIFEST] * exists(path / MANIFEST)
            elif files := damaged_files(checkpoint, contents):
                damaged.append(path / files[0])
            else:
                for file in damaged:
                    report(f"{file} is damaged: that checkpoint is not used")
                return checkpoint
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is whole ({damaged[-1]} is damaged): put a copy of it back, or move "
                "that folder away to start over"
            )
        return None

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint, without a check of its files; None if there is none."""
        return max((whole.step for whole in self.all()), default=None)

    def remove_unfinished(self, after_step: int) -> None:
        """Remove folders without a manifest, and checkpoints after `after_step`.

        Raises:
            UserError: as `read_manifest`; nothing was removed.
        """
        for path, checkpoint in self._found():
            if checkpoint is not None and checkpoint.step > after_step:
                self._remove(checkpoint)
            elif checkpoint is None and not exists(path / MANIFEST):
                remove_folder(path)

    def _found(self) -> list[tuple[UPath, Checkpoint | None]]:
        """The folders named like checkpoints, by step, and the checkpoint of each that has a readable manifest."""
        folders = [path for path in children(self.folder) if _FOLDER.fullmatch(path.name)]
        return [(path, read_manifest(path)) for path in sorted(folders, key=lambda path: path.name)]

    def _remove(self, checkpoint: Checkpoint) -> None:
        # The manifest first: an interrupted removal leaves no checkpoint, not half of one.
        remove_file(checkpoint.path / MANIFEST)
        remove_folder(checkpoint.path)


def read_manifest(path: UPath) -> Checkpoint | None:
    """Read the checkpoint at `path`; None if there is no manifest, or it is no JSON because a disk damaged it.

    Raises:
        UserError: a newer release wrote the manifest, or this one does not understand it.
        StorageError: the storage cannot be read.
    """
    file = path / MANIFEST
    try:
        content = parse_json(read_whole(file))
    except (FileNotFoundError, ValueError):
        return None
    if isinstance(content, dict):
        check_format(content.get("format"), file)
    try:
        manifest = _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{file} is not a manifest that this release understands ({where}: {first['msg']}): use the release that "
            "wrote it, or move its folder away to resume from the checkpoint before it"
        ) from None
    files = tuple(StateFile(**file.model_dump()) for file in manifest.files)
    return Checkpoint(path, manifest.step, manifest.images, files)


def _best(checkpoints: list[Checkpoint], distances: Mapping[int, float]) -> Checkpoint | None:
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.step in distances]
    return min(evaluated, key=lambda checkpoint: distances[checkpoint.step], default=None)


def find_checkpoint(path: str | UPath, contents: bool = True) -> Checkpoint:
    """Find the checkpoint to branch from: `path` is a checkpoint's folder, or a run's (its newest).

    Args:
        contents: as in `Checkpoints.newest`.

    Raises:
        UserError: there is none, or the one at `path` is damaged.
    """
    folder = location(path)
    checkpoint = read_manifest(folder)
    if checkpoint is not None and (damaged := damaged_files(checkpoint, contents)):
        raise UserError(
            f"{folder / damaged[0]} is damaged: it does not match {MANIFEST}; give another checkpoint"
        )
    checkpoint = checkpoint or Checkpoints(folder / "checkpoints").newest(contents=contents)
    if checkpoint is None:
        raise UserError(
            f"no whole checkpoint at {folder}: give a run's folder or one of its checkpoints/step-*"
        )
    return checkpoint


def damaged_files(checkpoint: Checkpoint, contents: bool = True) -> list[str]:
    """The files of a checkpoint that do not match its manifest; without `contents` those of another size."""
    return [
        file.name for file in checkpoint.files if not _intact(checkpoint.path / file.name, file, contents)
    ]


def _intact(path: UPath, file: StateFile, contents: bool) -> bool:
    try:
        return file_size(path) == file.size and (not contents or matches(read_whole(path), file))
    except FileNotFoundError:
        return False
