"""The learners as Ray actors: an actor for each rank, and the handle through which the controller calls them.

A handle turns a role's calls into actor calls whose arguments and results are object references, so the controller
never holds an image.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raysid.actors.capacity import this_node
from raysid.actors.pool import PoolCall
from raysid.actors.shared_folder import seen_from
from raysid.actors.teacher_actor import Answered
from raysid.config import Config
from raysid.data import ImageSource, ray_blocks
from raysid.errors import LearnerLost, RunFailed, StorageError
from raysid.networks.files import write_network
from raysid.roles.build import RunInputs, build_fake_score, build_generator, parts_of_rank
from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.faults import role_failure
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.messages import (
    Conditions,
    Cotangent,
    Images,
    Message,
    Noised,
    Prediction,
    Pull,
    Slice,
    StepReport,
    Token,
)
from raysid.roles.profile import Profile, Traffic, profile_of
from raysid.roles.protocols import Ref, Reports
from raysid.roles.ranks import Ranks
from raysid.roles.state_files import StateFile, write_state

WRITING, RECEIVING = "writing", "receiving"


def learner_actor(actor: type[LearnerActor], **options: Any) -> Any:
    """Make a Ray actor class of a learner: its calls run one at a time and in order, writes and receipts beside them.

    It is never restarted and no call is repeated, since a learner's state cannot be replayed.
    """
    remote: Any = ray.remote  # whose annotations lack concurrency groups
    return remote(max_restarts=0, max_task_retries=0, concurrency_groups={WRITING: 1, RECEIVING: 1})(
        actor
    ).options(**options)


def role_call(method: Any) -> Any:
    """Count the messages of an actor's method; name the learner, the method and the microbatch in its errors.

    `ray.method` goes below this decorator: Ray reads its settings from the innermost function.
    """

    @functools.wraps(method)
    def call(self: LearnerActor, *arguments: Any) -> Any:
        try:
            return self.traffic.call(method, self, *arguments)
        except LearnerLost as lost:
            raise type(lost)(f"{self.name}: {lost}") from lost
        except (RunFailed, StorageError):  # they are one line already
            raise
        except Exception as error:  # any failure of a role ends the run with one line
            at = next((f" ({value})" for value in arguments if isinstance(value, Slice)), "")
            raise role_failure(f"the {self.name} learner failed in `{method.__name__}`{at}", error) from error

    return call


class LearnerActor:
    """Base of the learners' actors. A learner writes its own state and product: weights never travel."""

    name: str
    role: Any

    def __init__(self, config: Config, threads: int, rank: int) -> None:
        torch.set_num_threads(threads)
        self.writes: deque[Callable[[], StateFile | None]] = deque()
        self.traffic = Traffic()
        size = config.learner_workers[self.name]
        own_gpus = getattr(config.resources, self.name).num_gpus >= 1  # ranks share a GPU otherwise
        self.ranks = Ranks(rank, size, nccl=own_gpus) if size > 1 else None

    def open(self) -> tuple[str, int]:
        """Open the store through which the learner's ranks meet, on rank 0."""
        assert self.ranks is not None
        return self.ranks.open(ray.util.get_node_ip_address())

    def join(self, address: tuple[str, int]) -> None:
        """Meet the learner's other ranks. Raises PeerLost."""
        assert self.ranks is not None
        self.ranks.join(address, ray.util.get_node_ip_address())

    @role_call
    def step(self, step: int, *tokens: Token) -> StepReport:
        return self.role.step(step, *tokens)

    @role_call
    def report(self) -> dict[str, float]:
        return self.role.report()

    def profile(self) -> Profile:
        return profile_of(self.role, self.traffic)

    @role_call
    def save(self, folder: str) -> None:
        """Copy the state as it is between two steps; the `write` that takes this call's result writes the copy."""
        self.writes.append(functools.partial(write_state, folder, self.name, self.role.state()))

    @ray.method(concurrency_group=WRITING)
    def write(self, copied: None) -> StateFile | None:
        """Write what was copied first, in a thread beside the other calls. Raises as `Write.result`."""
        return self.writes.popleft()()

    @ray.method(concurrency_group=RECEIVING)
    def receive(self, message: Message) -> None:
        """Take a message to this node: its sender's node may be lost before a call that needs it begins."""

    def node(self) -> str:
        """Return the ID of this process's node."""
        return this_node()

    def sees(self, file: str, content: str) -> str | None:
        return seen_from(file, content)


