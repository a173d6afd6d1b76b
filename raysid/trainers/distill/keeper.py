"""Keep a distillation's checkpoints and generators, and have the generators evaluated, beside the training."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from raysid.actors.placement import Placement
from raysid.config import Config
from raysid.errors import Diverged, RaysidError, RunFailed, StorageError
from raysid.generator import FOLDERS
from raysid.networks.files import CONFIG, WEIGHTS
from raysid.roles.state_files import StateFile, Write
from raysid.run.folder import RunFolder
from raysid.run.image_grid import is_picture
from raysid.storage import copy_file
from raysid.storage.failures import MAKE_ROOM
from raysid.trainers.distill.recorder import Recorder
from raysid.trainers.distill.session import Session
from raysid.trainers.evaluation import PendingEvaluation
from raysid.trainers.summary import evaluated_distances, has_evaluation


class Keeper:
    """Writes checkpoints and the generator, and has the generator evaluated, while the training continues.

    A checkpoint precedes every evaluation, so that the best generator's training state exists. The generator's
    folder does not change until its evaluation has read it.

    Args:
        placement: the learners, which write their own states.
        newest: step of the newest whole checkpoint of this run, None before the first.

    Attributes:
        newest: the same, as of now.
    """

    def __init__(
        self, session: Session, placement: Placement, recorder: Recorder, newest: int | None
    ) -> None:
        self.session, self.placement, self.recorder = session, placement, recorder
        self.config, self.folder = session.config, session.folder
        self.newest = newest
        self._best = min(evaluated_distances(session.folder.record).values(), default=math.inf)
        self._write: Future[int | None] | None = None  # its result: the step to evaluate, if any
        self._evaluation: PendingEvaluation | None = None
        self._full = False  # the storage
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def is_due(self, step: int) -> bool:
        """Return True if a checkpoint or an evaluation is due after `step` steps."""
        return self._evaluates(step) or every(self.config, self.config.checkpoint.every_images, step)

    def keep(self, step: int) -> None:
        """Begin a checkpoint, an export and, if it is due, an evaluation, once those before are done."""
        self.finish()
        trained: dict[str, Any] = {
            "step": step,
            "images": step * self.config.batch_size,
            "run": self.config.run.name,
            "data": self.config.data.source_name,
        }
        if self.session.prompts is not None:
            trained |= {
                "prompts": self.config.prompts.source_name,
                "guidance": self.config.method.guidance.model_dump(),
            }
        measured = self.session.measured_by is not None
        evaluate = self._evaluates(step) and not has_evaluation(self.folder.record, step, measured)
        self._begin_write(step, trained, evaluate)

    def checkpoint(self, step: int) -> None:
        """Write a checkpoint, once those that have begun are written, without an evaluation. Raises RunFailed."""
        self._finish_write()
        self._begin_write(step)
        self._finish_write()

    def poll(self) -> None:
        """Record what is done by now, without waiting. Raises as `finish`."""
        self._finish_write(wait=False)
        self._finish_evaluation(wait=False)

    def finish(self) -> None:
        """Wait for what has begun.

        Raises:
            Diverged: a learner's weights are NaN or infinite; nothing was written.
            RunFailed: a checkpoint or the generator could not be written; names the newest whole checkpoint.
            LearnerLost: a learner died before it had written.
            EvaluationFailed: the evaluation failed; the learners are well.
        """
        self._finish_write()
        self._finish_evaluation()

    def remove_old(self) -> None:
        """Remove the checkpoints beyond `checkpoint.keep`, sparing the best one if the config says so."""
        self.folder.check()
        keep_best = self.config.checkpoint.keep_best
        self.folder.checkpoints.remove_old(evaluated_distances(self.folder.record) if keep_best else {})

    def close(self) -> None:
        """Wait for the thread that writes; call this when the learners write no more.

        If the storage was full, unfinished files are removed.
        """
        self._thread.shutdown()
        if self._full:
            remove_unfinished(self.folder)

    def _evaluates(self, step: int) -> bool:
        shape = self.session.teacher.card.network.sample_shape
        drawn = is_picture(shape) or self.session.prompts is not None
        if self.session.measured_by is None and not drawn:
            return False  # neither figures nor a grid
        return step == 0 or every(self.config, self.config.evaluation.every_images, step)

    def _begin_write(self, step: int, trained: dict[str, Any] | None = None, evaluate: bool = False) -> None:
        """Have the learners write their states and, with the contents of its card, the generator."""
        assert self._write is None
        self.folder.check()
        state = generator = None
        if self.newest is None or self.newest < step:
            state = self.placement.save(str(self.folder.checkpoints.path(step)))
        if trained is not None:
            generator = self.placement.export(str(self.folder.path / FOLDERS["last"]), trained)
        self._write = self._thread.submit(self._wait_for_writes, step, state, generator, evaluate)

    def _wait_for_writes(
        self,
        step: int,
        state: Write[list[StateFile]] | None,
        generator: Write[None] | None,
        evaluate: bool,
    ) -> int | None:
        """Wait for the learners, in a thread; return the step if the generator is to be evaluated."""
        what = "checkpoint"
        try:
            if state is not None:
                files = state.result()
                self.folder.sync()  # the metrics up to this step, before the manifest
                self.folder.checkpoints.finish(step, step * self.config.batch_size, files)
                self.newest = step
                self.remove_old()
            what = "generator"
            if generator is not None:
                generator.result()
        except Diverged:
            raise
        except (StorageError, RunFailed) as error:
            self._full = isinstance(error, StorageError) and error.full
            raise RunFailed(
                f"the {what} of step {step:,} could not be written: {error}; "
                + how_to_resume(self.folder, self.newest, self._full)
            ) from error
        return step if evaluate else None

    def _finish_write(self, wait: bool = True) -> None:
        if self._write is None or not (wait or self._write.done()):
            return
        write, self._write = self._write, None
        if (step := write.result()) is not None:
            self._evaluation = PendingEvaluation(
                self.config, self.folder.path, step, self.session.source, self.session.grid_prompts
            )

    def _finish_evaluation(self, wait: bool = True) -> None:
        if self._evaluation is None or not (wait or self._evaluation.done()):
            return
        evaluation, self._evaluation = self._evaluation, None
        step, (figures, grids) = evaluation.step, evaluation.result()
        self.folder.check()
        if figures is not None and figures["frechet_distance"] < self._best:
            # Before its figures are recorded: a recorded step is not evaluated again after a kill.
            self._best = figures["frechet_distance"]
            for name in (WEIGHTS, CONFIG):
                copy_file(*(self.folder.path / FOLDERS[which] / name for which in ("last", "best")))
        self.recorder.grids(step, grids)
        if figures is None:
            return
        self.recorder.evaluation(step, figures)
        if self.session.on_evaluation is not None:
            self.folder.sync()  # the callback may end this process
            self.session.on_evaluation(figures | {"step": step, "images": step * self.config.batch_size})


def every(config: Config, every_images: int, step: int) -> bool:
    """Return True if something done every so many images is due after `step` steps; it always is at the end."""
    size = config.batch_size
    return step == config.total_steps or step * size // every_images > (step - 1) * size // every_images


def how_to_resume(folder: RunFolder, newest: int | None, full: bool) -> str:
    """Name the checkpoint from which a failed run resumes, and the command.

    Args:
        newest: step of its newest whole checkpoint, if it has one.
        full: the run failed because its storage is full.
    """
    command = MAKE_ROOM if full else "run the same command"
    if newest is None:
        return f"there is no whole checkpoint yet: {command} to start again"
    return f"the last whole checkpoint is {folder.checkpoints.path(newest)}: {command} to resume from it"


def remove_unfinished(folder: RunFolder) -> int | None:
    """Remove files and checkpoints that are not whole; return the step of the newest checkpoint that is."""
    newest = None
    with suppress(RaysidError):  # the run ends with another error, and on resume this is done again
        newest = folder.checkpoints.newest_step()
        folder.check()  # another owner's checkpoints are not whole while it writes them
        folder.checkpoints.remove_unfinished(after_step=-1 if newest is None else newest)
        folder.remove_partial()
    return newest
