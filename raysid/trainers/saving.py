"""Keeping what a run has come to, beside its training: checkpoints made whole, the generator written."""

from __future__ import annotations

import concurrent.futures
from contextlib import suppress
from typing import Any

from raysid.actors.placement import Placement
from raysid.errors import RaysidError, RunFailed, StorageError
from raysid.generator import FOLDERS
from raysid.roles.state_files import StateFile, Write
from raysid.run.folder import RunFolder
from raysid.storage.failures import MAKE_ROOM
from raysid.trainers.summary import evaluated_distances


class RunSaver:
    """Has the learners write, and makes checkpoints of it, while the training goes on.

    Args:
        folder: the run's.
        placement: the learners.
        batch_size: images a step.
        newest: step of the newest whole checkpoint, as far as there is one.
    """

    def __init__(self, folder: RunFolder, placement: Placement, batch_size: int, newest: int | None) -> None:
        self.folder, self.placement, self.batch_size = folder, placement, batch_size
        self.newest = newest
        self._writing: concurrent.futures.Future[None] | None = None
        self._full = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def begin(self, step: int, trained: dict[str, Any] | None = None) -> None:
        """Have the training state after `step` steps written, where it is not yet.

        Args:
            trained: what the generator's card says of it; it is written, too.
        """
        assert self._writing is None
        self.folder.check()
        state = generator = None
        if self.newest is None or self.newest < step:
            state = self.placement.save(str(self.folder.checkpoints.path(step)))
        if trained is not None:
            generator = self.placement.export(str(self.folder.path / FOLDERS["last"]), trained)
        self._writing = self._thread.submit(self._finish, step, state, generator)

    def done(self, wait: bool = True) -> bool:
        """True once all that was begun is written; False is returned only without `wait`.

        Raises:
            RunFailed: it cannot be written; names the newest checkpoint that is whole.
            LearnerLost: a learner died before it had written.
        """
        if self._writing is not None and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()
        return self._writing is None

    def remove_old(self) -> None:
        """Remove the checkpoints that are not kept, as far as the run has been evaluated by now."""
        self.folder.check()
        keep_best = self.folder.config.checkpoint.keep_best
        self.folder.checkpoints.remove_old(evaluated_distances(self.folder.record) if keep_best else {})

    def close(self) -> None:
        """Wait for what is being written: the run may go back to its checkpoint.

        Where there was no room, what is not whole is removed: the learners must write no more.
        """
        self._thread.shutdown()
        if self._full:
            remove_unfinished(self.folder)

    def _finish(self, step: int, state: Write[list[StateFile]] | None, generator: Write[None] | None) -> None:
        """Wait for what the learners write; the checkpoint becomes whole before the generator counts."""
        what = "generator"
        try:
            if state is not None:
                what = "checkpoint"
                self._make_whole(step, state.result())
                what = "generator"
            if generator is not None:
                generator.result()
        except (StorageError, RunFailed) as error:
            self._full = isinstance(error, StorageError) and error.full
            raise RunFailed(
                f"the {what} of step {step:,} could not be written: {error}; "
                + how_to_resume(self.folder, self.newest, self._full)
            ) from error

    def _make_whole(self, step: int, files: list[StateFile]) -> None:
        """Write the manifest; what is recorded up to here lies where the checkpoint does before it counts."""
        self.folder.sync()
        self.folder.checkpoints.finish(step, step * self.batch_size, files)
        self.newest = step
        self.remove_old()


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
    """Give back what files and checkpoints take that are not whole; the step of the newest checkpoint that is."""
    newest = None
    with suppress(RaysidError):  # the run ends with another error, and on resume this is done again
        newest = folder.checkpoints.newest_step()
        folder.check()  # another owner's checkpoints are not whole while it writes them
        folder.checkpoints.remove_unfinished(after_step=-1 if newest is None else newest)
        folder.remove_partial()
    return newest
