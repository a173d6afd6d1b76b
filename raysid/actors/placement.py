"""The contract of a placement, and the choice between the three: the roles in one process, or as actors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from raysid.actors.local import LocalPlacement
from raysid.config import Config
from raysid.data import ImageSource
from raysid.roles.build import RunInputs
from raysid.roles.messages import StepReport
from raysid.roles.profile import Profile
from raysid.roles.protocols import Ref, Report
from raysid.roles.state_files import StateFile, Write

if TYPE_CHECKING:
    from raysid.actors.notices import Notice
    from raysid.actors.split import Within
    from raysid.actors.train_workers import TrainWorkers


class Placement(Protocol):
    """The roles of a run, as the driver sees them.

    All methods may raise `LearnerLost` when a learner's process has died: the run then resumes from a checkpoint, with
    a new placement. `RunFailed` ends the run with one line. Steps may be submitted ahead of their collection; a
    checkpoint is of the state after all steps submitted so far.
    """

    @property
    def images_until(self) -> float:
        """Position in the stream of real images up to which they are known to be loaded; infinite if none are used.

        A step that needs later ones may wait for them, or fail.
        """

    def step(self, step: int) -> list[Ref[StepReport]]:
        """Take step `step` of the schedule, or submit it. Only `collect` reads the reports.

        Raises:
            RunFailed: no teacher scorer is available; the step may have been submitted in part.
        """

    def is_done(self, reports: list[Ref[StepReport]]) -> bool:
        """Return True if a step is done or has failed: `collect` does not wait then."""

    def collect(self, reports: list[Ref[StepReport]]) -> StepReport:
        """Wait for a step and merge its reports. Raises RunFailed."""

    def save(self, folder: str) -> Write[list[StateFile]]:
        """Begin to write both learners' states, as they are now, to a checkpoint's folder."""

    def export(self, folder: str, trained: dict[str, Any]) -> Write[None]:
        """Begin to write the averaged generator, as it is now, to `folder`; `trained` is for its card."""

    def report(self) -> Report:
        """Return figures by role: seconds since the role started (`busy_seconds` and so on), and current counts."""

    def begin_report(self) -> Callable[[], Report]:
        """Ask for the figures of `report` after the steps submitted so far; the returned function waits for them."""

    def prepare(self, step: int) -> None:
        """Read the real images of a step before any of it is computed.

        Raises:
            RunFailed: they cannot be read; the learners are unchanged, and can be saved.
        """

    def bad_images(self) -> dict[int, str]:
        """Return the real images skipped so far: name and fault of each, by its index in the source."""

    def profile(self) -> dict[str, dict[int, Profile]]:
        """Return the resources that each role's processes have used since they started, by role and number."""

    def notice(self) -> Notice | None:
        """Return a notice that processes of this placement are about to be replaced; each once, None if there is none.

        The caller writes a checkpoint. If the notice restarts the roles it then calls `leave`, and ends this placement.
        """

    def leave(self, why: str) -> None:
        """Let the processes of a notice be replaced: their state is written."""

    def check_shared(self, folder: str) -> None:
        """Check that every role's process sees the run's folder as the driver does. Raises UserError."""

    def close(self) -> None:
        """End the roles and release their resources."""


def start_placement(
    inputs: RunInputs,
    source: ImageSource | None,
    notify: Callable[[str], None] = print,
    within: Within | None = None,
    workers: TrainWorkers | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Placement:
    """Start the roles in the placement that the config names; arguments and errors as each placement's."""
    threads = torch_threads(inputs.config)
    match inputs.config.placement:
        case "local":
            return LocalPlacement(inputs, source, threads)
        case "colocated":
            from raysid.actors.colocated import ColocatedPlacement

            assert workers is not None
            return ColocatedPlacement(inputs, source, workers, notify)
        case "split":
            from raysid.actors.split import SplitPlacement

            return SplitPlacement(inputs, source, threads, notify, within, stopping)


def must_prepare(placement: Placement, config: Config, step: int, finish_steps: Callable[[], None]) -> bool:
    """True if a step's real images are not known to be loaded, so that the step needs `prepare` first.

    Args:
        finish_steps: collects the steps under way, whose reports may raise `images_until`.
    """
    needed = (step + 1) * config.batch_size
    if placement.images_until < needed:
        finish_steps()
    return placement.images_until < needed


@contextmanager
def workers_for(config: Config, folder: str) -> Iterator[TrainWorkers | None]:
    """Start Ray Train's workers, for a colocated run. They outlive a placement whose worker has died.

    Args:
        folder: for Ray Train's own files, which all nodes must see; removed at the end.
    """
    if config.placement != "colocated":
        yield None
        return
    from raysid.actors.train_workers import TrainWorkers

    with closing(TrainWorkers(config, folder, torch_threads(config))) as workers:
        yield workers


def torch_threads(config: Config) -> int:
    """Return the number of torch's threads in each process of a run."""
    if config.torch_threads is not None:
        return config.torch_threads
    if config.placement == "colocated":
        return max(1, int(config.resources.worker.num_cpus))
    return all_cores() if config.placement == "local" else 1


def all_cores() -> int:
    """Return the number of cores that this process may use; in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