class FakeScoreActor(LearnerActor):
    """The fake-score learner; it streams the real images itself, through Ray Data."""

    name = "fake_score"
    role: FakeScoreLearner

    def __init__(self, inputs: RunInputs, threads: int, source: ImageSource | None, rank: int = 0) -> None:
        super().__init__(inputs.config, threads, rank)
        read_blocks = None if source is None else ray_blocks(source)
        parts = parts_of_rank(inputs.config, rank)
        self.role = build_fake_score(inputs, source, read_blocks, self.ranks, parts)

    @role_call
    def score(self, at: Slice, noised: Noised, cond: Conditions) -> Prediction:
        return self.role.score(at, noised, cond)

    @role_call
    def pullback(self, at: Slice, noised: Noised, cotangent: Cotangent) -> Pull:
        return self.role.pullback(at, noised, cotangent)

    @role_call
    def accumulate(self, at: Slice, images: Images, cond: Conditions) -> Token:
        return self.role.accumulate(at, images, cond)

    def finish(self, at: Slice, images: Images, cond: Conditions, *tokens: Token) -> StepReport:
        """Accumulate the step's last microbatch and update psi: one call costs a millisecond less than two."""
        return self.step(at.step, *tokens, self.accumulate(at, images, cond))

    @role_call
    def prepare(self, *slices: Slice) -> None:
        self.role.prepare(*slices)

    @role_call
    def bad_images(self) -> dict[int, str]:
        return self.role.bad_images()


class GeneratorActor(LearnerActor):
    """The generator learner."""

    name = "generator"
    role: GeneratorLearner

    def __init__(self, inputs: RunInputs, threads: int, rank: int = 0) -> None:
        super().__init__(inputs.config, threads, rank)
        self.role = build_generator(inputs, self.ranks)

    @role_call
    def images(self, at: Slice, cond: Conditions) -> Images:
        return self.role.images(at, cond)

    @role_call
    @ray.method(num_returns=2)
    def generate(self, at: Slice, cond: Conditions) -> tuple[Noised, Images]:
        return self.role.generate(at, cond)

    @role_call
    @ray.method(num_returns=2)
    def cotangents(self, at: Slice, teacher: Prediction, fake: Prediction) -> tuple[Cotangent, Cotangent]:
        return self.role.cotangents(at, teacher, fake)

    @role_call
    def accumulate(self, at: Slice, teacher: Pull, fake: Pull) -> Token:
        return self.role.accumulate(at, teacher, fake)

    def finish(self, at: Slice, teacher: Pull, fake: Pull, *tokens: Token) -> StepReport:
        """Accumulate the step's last microbatch and update theta."""
        return self.step(at.step, *tokens, self.accumulate(at, teacher, fake))

    @role_call
    def discard(self, at: Slice) -> None:
        self.role.discard(at)

    @role_call
    def export(self, folder: str, trained: dict[str, Any]) -> None:
        """Copy the averaged generator, as `save` does the state."""
        self.writes.append(functools.partial(write_network, folder, *self.role.product(trained)))


@dataclass(frozen=True)
class LastMicrobatch:
    """The last `accumulate` of a step, which waits in the driver until `step` sends both as one `finish`."""

    at: Slice
    inputs: tuple[Any, ...]


