"""`distill`: check the inputs, own the run's folder, train until the end, measure the result."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysid.actors.placement import workers_for
from raysid.actors.requirements import check_resources, role_resources
from raysid.cluster.connect import connect
from raysid.config import Config
from raysid.errors import CheckpointDamaged, LearnerLost, RunFailed, StorageError, UserError, WorkersChanged
from raysid.metrics.figures import IN_A_LINE
from raysid.networks.files import AnySettings, shapes_of, stored_shapes, weights_digest
from raysid.roles.state_files import read_outline
from raysid.run.checkpoint import Checkpoint, Checkpoints, find_checkpoint
from raysid.run.folder import RunFolder, begun_config
from raysid.run.metrics import read_metrics
from raysid.run.progress import ProgressLine
from raysid.run.tracking import Tracker
from raysid.storage import storage_folder
from raysid.trainers.distill.keeper import how_to_resume, remove_unfinished
from raysid.trainers.distill.loop import StopSignals, train
from raysid.trainers.distill.recorder import Recorder
from raysid.trainers.distill.session import OnEvaluation, Session
from raysid.trainers.inputs import check_start_step, find_inputs
from raysid.trainers.noise_steps import with_noise_steps
from raysid.trainers.summary import (
    evaluated_distances,
    finished_rows,
    headline,
    print_summary,
    summary_rows,
)
from raysid.trainers.teachers import Teacher, keep_prompts, network_settings, trained_teacher, with_revision

if TYPE_CHECKING:
    from raysid.actors.split import Within
    from raysid.actors.train_workers import TrainWorkers


Check = Callable[[Config, AnySettings], list[str]]
"""Returns warnings about a run with these settings and this network, or raises UserError."""


@dataclass(frozen=True)
class DistillResult:
    """The outcome of a distillation.

    Attributes:
        path: the run's folder; `load_generator(path)` loads its product.
        checkpoint: folder of the last training state.
        best_checkpoint: folder of the training state whose generator was evaluated best, if it is kept.
        metrics: the last evaluation's figures and the best distance, if there are any, and the final table's rows.
    """

    path: str
    checkpoint: str | None
    best_checkpoint: str | None
    metrics: dict[str, Any]


def distill(
    config: Config,
    fresh: bool = False,
    resume_from: str | None = None,
    *,
    within: Within | None = None,
    on_evaluation: OnEvaluation | None = None,
    check: Check | None = None,
) -> DistillResult:
    """Distil the teacher that `config` names; the same call again resumes from the newest checkpoint.

    Trains the teacher first if it comes by recipe and the storage has none. Prints progress, and at the end a
    table and the paths. Programs call `raysid.distill`, which gives the planner's `check` of the memory.

    Args:
        fresh: start over, emptying the run's folder.
        resume_from: folder of a checkpoint, or of a run, to branch from; only for a run that has not begun, or
            began so.
        within: the placement group and the teacher service of a search that the run is a trial of.
        on_evaluation: called with each evaluation's figures, `step` and `images` among them.
        check: called before the run starts, once the cluster is connected.

    Raises:
        NotHere: the teacher or the real images are missing; says where to get them.
        UserError: something given cannot be used; nothing was started.
        StorageError: the storage cannot be used; nothing was started.
        RunFailed: the run stopped; its checkpoints are whole, and the same call resumes from the newest.
        RunStopped: SIGTERM or SIGINT asked for it; a checkpoint of that step is written.
    """
    if config.run.name is None:
        raise UserError("give run.name: this config has no recipe to take it from")
    branch = _find_branch(config, resume_from, fresh) if resume_from else None
    begun = begun_config(config, fresh, branch.path if branch else None)
    config = with_revision(config, begun.teacher.path if begun else None)
    inputs = find_inputs(config)
    config = with_noise_steps(config, network_settings(inputs.teacher), begun.method if begun else None)
    check_start_step(config, inputs.start)
    with RunFolder(config, fresh) as folder:
        if resume_from is not None:
            _check_branch(folder, branch, fresh, resume_from)
        teacher = trained_teacher(config, inputs.teacher, inputs.source)
        if inputs.prompts is not None:
            keep_prompts(teacher, inputs.prompts)
        if branch is not None:
            _check_network(branch, teacher)
        new_images = inputs.source.new_since_first if inputs.source else ""
        digest = weights_digest(teacher.path)
        folder.check_inputs(digest, new_images)
        if within is None and (fresh or (folder.checkpoints.newest_step() or 0) < config.total_steps):
            _check_machines(config, teacher.card.network, check)
        folder.begin(digest, resume_from, new_images)
        session = Session(
            config,
            folder,
            teacher,
            inputs.source,
            inputs.prompts,
            inputs.start,
            branch,
            within,
            on_evaluation,
        )
        try:
            return _run(session)
        except StorageError as error:
            if error.full:
                newest = remove_unfinished(folder)
                raise RunFailed(f"{error}; {how_to_resume(folder, newest, full=True)}") from error
            raise RunFailed(f"{error}; run the same command to resume from the newest checkpoint") from error


def _check_machines(config: Config, network: AnySettings, check: Check | None) -> None:
    """Check that the machines have what the roles ask for, and the memory. Raises UserError."""
    if config.placement != "local":
        connect()
    check_resources(role_resources(config), config.placement == "local", _warn)
    if check is not None:
        for warning in check(config, network):
            _warn(f"warning: {warning}")


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _find_branch(config: Config, resume_from: str, fresh: bool) -> Checkpoint | None:
    """Return the checkpoint to begin at; None if it was deleted and this run already has one. Raises UserError."""
    own = Checkpoints(storage_folder(config.storage) / str(config.run.name) / "checkpoints")
    begun = not fresh and own.newest(contents=False) is not None
    try:
        return find_checkpoint(resume_from, contents=not begun)
    except UserError:
        if begun:
            return None
        raise


def _check_branch(folder: RunFolder, branch: Checkpoint | None, fresh: bool, resume_from: str) -> None:
    """Check that the run is new, or was begun with the same `--resume-from`. Raises UserError."""
    if branch is not None and fresh and folder.path in storage_folder(str(branch.path)).parents:
        raise UserError(
            f"--fresh would delete {branch.path}, which --resume-from names: give another --run.name"
        )
    if not fresh and folder.checkpoints.newest_step() is not None and folder.resumed_from() != resume_from:
        raise UserError(f"{folder.path} has begun already: --resume-from is for a new --run.name")


def _check_network(branch: Checkpoint, teacher: Teacher) -> None:
    """Check that a checkpoint is of the teacher's network. Raises UserError."""
    weights = read_outline(branch.path, "generator")["network"]
    if shapes_of(weights) != stored_shapes(teacher.path):
        raise UserError(
            f"{branch.path} is of another network than teacher {teacher.path}: give that run's teacher"
        )


