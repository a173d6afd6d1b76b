"""Distillation: from a teacher to a one-step generator, resumable, with what a user watches meanwhile."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from raysid.actors.placement import Placement, lacks_images, start_placement, workers_for
from raysid.cluster.connect import connect
from raysid.config import Config
from raysid.data import ImageSource
from raysid.data.faults import check_faults
from raysid.errors import LearnerLost, RunFailed, RunStopped, StorageError, UserError, WorkersChanged
from raysid.generator import FOLDERS
from raysid.networks.files import CONFIG, WEIGHTS, weights_digest
from raysid.roles.fake_score import BAD_IMAGES
from raysid.roles.step import STEPS_IN_FLIGHT
from raysid.run.checkpoint import Checkpoint
from raysid.run.folder import RunFolder
from raysid.run.image_grid import is_picture
from raysid.run.metrics import METRICS, read_metrics
from raysid.run.progress import ProgressLine
from raysid.run.tracking import Tracker
from raysid.storage import copy_file
from raysid.trainers.branching import check_branch, check_network, find_branch
from raysid.trainers.evaluation import GRID_COLUMNS, EvaluationFailed, PendingEvaluation, measures
from raysid.trainers.inputs import find_inputs, run_inputs
from raysid.trainers.meter import Meter
from raysid.trainers.saving import RunSaver, how_to_resume, remove_unfinished
from raysid.trainers.stopping import StopSignals
from raysid.trainers.summary import (
    best_distance,
    evaluated_distances,
    finished_rows,
    has_evaluation,
    print_summary,
    recomputes_so_far,
    summary_rows,
)
from raysid.trainers.teachers import Found, Teacher, network_settings, trained_teacher

if TYPE_CHECKING:
    from raysid.actors.split import Within

OnEvaluation = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class DistillResult:
    """What a distillation leaves.

    Attributes:
        path: the run's folder; `load_generator(path)` loads its product.
        checkpoint: folder of the last training state.
        best_checkpoint: folder of the training state whose generator was evaluated best, where it is kept.
        metrics: the last evaluation's figures and the best distance, where there are any, and the final table's rows.
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
) -> DistillResult:
    """Distil the teacher that `config` names; the same call again goes on where the last one ended.

    Trains the teacher first when it comes by recipe and the storage has none. Prints progress, and at the end a
    table and the paths.

    Args:
        fresh: start over, emptying the run's folder.
        resume_from: a checkpoint's folder, or a run's, to branch from; only for a run that has not begun, or
            began so.
        within: where the run is one of a search: its learners' places, and the teacher service.
        on_evaluation: called with each evaluation's figures, `step` and `images` among them.

    Raises:
        NotHere: the teacher or the real images are to be got first; says from where.
        UserError: something given cannot be used; nothing was started.
        StorageError: the storage cannot be used; nothing was started.
        RunFailed: the run stopped; its checkpoints are whole, and the same call goes on from the newest.
        RunStopped: SIGTERM or SIGINT asked for it; a checkpoint of that step is written.
    """
    if config.run.name is None:
        raise UserError("run.name is missing: a config that is no recipe's must name its run")
    branch = find_branch(config, resume_from, fresh) if resume_from else None
    inputs = find_inputs(config)
    config = _with_tmax(config, inputs.teacher)
    with RunFolder(config, fresh) as folder:
        if resume_from is not None:
            check_branch(folder, branch, fresh, resume_from)
        teacher = trained_teacher(config, inputs.teacher, inputs.source)
        if branch is not None:
            check_network(branch, teacher)
        folder.begin(weights_digest(teacher.path), resume_from)
        run = _Distillation(
            config, folder, teacher, inputs.source, inputs.start, branch, within, on_evaluation
        )
        try:
            return run.run()
        except StorageError as error:
            if error.full:
                newest = remove_unfinished(folder)
                raise RunFailed(f"{error}; {how_to_resume(folder, newest, full=True)}") from error
            raise RunFailed(f"{error}; run the same command to resume from the newest checkpoint") from error


def _with_tmax(config: Config, found: Found) -> Config:
    """The config with the tmax of the teacher's noise process where none is given: a run records what it did."""
    tmax = config.method.tmax or network_settings(found).default_tmax
    return config.model_copy(update={"method": config.method.model_copy(update={"tmax": tmax})})