class RemoteLearner:
    """A learner's actors, one for each rank: calls return references.

    Microbatch i of a step belongs to rank i mod n: all calls for it go there.

    Args:
        ranks: the actors, by rank.
        batch_size: images per step; the microbatch that ends there and the update are one call. None makes two calls.
    """

    def __init__(self, ranks: Sequence[Any], batch_size: int | None) -> None:
        self.ranks = ranks
        self.batch_size = batch_size if len(ranks) == 1 else None
        self.nodes: list[str] = []  # of the ranks, once they have started

    def rank_of(self, at: Slice) -> Any:
        """Return the actor that a microbatch belongs to."""
        return self.ranks[at.index % len(self.ranks)]

    def step(self, step: int, *tokens: Any) -> Reports:
        """Update every rank. Each takes all tokens, so that none steps where another's microbatch is lost."""
        if tokens and isinstance(last := tokens[-1], LastMicrobatch):
            return [self.ranks[0].finish.remote(last.at, *last.inputs, *tokens[:-1])]
        return [rank.step.remote(step, *tokens) for rank in self.ranks]

    def save(self, folder: str) -> Any:
        """Begin to write the state, on rank 0, since all ranks hold the same."""
        return self.ranks[0].write.remote(self.ranks[0].save.remote(folder))

    def join(self) -> list[Any]:
        """Have the ranks meet, if there are several; the references are ready once they have."""
        if len(self.ranks) == 1:
            return []
        address = self.ranks[0].open.remote()
        return [rank.join.remote(address) for rank in self.ranks]

    def report(self) -> list[Any]:
        return [rank.report.remote() for rank in self.ranks]

    def _accumulate(self, at: Slice, *inputs: Any) -> Any:
        if at.start + at.count == self.batch_size:
            return LastMicrobatch(at, inputs)
        return self.rank_of(at).accumulate.remote(at, *inputs)


class RemoteFakeScore(RemoteLearner):
    """The fake-score learner's actors. Implements `raysid.roles.protocols.FakeScoreRole`."""

    def score(self, at: Slice, noised: Ref[Noised], cond: Ref[Conditions]) -> Ref[Prediction]:
        return self.rank_of(at).score.remote(at, noised, cond)

    def pullback(self, at: Slice, noised: Ref[Noised], cotangent: Ref[Cotangent]) -> Ref[Pull]:
        return self.rank_of(at).pullback.remote(at, noised, cotangent)

    def accumulate(self, at: Slice, images: Ref[Images], cond: Ref[Conditions]) -> Ref[Token]:
        return self._accumulate(at, images, cond)

    def prepare(self, slices: list[Slice]) -> list[Any]:
        """Have every rank read the real images of its own microbatches."""
        count = len(self.ranks)
        return [rank.prepare.remote(*slices[number::count]) for number, rank in enumerate(self.ranks)]

    def bad_images(self) -> list[Any]:
        return [rank.bad_images.remote() for rank in self.ranks]


class RemoteGenerator(RemoteLearner):
    """The generator learner's actors. Implements `raysid.roles.protocols.GeneratorRole`."""

    def images(self, at: Slice, cond: Ref[Conditions]) -> Ref[Images]:
        return self.rank_of(at).images.remote(at, cond)

    def generate(self, at: Slice, cond: Ref[Conditions]) -> tuple[Ref[Noised], Ref[Images]]:
        noised, images = self.rank_of(at).generate.remote(at, cond)
        return noised, images

    def cotangents(
        self, at: Slice, teacher: Ref[Prediction], fake: Ref[Prediction]
    ) -> tuple[Ref[Cotangent], Ref[Cotangent]]:
        answered = _answered(teacher, fake)
        for_teacher, for_fake = self.rank_of(at).cotangents.remote(at, answered, fake)
        return for_teacher, for_fake

    def accumulate(self, at: Slice, teacher: Ref[Pull], fake: Ref[Pull]) -> Ref[Token]:
        return self._accumulate(at, _answered(teacher, fake), fake)

    def deliver(self, message: Any, end: Answered) -> Any:
        """Have a scorer's answer fetched by the rank that it is for.

        Returns:
            A reference that is ready once it is there; None if it is on the rank's node already.
        """
        rank = end.at.index % len(self.ranks)
        return None if self.nodes[rank] == end.node else self.ranks[rank].receive.remote(message)

    def discard(self, at: Slice) -> object:
        return self.rank_of(at).discard.remote(at)

    def export(self, folder: str, trained: dict[str, Any]) -> Any:
        """Begin to write the averaged generator, on rank 0."""
        return self.ranks[0].write.remote(self.ranks[0].export.remote(folder, trained))


def _answered(answer: Any, fake: Any) -> Any:
    """Return the reference of a scorer's answer; of a `PoolCall` once a scorer has answered."""
    return answer.wait(fake) if isinstance(answer, PoolCall) else answer
