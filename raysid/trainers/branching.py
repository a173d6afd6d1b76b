"""`--resume-from`: a run that begins at another's checkpoint."""

from __future__ import annotations

from raysid.config import Config
from raysid.errors import UserError
from raysid.networks.files import shapes_of, stored_shapes
from raysid.run.checkpoint import Checkpoint, Checkpoints, find_checkpoint, read_state
from raysid.run.folder import RunFolder
from raysid.storage import storage_folder
from raysid.trainers.teachers import Teacher


def find_branch(config: Config, resume_from: str, fresh: bool) -> Checkpoint | None:
    """The checkpoint to begin at; None where it is gone, and the run has one of its own by now.

    Raises:
        UserError: there is none, and it is needed.
    """
    try:
        return find_checkpoint(resume_from)
    except UserError:
        own = Checkpoints(storage_folder(config.storage) / str(config.run.name) / "checkpoints")
        if fresh or own.newest() is None:
            raise
        return None


def check_branch(folder: RunFolder, branch: Checkpoint | None, fresh: bool, resume_from: str) -> None:
    """A branch begins a new run; the same command again goes on with it."""
    if branch is not None and fresh and folder.path in storage_folder(str(branch.path)).parents:
        raise UserError(
            f"--fresh would delete {branch.path}, from which --resume-from is to begin: give another --run.name"
        )
    if not fresh and folder.checkpoints.newest_step() is not None and folder.resumed_from() != resume_from:
        raise UserError(f"{folder.path} has begun already: --resume-from is for a new --run.name")


def check_network(branch: Checkpoint, teacher: Teacher) -> None:
    weights = read_state(branch.path, "generator")["network"]
    if shapes_of(weights) != stored_shapes(teacher.path):
        raise UserError(
            f"{branch.path} is of another network than teacher {teacher.path}: give that run's teacher"
        )
