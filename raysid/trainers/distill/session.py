"""The inputs of a distillation, which its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raysid.config import Config
from raysid.data import ImageSource
from raysid.data.prompts import PromptSource, PromptStream
from raysid.data.prompts.source import first_prompts
from raysid.run.checkpoint import Checkpoint
from raysid.run.folder import RunFolder
from raysid.trainers.measuring import measured_by
from raysid.trainers.teachers import Teacher

if TYPE_CHECKING:
    from raysid.actors.split import Within

GRID_PROMPTS = 16
OnEvaluation = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Session:
    """One process's part of a run: from its newest checkpoint to its end, or until it stops.

    Attributes:
        folder: the run's folder, owned by this process.
        source: the real images, if the config names any.
        prompts: the prompts, for a teacher that takes text.
        start: folder of the generator that theta begins as; None is the teacher.
        branch: the checkpoint of another run to begin at, if the run itself has none.
        within: the placement group and the teacher service of a search, if the run is one of its trials.
        on_evaluation: called with each evaluation's figures, `step` and `images` among them.
    """

    config: Config
    folder: RunFolder
    teacher: Teacher
    source: ImageSource | None
    prompts: PromptSource | None = None
    start: str | None = None
    branch: Checkpoint | None = None
    within: Within | None = None
    on_evaluation: OnEvaluation | None = None

    @cached_property
    def grid_prompts(self) -> tuple[str, ...]:
        """The prompts of the sample grids: the first of the source, or of the run where the first rows are left out.

        Raises:
            RunFailed: no prompt can be used.
        """
        if self.prompts is None:
            return ()
        if found := first_prompts(self.prompts, GRID_PROMPTS):
            return found
        config = self.config
        with PromptStream(self.prompts, config.prompts, config.seed, config.batch_size) as stream:
            return tuple(dict.fromkeys(stream.read(0, GRID_PROMPTS)))

    @property
    def measured_by(self) -> str | None:
        """The name of the real images with which generated ones are compared; None if they cannot be compared."""
        names = self.config.data.source_name, self.config.prompts.source_name
        return measured_by(self.teacher.card.network, *names)

    def newest_checkpoint(self, contents: bool = False) -> Checkpoint | None:
        """Return the checkpoint to resume from, and report damaged ones; None starts from the beginning.

        Args:
            contents: read the files to find the damaged ones. The learners check what they load, so without it only
                the sizes are compared here.
        """
        return self.folder.checkpoints.newest(self.folder.report, contents) or self.branch