def headline(config: Config, teacher: Teacher, source: ImageSource | None) -> str:
    """What is about to be done, in one line."""
    method, data = "SiD", "no real images"
    if config.method.adversarial:
        assert source is not None
        method, data = "SiDA", f"{source.num_images:,} real images of {source.name}"
        if config.generator.path:
            method = f"SiD²A from {config.generator.path}"
    scaling = config.teacher.scaling
    scorers = f"{scaling.min_replicas}"
    if scaling.max_replicas > scaling.min_replicas:
        scorers += f" to {scaling.max_replicas}"
    workers = config.learner_workers
    learners = ", ".join(
        f"a {name} learner" + f" of {workers[role]} workers" * (workers[role] > 1)
        for role, name in (("fake_score", "fake-score"), ("generator", "generator"))
    )
    colocated = config.colocated
    most, fewest = colocated.num_workers, colocated.min_workers
    number = f"{fewest} to {most} workers" if fewest else f"{most} worker{'s' * (most > 1)}"
    where = {
        "local": "one process",
        "colocated": f"{number} of Ray Train, all networks in each",
        "split": f"{scorers} teacher scorer{'s' * (scaling.max_replicas > 1)}, {learners} as Ray actors",
    }[config.placement]
    return (
        f"{method}, {config.schedule}: {config.total_images:,} generated images and {data}; {where}; "
        f"teacher {teacher.path.name}"
    )


