"""The training loop of a distillation: from a checkpoint to the end of the run, through one placement of the roles."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from raysid.actors.placement import Placement, must_prepare, start_placement
from raysid.config import Config
from raysid.errors import (
    CheckpointDamaged,
    Diverged,
    LearnerLost,
    RunFailed,
    RunStopped,
    UserError,
    WorkersChanged,
)
from raysid.roles.messages import StepReport
from raysid.roles.protocols import Ref, Report
from raysid.roles.step import STEPS_IN_FLIGHT
from raysid.run.checkpoint import Checkpoint, damaged_files
from raysid.trainers.distill.keeper import Keeper, every, how_to_resume
from raysid.trainers.distill.recorder import Recorder
from raysid.trainers.distill.session import Session
from raysid.trainers.evaluation import EvaluationFailed
from raysid.trainers.inputs import run_inputs

if TYPE_CHECKING:
    from raysid.actors.train_workers import TrainWorkers

# Of Ctrl-C, and of Ray, Slurm and Kubernetes when they end a job.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Notes the first signal between `enter` and `leave`, so that the run can stop at its next step.

    A second signal acts as it would without this class. Outside the main thread, the only one that receives signals,
    nothing is noted.

    Attributes:
        received: the signal; None so far.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def enter(self) -> None:
        """Note signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def leave(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def asked(self) -> bool:
        """Return True once a signal has been received."""
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.leave()


def train(
    session: Session,
    start: Checkpoint | None,
    recorder: Recorder,
    workers: TrainWorkers | None,
    stop: StopSignals,
) -> None:
    """Start the roles, and train from a checkpoint, or the beginning, to the end of the run.

    Args:
        workers: Ray Train's workers, for `placement: colocated`.
        stop: notes signals while the loop runs.

    Raises:
        CheckpointDamaged: the files of `start` are not those of its manifest; nothing was trained.
        LearnerLost: a learner's process died; the run can resume from its newest checkpoint.
        Diverged: samples or weights are NaN or infinite; the line names the newest whole checkpoint.
        RunFailed: the run cannot continue; its checkpoints are whole.
        RunStopped: a signal asked for it; a checkpoint of that step is written.
    """
    step = start.step if start else 0
    session.folder.checkpoints.remove_unfinished(after_step=step)
    newest = session.folder.checkpoints.newest_step()  # None in a run that branches from another's checkpoint
    config = session.config
    source = session.source if config.method.adversarial is not None else None
    inputs = run_inputs(config, str(session.teacher.path), source, start, session.start)
    with _checking(start):
        placement = start_placement(
            inputs, source, recorder.progress.message, session.within, workers, stop.asked
        )
    keeper = Keeper(session, placement, recorder, newest)
    try:
        with _checking(start):  # the first answer of each learner's process
            placement.check_shared(str(session.folder.path))
        # Not before: while the roles wait for resources there is nothing to save, and a signal acts at once.
        stop.enter()
        TrainingLoop(config, placement, keeper, recorder, stop, step).run()
    finally:
        stop.leave()
        placement.close()
        keeper.close()


@contextmanager
def _checking(start: Checkpoint | None) -> Iterator[None]:
    """Raise CheckpointDamaged if the roles cannot start because the checkpoint's files are damaged.

    The learners compare what they load with the manifest. Only after a failure does the driver read the files.
    """
    try:
        yield
    except (RunFailed, UserError) as error:
        if start is not None and (damaged := damaged_files(start)):
            raise CheckpointDamaged(f"{start.path / damaged[0]} is damaged") from error
        raise


@dataclass(frozen=True)
class Submitted:
    """A step in flight.

    Attributes:
        step: steps taken after it.
        reports: the learners' reports.
        line: waits for the roles' figures; None if no line of metrics is due after this step.
    """

    step: int
    reports: list[Ref[StepReport]]
    line: Callable[[], Report] | None


@dataclass
class TrainingLoop:
    """Submits the steps, a few ahead of the roles, and stops with a checkpoint where it can.

    Attributes:
        step: steps submitted so far.
        in_flight: the steps whose reports are not collected yet.
    """

    config: Config
    placement: Placement
    keeper: Keeper
    recorder: Recorder
    stop: StopSignals
    step: int
    _owed: bool = False  # a checkpoint or an evaluation
    _report: Report | None = None  # of the last line, until its count of bad images has been looked at
    in_flight: deque[Submitted] = field(default_factory=deque)

    def run(self) -> None:
        """Train to the end of the run. Raises as `train`."""
        try:
            self._keep()
            self.recorder.begin(self.step, self.placement.report())
            self.recorder.health.begin(self.step)
            while self.step < self.config.total_steps:
                self._stop_if_asked()
                self._heed_notice()
                self._wait_for_images()
                self._submit()
                self._collect(but=STEPS_IN_FLIGHT)
                self._check_images()
                self._keep()
                self.keeper.poll()
            self.keeper.finish()
            self.keeper.remove_old()
        except EvaluationFailed as error:
            self._stop_for(error)
        except Diverged as error:  # no checkpoint of this state: it would take the place of a good one
            with suppress(LearnerLost, RunFailed):
                self.keeper.finish()
            resume = how_to_resume(self.keeper.folder, self.keeper.newest, full=False)
            raise Diverged(f"{error}; {resume}") from error

    def _submit(self) -> None:
        try:
            reports = self.placement.step(self.step)
        except RunFailed:  # there is no teacher scorer
            if self.config.schedule == "overlapped":  # in the other schedule psi has taken this step already
                self._last_checkpoint()
                self._stop_if_asked()
            raise
        self.step += 1
        logged = every(self.config, self.config.tracking.log_every_images, self.step)
        line = self.placement.begin_report() if logged else None
        self.in_flight.append(Submitted(self.step, reports, line))

    def _collect(self, but: int = 0) -> None:
        """Record the figures of the steps that are done. Wait for the steps in flight, except the last `but`."""
        while self.in_flight and (
            len(self.in_flight) > but or self.placement.is_done(self.in_flight[0].reports)
        ):
            done = self.in_flight.popleft()
            self.recorder.add(done.step, self.placement.collect(done.reports))
            if done.line is not None:
                self._report = done.line()
                self.recorder.log(done.step, self._report)

    def _check_images(self) -> None:
        """Record the bad images that the last line counts. Raises RunFailed if there are too many."""
        if self._report is None:
            return
        reports, self._report = self._report, None
        if not self.recorder.found_bad_images(reports):
            return
        faults = self.placement.bad_images()
        self.recorder.bad_images(self.step, faults)
        try:
            self.recorder.warn_of_bad_images(faults)
        except RunFailed as error:
            self._stop_for(error)

    def _keep(self) -> None:
        self._owed = self._owed or self.keeper.is_due(self.step)
        if not self._owed:
            return
        self._collect()
        self._check_images()
        # A state that makes no good sample would take the place of a good one: the next good step is kept instead.
        if self.recorder.health.bad_steps == 0 or self.step == self.config.total_steps:
            self._owed = False
            self.keeper.keep(self.step)

    def _wait_for_images(self) -> None:
        """Wait for the next step's real images; if they cannot be read, stop while the learners are at one step."""
        if must_prepare(self.placement, self.config, self.step, self._collect):
            try:
                self.placement.prepare(self.step)
            except RunFailed as error:
                self._stop_for(error)

    def _heed_notice(self) -> None:
        """Write a checkpoint if processes are about to be replaced. Raises WorkersChanged if learners are."""
        notice = self.placement.notice()
        if notice is None:
            return
        self.recorder.progress.message(f"{notice.text}: writing a checkpoint of step {self.step:,}")
        self._collect()
        self._check_images()
        if self.recorder.health.bad_steps == 0:  # as in `_keep`
            self.keeper.checkpoint(self.step)
        if notice.restarts:
            self.keeper.finish()  # an evaluation is not begun again by the next placement
            self.placement.leave(notice.text)
            raise WorkersChanged(notice.text)

    def _stop_if_asked(self) -> None:
        """Stop at a signal, with a checkpoint of this step. Raises RunStopped."""
        if self.stop.received is None:
            return
        name, step = self.stop.received.name, self.step
        self.recorder.progress.message(
            f"{name}: writing a checkpoint of step {step:,}; send it once more to stop at once"
        )
        failed = self._last_checkpoint()
        newest = self.keeper.newest
        kept = "before its first checkpoint" if newest is None else f"checkpoint of step {newest:,} written"
        if failed:
            kept += f", none of step {step:,} ({failed})"
        raise RunStopped(
            f"stopped by {name}, {kept}; run the same command to resume", signal=self.stop.received.value
        )

    def _stop_for(self, error: RunFailed) -> NoReturn:
        """Stop for an error that did not harm the learners, with a checkpoint of this step. Raises RunFailed."""
        # Bad images may be the reason, most of them found since the last report.
        with suppress(LearnerLost, RunFailed):
            self.recorder.bad_images(self.step, self.placement.bad_images())
        failed = self._last_checkpoint()
        kept = f"none written ({failed})" if failed else "written"
        raise RunFailed(f"{error}; checkpoint of step {self.step:,} {kept}") from error

    def _last_checkpoint(self) -> str | None:
        """Write a checkpoint of this step if the learners still can; return the reason if they cannot.

        An evaluation that is due before is finished first: a run that resumes here does not repeat it.
        """
        try:
            self._collect()
            try:
                self.keeper.finish()
            except EvaluationFailed as error:
                self.recorder.progress.message(str(error))
            self.keeper.checkpoint(self.step)
        except (LearnerLost, RunFailed) as error:
            return str(error)
        return None
