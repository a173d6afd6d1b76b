"""Scorers of different speeds, in a module that Ray workers import."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from raysid.actors.teacher_actor import TeacherActor

SECONDS, SLOW_SECONDS = 0.15, 0.45  # of each call, beside its own work
SLOW_SCORER = "slow-scorer"  # in the teacher's folder once a scorer has taken it upon itself to be slow


class UnevenActor(TeacherActor):
    """A scorer whose calls take 0.15 s longer; the first to start takes three times as much longer."""

    def __init__(self, teacher: str, *others: Any) -> None:
        super().__init__(teacher, *others)
        try:
            os.close(os.open(Path(teacher) / SLOW_SCORER, os.O_CREAT | os.O_EXCL))
            self.pause = SLOW_SECONDS
        except FileExistsError:
            self.pause = SECONDS

    def score(self, *arguments: Any) -> Any:
        time.sleep(self.pause)
        return super().score(*arguments)

    def pullback(self, *arguments: Any) -> Any:
        time.sleep(self.pause)
        return super().pullback(*arguments)

    def served(self) -> tuple[bool, int]:
        """Return True for the slow one, and the number of microbatches that it has scored."""
        return self.pause == SLOW_SECONDS, self.role.microbatches
