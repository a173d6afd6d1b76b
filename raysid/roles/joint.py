"""A learner's rank among others, each driven by its own controller."""

from __future__ import annotations

import torch

from raysid.config import Config
from raysid.roles.fake_score import FakeScoreLearner
from raysid.roles.generator_learner import GeneratorLearner
from raysid.roles.messages import StepReport, Token
from raysid.roles.ranks import Ranks
from raysid.roles.step import all_microbatches


class _Joint:
    """The role itself, except that its `step` takes the tokens of all ranks, which the ranks exchange.

    Args:
        role: the learner's rank in this process.
        ranks: all workers.
    """

    def __init__(self, role: FakeScoreLearner | GeneratorLearner, ranks: Ranks, config: Config) -> None:
        self._role, self._ranks, self._config = role, ranks, config

    def step(self, step: int, *tokens: Token) -> StepReport:
        """Update the network with all ranks' gradients. Raises PeerLost."""
        return self._role.step(step, *self._exchange(step, tokens))

    def _exchange(self, step: int, tokens: tuple[Token, ...]) -> list[Token]:
        """Return the tokens of the step's microbatches that any rank has accumulated."""
        cut = all_microbatches(self._config, step, self._ranks.size)
        names = sorted({name for token in tokens for name in token.sums})  # the same on all ranks
        table = torch.zeros(len(cut), 1 + len(names), dtype=torch.float64, device=self._role.device)
        for token in tokens:
            sums = [token.sums[name] for name in names]
            table[cut.index(token.at)] = torch.tensor([1.0, *sums], dtype=torch.float64)
        self._ranks.all_reduce([table])
        return [
            Token(at, dict(zip(names, sums, strict=True)))
            for at, (present, *sums) in zip(cut, table.tolist(), strict=True)
            if present
        ]


class JointFakeScore(_Joint):
    """A rank of the fake-score learner. Implements `raysid.roles.protocols.FakeScoreRole`."""

    def __init__(self, role: FakeScoreLearner, ranks: Ranks, config: Config) -> None:
        super().__init__(role, ranks, config)
        self.score, self.pullback, self.accumulate = role.score, role.pullback, role.accumulate


class JointGenerator(_Joint):
    """A rank of the generator learner. Implements `raysid.roles.protocols.GeneratorRole`."""

    def __init__(self, role: GeneratorLearner, ranks: Ranks, config: Config) -> None:
        super().__init__(role, ranks, config)
        self.images, self.generate, self.discard = role.images, role.generate, role.discard
        self.cotangents, self.accumulate = role.cotangents, role.accumulate
