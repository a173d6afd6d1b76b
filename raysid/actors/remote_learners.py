"""The learners as Ray actors: an actor for each rank, and the handle by which a controller calls all of them.

A handle turns a role's calls into actor calls whose arguments and results are object references, so that the
controller never holds an image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray
import torch

from raysid.actors.pool import PoolCall
from raysid.actors.shared_folder import seen_from
from raysid.config import Config
from raysid.data import ImageSource, ray_blocks
from raysid.errors import LearnerLost, RunFailed, StorageError
from raysid.networks.files import write_network
from raysid.roles.build import RunInputs, build_fake_score, build_generator, parts_of_rank
from raysid.roles.fake_score import IMAGES_UNTIL
from raysid.roles.messages import Slice
from raysid.roles.profile import Profile, Traffic, profile_of
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import StateFile, state_bytes, write_state

WRITING = "writing"


def learner_actor(actor: type[LearnerActor], **options: Any) -> Any:
    """Make a Ray actor class of a learner: its calls run one at a time and in order, writes in a thread beside them.

    It is never restarted and no call is repeated: a learner's state cannot be replayed.
    """
    remote: Any = ray.remote  # whose annotations lack concurrency groups
    return remote(max_restarts=0, max_task_retries=0, concurrency_groups={WRITING: 1})(actor).options(
        **options
    )


class LearnerActor:
    """Base of the learners' actors. A learner writes its own state and product: weights never travel."""

    name: str
    role: Any

    def __init__(self, config: Config, threads: int, rank: int) -> None:
        torch.set_num_threads(threads)
        self.writes: deque[Callable[[], StateFile | None]] = deque()
        self.traffic = Traffic()
        size = config.learner_workers[self.name]
        own_gpus = getattr(config.resources, self.name).num_gpus >= 1  # a part of one is shared
        self.ranks = Ranks(rank, size, nccl=own_gpus) if size > 1 else None

    def open(self) -> tuple[str, int]:
        """Where the learner's ranks meet, asked of rank 0."""
        assert self.ranks is not None
        return self.ranks.open(ray.util.get_node_ip_address())

    def join(self, place: tuple[str, int]) -> None:
        """Meet the learner's other ranks, all of which do the same. Raises PeerLost."""
        assert self.ranks is not None
        self.ranks.join(place, ray.util.get_node_ip_address())

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return self.traffic.call(getattr(self.role, method), arguments)
        except LearnerLost as lost:
            raise type(lost)(f"{self.name}: {lost}") from lost
        except (RunFailed, StorageError):
            raise
        except Exception as error:
            at = next((f" ({value})" for value in arguments if isinstance(value, Slice)), "")
            raise RunFailed(f"the {self.name} learner failed in `{method}`{at}: {error}") from error

    def finish(self, at: Slice, inputs: int, *values: Any) -> dict[str, float]:
        """`accumulate` of a step's last microbatch, and `step`: one call, where each costs both ends a millisecond.

        Args:
            inputs: how many of the values are for `accumulate`; the others are the tokens of the step so far.
        """
        token = self.call("accumulate", at, *values[:inputs])
        return self.call("step", at.step, *values[inputs:], token)

    def profile(self) -> Profile:
        return profile_of(self.role, self.traffic)

    def save(self, folder: str) -> None:
        """Serialize the state as it is between two steps; the `write` that takes this call's result writes it."""
        self.writes.append(partial(write_state, folder, self.name, state_bytes(self.role.state())))

    def export(self, folder: str, trained: dict[str, Any]) -> None:
        """Serialize the averaged generator in the same way."""
        self.writes.append(partial(write_network, folder, self.role.product(trained)))

    @ray.method(concurrency_group=WRITING)
    def write(self, serialized: None) -> StateFile | None:
        """Write what was serialized first, in a thread beside the other calls."""
        return self.writes.popleft()()

    def sees(self, file: str, content: str) -> str | None:
        return seen_from(file, content)


class FakeScoreActor(LearnerActor):
    """The fake-score learner; it streams the real images itself, through Ray Data."""

    name = "fake_score"

    def __init__(self, inputs: RunInputs, threads: int, source: ImageSource | None, rank: int = 0) -> None:
        super().__init__(inputs.config, threads, rank)
        read_blocks = None if source is None else ray_blocks(source)
        parts = parts_of_rank(inputs.config, rank)
        self.role = build_fake_score(inputs, source, read_blocks, self.ranks, parts)

    def call(self, method: str, *arguments: Any) -> Any:
        answer = super().call(method, *arguments)
        if method == "step":
            answer[IMAGES_UNTIL] = self.role.images_until(arguments[0] + 1)
        return answer