def _run(session: Session) -> DistillResult:
    """Train to the end of the run, measure the generator, and print the summary."""
    config, folder = session.config, session.folder
    start = session.newest_checkpoint()
    rows = finished_rows(folder.record) if start is not None and start.step >= config.total_steps else None
    if rows is not None:
        print(f"{folder.path} is finished already; --fresh starts it over")
    else:
        print(headline(config, session.teacher, session.source, session.prompts), flush=True)
        for note in session.source.notes if session.source else ():
            print(f"real images: {note}", flush=True)
        settings, step = config.model_dump(mode="json"), start.step if start else None
        with Tracker(folder.record, settings, step, str(folder.path)) as tracker:
            _train(session, start, tracker)
            rows = summary_rows(config, folder.path, session.teacher, session.start)
            tracker.table(rows)
    folder.sync()
    result = _result(folder, rows)
    print_summary(folder.path, rows, result.best_checkpoint or result.checkpoint)
    return result


def _train(session: Session, start: Checkpoint | None, tracker: Tracker) -> None:
    """Connect to Ray if need be, and train to the end of the run, showing the progress."""
    config = session.config
    size, images = config.batch_size, start.images if start else 0
    with ProgressLine("distill", config.total_steps * size, images, size) as progress:
        session.folder.report = progress.message
        if config.placement != "local":
            progress.message("connecting to Ray and starting the roles")
            connect()  # before the loop notes signals: Ray takes SIGTERM for itself
        if start is not None:
            progress.message(f"resuming from {start.path}, step {start.step:,}")
        while True:
            try:
                with workers_for(config, str(session.folder.path / ".ray-train")) as workers:
                    return _train_restoring(session, start, tracker, progress, workers)
            except CheckpointDamaged:
                start = session.newest_checkpoint(contents=True)
                tracker.cut_back(start.step if start else -1)


def _train_restoring(
    session: Session,
    start: Checkpoint | None,
    tracker: Tracker,
    progress: ProgressLine,
    workers: TrainWorkers | None,
) -> None:
    """Train; when a learner is lost, restore all of them from the newest checkpoint."""
    stop, reached = StopSignals(), start.step if start else 0
    limit, failures = session.config.failure.max_failures, 0
    while True:
        try:
            recorder = Recorder(session.config, tracker, progress, session.source)
            return train(session, start, recorder, workers, stop)
        except WorkersChanged as changed:
            why, count = f"{changed}; restoring them", ""
        except LearnerLost as lost:
            newest = session.folder.checkpoints.newest_step() or 0
            # Weeks of training may lose many learners. Those count that keep it from moving forward.
            failures = failures + 1 if newest <= reached else 1
            reached = max(reached, newest)
            if failures > limit:
                raise RunFailed(
                    f"a learner was lost more than failure.max_failures = {limit} times since the newest checkpoint "
                    f"({lost}); run the same command to resume from it"
                ) from lost
            why, count = f"lost a learner ({lost}); restoring all", f", failure {failures} of {limit}"
        start = session.newest_checkpoint()
        step = start.step if start else 0
        progress.message(f"{why} from step {step:,}{count}")
        tracker.cut_back(step)


def _result(folder: RunFolder, rows: list[dict[str, Any]]) -> DistillResult:
    newest = folder.checkpoints.newest(contents=False)
    distances = evaluated_distances(folder.record)
    best = folder.checkpoints.best(distances)
    if best is not None and distances[best.step] > min(distances.values()):
        best = None  # the best one's checkpoint was deleted
    evaluations = [entry for entry in read_metrics(folder.record) if entry["kind"] == "evaluation"]
    metrics: dict[str, Any] = {"table": rows}
    if evaluations:
        last = evaluations[-1]
        metrics |= {name: last[name] for name in (*IN_A_LINE, "step", "images") if name in last}
        metrics["best_frechet_distance"] = min(distances.values(), default=math.inf)
    return DistillResult(
        path=str(folder.path),
        checkpoint=str(newest.path) if newest else None,
        best_checkpoint=str(best.path) if best else None,
        metrics=metrics,
    )
