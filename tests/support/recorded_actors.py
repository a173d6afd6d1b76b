"""The roles' actors on the draws of the authors' `training_*` runs, in a module that Ray workers import."""

from __future__ import annotations

from functools import partial

from raysid.actors.remote_learners import FakeScoreActor, GeneratorActor
from raysid.actors.teacher_actor import TeacherActor
from raysid.config import Config
from raysid.roles.build import RunInputs
from tests.support.reference_text import recorded_text_draws, use_null_text
from tests.support.reference_training import RecordedDraws, RecordedStream


class RecordedFakeScoreActor(FakeScoreActor):
    """The fake-score learner's actor, on the draws and the real images of the run called `name`."""

    def __init__(self, inputs: RunInputs, name: str, rank: int = 0) -> None:
        super().__init__(inputs, threads=1, source=None, rank=rank)
        self.role.draws = partial(RecordedDraws, name)
        if inputs.config.method.adversarial is not None:
            self.role.real_images = RecordedStream(name, inputs.config.batch_size)
            self.role.pixel_max = RecordedStream.pixel_max


class RecordedGeneratorActor(GeneratorActor):
    """The generator learner's actor, on the draws of the run called `name`."""

    def __init__(self, inputs: RunInputs, name: str, rank: int = 0) -> None:
        super().__init__(inputs, threads=1, rank=rank)
        self.role.draws = partial(RecordedDraws, name)


class RecordedTextTeacherActor(TeacherActor):
    """A scorer with the embeddings of the empty prompt of the run called `name`."""

    def __init__(self, teacher: str, config: Config, name: str) -> None:
        super().__init__(teacher, config, runs_kept=1, threads=1)
        use_null_text(self.role.network, name)


class RecordedTextFakeScoreActor(FakeScoreActor):
    """The fake-score learner's actor, on the draws of the `training_lsg_*` run called `name`."""

    def __init__(self, inputs: RunInputs, name: str, rank: int = 0) -> None:
        super().__init__(inputs, threads=1, source=None, rank=rank)
        self.role.draws = recorded_text_draws(name, inputs.config)
        use_null_text(self.role.network, name)


class RecordedTextGeneratorActor(GeneratorActor):
    """The generator learner's actor, on the draws of the `training_lsg_*` run called `name`."""

    def __init__(self, inputs: RunInputs, name: str, rank: int = 0) -> None:
        super().__init__(inputs, threads=1, rank=rank)
        self.role.draws = recorded_text_draws(name, inputs.config)
        use_null_text(self.role.network, name)