class _Distillation:
    """One session of a run: from its newest checkpoint to its end."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        teacher: Teacher,
        source: ImageSource | None,
        start: str | None,
        branch: Checkpoint | None,
        within: Within | None,
        on_evaluation: OnEvaluation | None,
    ) -> None:
        self.config = config
        self.within = within
        self.on_evaluation = on_evaluation
        self.folder = folder
        self.teacher = teacher
        self.source = source
        self.start = start  # folder of the generator that theta begins as
        self.branch = branch
        self.in_flight: deque[tuple[int, list[Any]]] = deque()
        self.evaluation: PendingEvaluation | None = None
        self.evaluate_next: int | None = None  # its generator is to be evaluated once it is written
        self.meter = Meter()
        self.best = math.inf
        self.note = ""
        self.stop = StopSignals()
        self.bad_images = 0  # that were told

    def run(self) -> DistillResult:
        """Train to the end, measure what came out, show it."""
        start = self.folder.checkpoints.newest() or self.branch
        if (
            start is not None
            and start.step >= self.config.total_steps
            and (rows := finished_rows(self.folder.record)) is not None
        ):
            print(f"{self.folder.path} is finished already; --fresh starts it over")
        else:
            print(headline(self.config, self.teacher, self.source), flush=True)
            step = start.step if start else None
            settings, name = self.config.model_dump(mode="json"), str(self.folder.path)
            with Tracker(self.folder.record, settings, step, name) as self.tracker:
                self._train_restoring(start)
                rows = summary_rows(self.config, self.folder.path, self.teacher, self.start)
                self.tracker.table(rows)
        self.folder.sync()
        result = self._result(rows)
        print_summary(self.folder.path, rows, result.best_checkpoint or result.checkpoint)
        return result

    def _train_restoring(self, start: Checkpoint | None) -> None:
        """Train; when a learner is lost, go back to the newest checkpoint with all of them."""
        size = self.config.batch_size
        total = self.config.total_steps * size
        limit, failures = self.config.failure.max_failures, 0
        if self.config.placement != "local":
            connect()  # first: Ray takes SIGTERM for itself
        with (
            ProgressLine("distill", total, start.images if start else 0, size) as self.progress,
            workers_for(self.config, str(self.folder.path / ".ray-train")) as self.workers,
        ):
            self.folder.report = self.progress.message
            if start is not None:
                self.progress.message(f"resuming from {start.path}, step {start.step:,}")
            while True:
                try:
                    return self._train(start)
                except WorkersChanged as changed:
                    start = self._go_back(f"{changed}; restoring them")
                except LearnerLost as lost:
                    failures += 1
                    if failures > limit:
                        raise RunFailed(
                            f"a learner was lost more than failure.max_failures = {limit} times ({lost}); "
                            "run the same command to resume from the newest checkpoint"
                        ) from lost
                    start = self._go_back(
                        f"lost a learner ({lost}); restoring all", f", failure {failures} of {limit}"
                    )

    def _go_back(self, why: str, how_often: str = "") -> Checkpoint | None:
        """Take the run back to its newest checkpoint; None is its beginning."""
        start = self.folder.checkpoints.newest() or self.branch
        step = start.step if start else 0
        self.progress.message(f"{why} from step {step:,}{how_often}")
        self.tracker.cut_back(step)
        return start

    def _train(self, start: Checkpoint | None) -> None:
        """From a checkpoint, or the beginning, to the end of the run."""
        step = start.step if start else 0
        self.folder.checkpoints.remove_unfinished(after_step=step)
        newest = self.folder.checkpoints.newest_step()  # none of its own where it branches from another run
        self.in_flight.clear()
        self.bad_images = 0
        self.evaluation = self.evaluate_next = None
        self.best = best_distance(self.folder.record)
        self.meter = Meter(recomputes=recomputes_so_far(self.folder.record))
        placement = self._place(start)
        # Not before: while places are waited for a signal has nothing to save, and acts at once.
        self.stop.enter()
        self.saver = RunSaver(self.folder, placement, self.config.batch_size, newest)
        try:
            self._keep(placement, step)
            self.meter.begin(step * self.config.batch_size, placement.report())
            while step < self.config.total_steps:
                self._stop_if_asked(placement, step)
                self._prepare(placement, step)
                try:
                    reports = placement.step(step)
                except RunFailed:  # no scorer is there
                    if self.config.schedule == "overlapped":  # else psi has taken this step already
                        self._checkpoint_last(placement, step)
                        self._stop_if_asked(placement, step)
                    raise
                self.in_flight.append((step, reports))
                step += 1
                if self._due(self.config.tracking.log_every_images, step):
                    self._finish_steps(placement)
                    self._log(placement, step)
                else:
                    self._finish_steps(placement, but=STEPS_IN_FLIGHT)
                self._keep(placement, step)
                self._finish_saving(wait=False)
                self._finish_evaluation(wait=False)
            self._finish_saving()
            self._finish_evaluation()
            self.saver.remove_old()
        except EvaluationFailed as error:
            self._stop_for(error, placement, step)
        finally:
            self.stop.leave()
            placement.close()
            self.saver.close()

    def _place(self, start: Checkpoint | None) -> Placement:
        source = self.source if self.config.method.adversarial is not None else None
        inputs = run_inputs(
            self.config,
            str(self.teacher.path),
            source,
            checkpoint=str(start.path) if start else None,
            start=self.start,
        )
        placement = start_placement(
            inputs, source, self.progress.message, self.within, self.workers, self.stop.asked
        )
        try:
            placement.check_shared(str(self.folder.path))
        except BaseException:
            placement.close()
            raise
        return placement

    def _prepare(self, placement: Placement, step: int) -> None:
        """Wait for a step's real images.

        Raises:
            RunFailed: they cannot be read; a checkpoint is written, since the learners are at the same step.
        """
        if lacks_images(placement, self.config, step, lambda: self._finish_steps(placement)):
            try:
                placement.prepare(step)
            except RunFailed as error:
                self._stop_for(error, placement, step)

    def _stop_for(self, error: RunFailed, placement: Placement, step: int) -> NoReturn:
        """Leave for what the learners are not to blame for, with a checkpoint of where the run is."""
        # Too many bad images may be why; most of them were met just now.
        with suppress(LearnerLost, RunFailed):
            self._name_bad_images(placement, step)
        failed = self._checkpoint_last(placement, step)
        kept = f"none written ({failed})" if failed else "written"
        raise RunFailed(f"{error}; checkpoint of step {step:,} {kept}") from error

    def _stop_if_asked(self, placement: Placement, step: int) -> None:
        """Leave at a signal, with a checkpoint of where the run is."""
        if self.stop.received is None:
            return
        name = self.stop.received.name
        self.progress.message(f"{name}: writing a checkpoint of step {step:,}; once more to stop at once")
        failed = self._checkpoint_last(placement, step)
        newest = self.saver.newest
        kept = "before its first checkpoint" if newest is None else f"checkpoint of step {newest:,} written"
        if failed:
            kept += f", none of step {step:,} ({failed})"
        raise RunStopped(
            f"stopped by {name}, {kept}; run the same command to resume", signal=self.stop.received.value
        )

    def _checkpoint_last(self, placement: Placement, step: int) -> str | None:
        """A checkpoint after `step` steps, if the learners are still there to write it; why not, otherwise.

        What is due before it is done first, if it can be: a run that goes on from this step does not come back to it.
        """
        try:
            self._finish_steps(placement)
            try:
                self._finish_saving()
                self._finish_evaluation()
            except EvaluationFailed as error:
                self.progress.message(str(error))
            self.saver.begin(step)
            self.saver.done()
        except (LearnerLost, RunFailed) as error:
            return str(error)
        return None

    def _finish_steps(self, placement: Placement, but: int = 0) -> None:
        """Wait for the steps in flight, except the last `but`, and take in what the learners said."""
        while len(self.in_flight) > but:
            step, reports = self.in_flight.popleft()
            self.meter.add(placement.collect(reports))
            self.progress.update((step + 1) * self.config.batch_size, self.meter.losses, self.note)

    def _log(self, placement: Placement, step: int) -> None:
        """A line of metrics: means since the last one, speed, how busy each role was."""
        images = step * self.config.batch_size
        self.tracker.train(step, images, self.meter.means())
        report = placement.report()
        self.tracker.perf(step, images, self.meter.performance(images, report))
        if (met := int(report["fake_score"].get(BAD_IMAGES, 0))) > self.bad_images:
            self.bad_images = met  # by all ranks: several may have met the same one
            bad = self._name_bad_images(placement, step)
            count = len(bad)
            self.progress.message(
                f"{count:,} real image{'s' * (count > 1)} skipped so far ({next(iter(bad.values()))}); {METRICS} names "
                "all"
            )
            assert self.source is not None
            try:  # each worker has met some: together they may be too many
                check_faults(bad, self.config.data.max_bad_fraction, self.source.num_images)
            except RunFailed as error:
                self._stop_for(error, placement, step)

    def _name_bad_images(self, placement: Placement, step: int) -> dict[int, str]:
        """Record the real images that were skipped so far, and return them."""
        bad = placement.bad_images()
        if bad:
            names = [bad[place] for place in sorted(bad)]
            self.tracker.bad_images(step, step * self.config.batch_size, names)
        return bad

    def _keep(self, placement: Placement, step: int) -> None:
        """Checkpoint, export and evaluate where they are due after `step` steps.

        A checkpoint goes before every evaluation, so that the best generator is never one whose training
        state is gone. The generator's folder stays as it is until its evaluation has read it.
        """
        source, shape = self.config.data.source_name, self.teacher.card.network.sample_shape
        evaluate = step == 0 or self._due(self.config.evaluation.every_images, step)
        evaluate = evaluate and (measures(source) or is_picture(shape))  # or there is nothing to show
        if not (evaluate or self._due(self.config.checkpoint.every_images, step)):
            return
        self._finish_steps(placement)
        self._finish_saving()
        self._finish_evaluation()
        images = step * self.config.batch_size
        trained = {
            "step": step,
            "images": images,
            "run": self.config.run.name,
            "data": source,
        }
        self.saver.begin(step, trained)
        if evaluate and not has_evaluation(self.folder.record, step, source):
            self.evaluate_next = step

    def _finish_saving(self, wait: bool = True) -> None:
        """Go on with what is being written, if it is done (or wait for it); then begin the evaluation of it."""
        if self.saver.done(wait) and self.evaluate_next is not None:
            step, self.evaluate_next = self.evaluate_next, None
            self.evaluation = PendingEvaluation(self.config, self.folder.path, step, self.source)

    def _finish_evaluation(self, wait: bool = True) -> None:
        """Record the evaluation that is under way, if it is done (or wait for it); keep the best generator."""
        if self.evaluation is None or not (wait or self.evaluation.done()):
            return
        evaluation, self.evaluation = self.evaluation, None
        step, (figures, grids) = evaluation.step, evaluation.result()
        self.folder.check()
        images = step * self.config.batch_size
        if figures is None:
            self.tracker.sample_grid(step, images, grids.generated, grids.real, GRID_COLUMNS)
            return
        if figures["frechet_distance"] < self.best:
            # Before its figures are recorded: what is recorded is not evaluated again after a kill.
            self.best = figures["frechet_distance"]
            for name in (WEIGHTS, CONFIG):
                copy_file(*(self.folder.path / FOLDERS[which] / name for which in ("last", "best")))
        self.tracker.sample_grid(step, images, grids.generated, grids.real, GRID_COLUMNS)
        self.tracker.evaluation(step, images, figures)
        if self.on_evaluation is not None:
            self.folder.sync()  # whoever is told may end this process
            self.on_evaluation(figures | {"step": step, "images": images})
        self.note = f"last evaluation: distance {figures['frechet_distance']:.3f}"
        if figures["label_accuracy"] is not None:
            self.note += f", accuracy {figures['label_accuracy']:.1%}"

    def _due(self, every_images: int, step: int) -> bool:
        """Whether something done every so many images is due after `step` steps; always at the end."""
        size = self.config.batch_size
        return (
            step == self.config.total_steps or step * size // every_images > (step - 1) * size // every_images
        )

    def _result(self, rows: list[dict[str, Any]]) -> DistillResult:
        newest = self.folder.checkpoints.newest()
        distances = evaluated_distances(self.folder.record)
        best = self.folder.checkpoints.best(distances)
        if best is not None and distances[best.step] > min(distances.values()):
            best = None  # of those that are left
        measured = [entry for entry in read_metrics(self.folder.record) if entry["kind"] == "evaluation"]
        metrics: dict[str, Any] = {"table": rows}
        if measured:
            metrics |= {
                key: measured[-1][key] for key in ("frechet_distance", "label_accuracy", "step", "images")
            } | {"best_frechet_distance": min(distances.values(), default=math.inf)}
        return DistillResult(
            path=str(self.folder.path),
            checkpoint=str(newest.path) if newest else None,
            best_checkpoint=str(best.path) if best else None,
            metrics=metrics,
        )
