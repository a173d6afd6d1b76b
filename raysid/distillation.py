"""`raysid.distill`: a distillation, after a check that its machines have the memory for it.

It stands above the planner, which knows what a run needs, and the planner above the trainers, which run it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysid.config import Config
from raysid.plan.fits import check_run
from raysid.trainers import distill as trainer
from raysid.trainers.distill import DistillResult

if TYPE_CHECKING:
    from raysid.actors.split import Within
    from raysid.trainers.distill.session import OnEvaluation

__all__ = ["DistillResult", "distill"]


def distill(
    config: Config,
    fresh: bool = False,
    resume_from: str | None = None,
    *,
    within: Within | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> DistillResult:
    """Distil the teacher that `config` names; the same call again resumes from the newest checkpoint.

    Trains the teacher first if it comes by recipe and the storage has none. Prints progress, and at the end a
    table and the paths; before, a warning if the plan needs more memory than the devices have.

    Args:
        fresh: start over, emptying the run's folder.
        resume_from: folder of a checkpoint, or of a run, to branch from; only for a run that has not begun, or
            began so.
        within: the placement group and the teacher service of a search that the run is a trial of; its memory is
            not checked.
        on_evaluation: called with each evaluation's figures, `step` and `images` among them.

    Raises:
        NotHere: the teacher or the real images are missing; says where to get them.
        UserError: something given cannot be used, or weights, gradients and optimizers alone do not fit the devices;
            nothing was started.
        StorageError: the storage cannot be used; nothing was started.
        RunFailed: the run stopped; its checkpoints are whole, and the same call resumes from the newest.
        RunStopped: SIGTERM or SIGINT asked for it; a checkpoint of that step is written.
    """
    return trainer.distill(
        config, fresh, resume_from, within=within, on_evaluation=on_evaluation, check=check_run
    )