class GeneratorActor(LearnerActor):
    """The generator learner."""

    name = "generator"

    def __init__(self, inputs: RunInputs, threads: int, rank: int = 0) -> None:
        super().__init__(inputs.config, threads, rank)
        self.role = build_generator(inputs, self.ranks)


class RemoteLearner:
    """A learner's actors, one for each rank: calls return references.

    Microbatch i of a step belongs to rank i mod n: all calls for it go there.

    Args:
        ranks: the actors, by rank.
        batch_size: images a step, where its last microbatch, which ends there, may make the update at once; None
            has the update wait for `step`.
    """

    def __init__(self, ranks: Sequence[Any], batch_size: int | None) -> None:
        self.ranks = ranks
        self.batch_size = batch_size
        self._step = -1  # the one under way, where one rank has all of its microbatches
        self._tokens: list[Any] = []  # of its microbatches before the last
        self._finished: Any = None  # what its last one will have come to

    @property
    def first(self) -> Any:
        """Rank 0's actor."""
        return self.ranks[0]

    def call(self, method: str, at: Slice, *arguments: Any, num_returns: int = 1) -> Any:
        rank = self.ranks[at.index % len(self.ranks)]
        return rank.call.options(num_returns=num_returns).remote(method, at, *arguments)

    def accumulate(self, at: Slice, *inputs: Any) -> Any:
        """Add a microbatch; its token. One rank alone may make the step's update with the last one, at once."""
        if len(self.ranks) > 1 or self.batch_size is None:
            return self.call("accumulate", at, *inputs)
        if at.step != self._step:
            self._step, self._tokens = at.step, []
        if at.start + at.count == self.batch_size:
            self._finished = self.first.finish.remote(at, len(inputs), *inputs, *self._tokens)
            return self._finished
        self._tokens.append(self.call("accumulate", at, *inputs))
        return self._tokens[-1]

    def step(self, step: int, *tokens: Any) -> list[Any]:
        """The update, on every rank; each takes all tokens, so that none steps where another one's is lost."""
        if tokens and tokens[-1] is self._finished:
            return [self._finished]
        return [rank.call.remote("step", step, *tokens) for rank in self.ranks]

    def save(self, folder: str) -> Any:
        """Begin to write the state; rank 0 writes for all, since all hold the same."""
        return self.first.write.remote(self.first.save.remote(folder))

    def join(self) -> list[Any]:
        """Have the ranks meet, if there are several: what is ready once they have."""
        if len(self.ranks) == 1:
            return []
        place = self.first.open.remote()
        return [rank.join.remote(place) for rank in self.ranks]

    def report(self) -> list[Any]:
        return [rank.call.remote("report") for rank in self.ranks]


class RemoteFakeScore(RemoteLearner):
    """The fake-score learner's actors."""

    def score(self, at: Slice, noised: Any) -> Any:
        return self.call("score", at, noised)

    def pullback(self, at: Slice, noised: Any, cotangent: Any) -> Any:
        return self.call("pullback", at, noised, cotangent)

    def prepare(self, slices: list[Slice]) -> list[Any]:
        """Every rank reads what is its own."""
        of_rank = [slices[rank :: len(self.ranks)] for rank in range(len(self.ranks))]
        return [rank.call.remote("prepare", *own) for rank, own in zip(self.ranks, of_rank, strict=True)]


class RemoteGenerator(RemoteLearner):
    """The generator learner's actors."""

    def images(self, at: Slice) -> Any:
        return self.call("images", at)

    def generate(self, at: Slice) -> tuple[Any, Any]:
        return self.call("generate", at, num_returns=2)

    def cotangents(self, at: Slice, teacher: Any, fake: Any) -> tuple[Any, Any]:
        return self.call("cotangents", at, _answered(teacher, fake), fake, num_returns=2)

    def accumulate(self, at: Slice, teacher: Any, fake: Any) -> Any:
        return super().accumulate(at, _answered(teacher, fake), fake)

    def discard(self, at: Slice) -> Any:
        return self.call("discard", at)

    def export(self, folder: str, trained: dict[str, Any]) -> Any:
        """Begin to write the averaged generator."""
        return self.first.write.remote(self.first.export.remote(folder, trained))


def _answered(answer: Any, beside: Any) -> Any:
    """The reference of a scorer's answer; where another scorer could still be asked, once it is there."""
    return answer.settle(beside) if isinstance(answer, PoolCall) else answer
