"""Distil a teacher into a one-step generator, resumable, with metrics and evaluations on the way.

    run.py         check the inputs and `--resume-from`, own the run's folder, train, measure the result
    session.py     the inputs that the other parts share
    loop.py        the steps, through one placement, from a checkpoint to the end or a signal to stop
    keeper.py      checkpoints, generators and their evaluation
    recorder.py    metrics and their averages, progress, grids

A new figure in a role's report needs no edit here. Files written at intervals belong in `keeper.py`.
"""

from raysid.trainers.distill.run import DistillResult, distill

__all__ = ["DistillResult", "distill"]
