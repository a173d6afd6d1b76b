"""What the two learners share: an optimizer over one network, its clean step, its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raysid.config import Config, LearnerSettings
from raysid.method.draws import Draws
from raysid.method.schedules import learning_rate
from raysid.roles.ranks import Ranks

DrawsAt = Callable[[int, int, int], Draws]
"""Makes the `Draws` of (step, start, count): `functools.partial(Draws, seed)` in every real run."""


class Optimizer:
    """Adam over a network's parameters, fed by gradients that are cleaned first.

    Gradients: NaN becomes 0 and infinities +-1e5, as in the authors' runs; then an optional clip by value.
    With several ranks their gradients are summed before, so that all of them make the same update.
    """

    def __init__(
        self, network: nn.Module, settings: LearnerSettings, config: Config, ranks: Ranks | None = None
    ) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            # None, not False: torch then takes the fastest way that is not fused.
            fused=config.compute.fused_optimizer or None,
        )
        self.settings = settings
        self.config = config
        self.ranks = ranks

    def step(self, images: int, clip: float | None = None) -> dict[str, float]:
        """Apply the accumulated gradients of the step that began after `images`; clear them.

        Raises:
            PeerLost: another rank is gone; nothing was applied.
        """
        if self.ranks is not None:
            self._sum_over(self.ranks)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        for gradient in gradients:
            torch.nan_to_num_(gradient, nan=0.0, posinf=1e5, neginf=-1e5)
        norm = torch.nn.utils.get_total_norm(gradients)
        if clip is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, clip)
        rate = learning_rate(self.settings.lr, self.config.lr_schedule, images, self.config.total_images)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return {"lr": rate, "gradient_norm": float(norm)}

    def _sum_over(self, ranks: Ranks) -> None:
        """Sum the ranks' gradients; a parameter without one counts as zero, and without any keeps none."""
        counts = [float(p.grad is not None) for p in self.parameters]
        alive = torch.tensor(counts, device=self.parameters[0].device)
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.all_reduce([alive, *(p.grad for p in self.parameters if p.grad is not None)])
        for parameter, count in zip(self.parameters, alive.tolist(), strict=True):
            if count == 0:
                parameter.grad = None  # Adam keeps no state of it, as in one process

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a state, whichever way of computing it was made by."""
        ways = [{name: group[name] for name in ("fused", "foreach")} for group in self.adam.param_groups]
        groups = [saved | way for saved, way in zip(state["param_groups"], ways, strict=True)]
        self.adam.load_state_dict(state | {"param_groups": groups})
        for parameter, moments in self.adam.state.items():
            for name, value in moments.items():
                # The fused update goes through memory as it lies: all must lie as the weights do.
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(value)


def move_average(averages: list[Tensor], weights: list[Tensor], beta: float, foreach: bool) -> None:
    """Move a network's averaged weights to its weights: beta of what they were, 1 - beta of these."""
    with torch.no_grad():
        if foreach:
            torch._foreach_lerp_(averages, weights, 1 - beta)
            return
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1 - beta)


def one_hot(labels: Tensor, label_dim: int) -> Tensor | None:
    """Class indices (B,) as float one-hot rows (B, label_dim); None for a network without labels."""
    if label_dim == 0:
        return None
    return torch.nn.functional.one_hot(labels.long(), label_dim).float()


def where_good(good: Tensor, value: Tensor) -> Tensor:
    """`value` (B, ...) with the samples that are not `good` (B,) set to zero (a product would keep NaN)."""
    return torch.where(good.reshape(-1, *[1] * (value.ndim - 1)), value, 0.0)
