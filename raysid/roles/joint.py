"""A learner as one of several workers has it: the update waits for what all of them have added."""

from __future__ import annotations

from typing import Any

import torch

from raysid.config import Config
from raysid.roles.messages import Token
from raysid.roles.ranks import Ranks
from raysid.roles.step import all_microbatches


class JointLearner:
    """A rank of a learner whose other ranks are driven by their own workers, not by this one's controller.

    Everything is the role's own, but for `step`: its tokens are those of all ranks, which they tell each other.

    Args:
        role: the learner's rank in this process.
        ranks: all workers.
    """

    def __init__(self, role: Any, ranks: Ranks, config: Config) -> None:
        self.role, self.ranks, self.config = role, ranks, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.role, name)

    def step(self, step: int, *tokens: Token) -> dict[str, float]:
        """As the role's. Raises PeerLost."""
        return self.role.step(step, *self._of_all(step, tokens))

    def _of_all(self, step: int, tokens: tuple[Token, ...]) -> list[Token]:
        """The tokens of the step's microbatches that were added by any rank."""
        cut = all_microbatches(self.config, step, self.ranks.size)
        names = sorted({name for token in tokens for name in token.sums})  # the same on all ranks
        table = torch.zeros(len(cut), 1 + len(names), dtype=torch.float64, device=self.role.device)
        for token in tokens:
            sums = [token.sums[name] for name in names]
            table[cut.index(token.at)] = torch.tensor([1.0, *sums], dtype=torch.float64)
        self.ranks.all_reduce([table])
        return [
            Token(at, dict(zip(names, sums, strict=True)))
            for at, (there, *sums) in zip(cut, table.tolist(), strict=True)
            if there
        ]
