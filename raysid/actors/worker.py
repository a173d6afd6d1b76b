"""A worker of `placement: colocated`, as the driver calls it through a mailbox."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from raysid.actors.local import LocalPlacement
from raysid.actors.mailbox import Call
from raysid.actors.shared_folder import seen_from
from raysid.data import ImageSource, ray_blocks
from raysid.errors import LearnerLost, RunFailed, StorageError
from raysid.roles.build import RunInputs
from raysid.roles.messages import StepReport
from raysid.roles.profile import Profile
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import StateFile


class Worker:
    """The roles of a worker's share of a run. The driver's calls are this class's methods, `build` the first.

    Args:
        ranks: all workers.
        threads: torch's threads.
    """

    def __init__(self, ranks: Ranks, threads: int) -> None:
        self.ranks, self.threads = ranks, threads
        self._placement: LocalPlacement | None = None

    @property
    def placement(self) -> LocalPlacement:
        assert self._placement is not None
        return self._placement

    def build(self, inputs: RunInputs, source: ImageSource | None) -> None:
        """Build the roles, from the beginning or from a checkpoint."""
        read_blocks = None if source is None else ray_blocks(source)
        self._placement = LocalPlacement(inputs, source, self.threads, self.ranks, read_blocks)

    def step(self, step: int) -> StepReport:
        """Take this worker's share of a step; the figures are of the whole step."""
        return self.placement.collect(self.placement.step(step))

    def save(self, folder: str) -> Future[list[StateFile]]:
        return self.placement.save(folder)

    def export(self, folder: str, trained: dict[str, Any]) -> Future[None]:
        return self.placement.export(folder, trained)

    def report(self) -> dict[str, dict[str, float]]:
        return self.placement.report()

    def prepare(self, step: int) -> None:
        self.placement.prepare(step)

    def bad_images(self) -> dict[int, str]:
        return self.placement.bad_images()

    def profile(self) -> dict[str, dict[int, Profile]]:
        return self.placement.profile()

    def sees(self, file: str, content: str) -> str | None:
        return seen_from(file, content)

    def answer(self, call: Call) -> Any:
        """Execute a call of the driver.

        Raises:
            RunFailed: it failed; the line names the worker, the method and the step.
            PeerLost: another worker is lost.
        """
        try:
            return call.method(self, *call.arguments)
        except (LearnerLost, RunFailed, StorageError):
            raise
        except Exception as error:  # any failure of a role ends the run with one line
            at = f" of step {call.arguments[0]}" if call.method is Worker.step else ""
            name = call.method.__name__
            raise RunFailed(f"worker {self.ranks.rank} failed in `{name}`{at}: {error}") from error
