"""`--resume-from`: begin a run at the checkpoint of another."""

from __future__ import annotations

from raysid.config import Config
from raysid.errors import UserError
from raysid.networks.files import shapes_of, stored_shapes
from raysid.roles.state_files import read_state
from raysid.run.checkpoint import Checkpoint, Checkpoints, find_checkpoint
from raysid.run.folder import RunFolder
from raysid.storage import storage_folder
from raysid.trainers.teachers import Teacher


def find_branch(config: Config, resume_from: str, fresh: bool) -> Checkpoint | None:
    """Return the checkpoint to begin at; None if it was deleted and this run already has a checkpoint.

    Raises:
        UserError: there is none, and the run needs it.
    """
    try:
        return find_checkpoint(resume_from)
    except UserError:
        own = Checkpoints(storage_folder(config.storage) / str(config.run.name) / "checkpoints")
        if fresh or own.newest() is None:
            raise
        return None


def check_branch(folder: RunFolder, branch: Checkpoint | None, fresh: bool, resume_from: str) -> None:
    """Check that the run is new, or was begun with the same `--resume-from`. Raises UserError."""
    if branch is not None and fresh and folder.path in storage_folder(str(branch.path)).parents:
        raise UserError(
            f"--fresh would delete {branch.path}, which --resume-from names: give another --run.name"
        )
    if not fresh and folder.checkpoints.newest_step() is not None and folder.resumed_from() != resume_from:
        raise UserError(f"{folder.path} has begun already: --resume-from is for a new --run.name")


def check_network(branch: Checkpoint, teacher: Teacher) -> None:
    """Check that a checkpoint is of the teacher's network. Raises UserError."""
    weights = read_state(branch.path, "generator")["network"]
    if shapes_of(weights) != stored_shapes(teacher.path):
        raise UserError(
            f"{branch.path} is of another network than teacher {teacher.path}: give that run's teacher"
        )
