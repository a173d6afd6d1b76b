"""Parts that both learners use: the optimizer of a network, the moving average of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raysid.config import Config, LearnerSettings
from raysid.method.draws import Draws
from raysid.method.schedules import learning_rate
from raysid.roles.ranks import Ranks
from raysid.roles.torch_internals import lerp_all

DrawsAt = Callable[[int, int, int], Draws]
"""Makes the `Draws` of (step, start, count): `functools.partial(Draws, seed)` in every run."""


class Optimizer:
    """Adam over a network's parameters, with cleaned gradients.

    NaN becomes 0 and infinities +-1e5, as in the authors' runs; then the gradients may be clipped by value. Several
    ranks sum their gradients first, so that all of them make the same update.
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
            # None, not False: torch then chooses the fastest implementation that is not fused.
            fused=config.compute.fused_optimizer or None,
        )
        self.settings = settings
        self.config = config
        self.ranks = ranks

    def step(self, images: int, clip: float | None = None) -> dict[str, float]:
        """Apply the accumulated gradients of the step that begins after `images`, and clear them.

        Args:
            clip: largest absolute value of a gradient's element; None does not clip.

        Returns:
            Learning rate, and norm of the cleaned gradient before clipping.

        Raises:
            PeerLost: another rank is lost; nothing was applied.
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
        """Sum the ranks' gradients; a missing one counts as zero, and stays missing if all ranks miss it."""
        counts = [float(p.grad is not None) for p in self.parameters]
        alive = torch.tensor(counts, device=self.parameters[0].device)
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.all_reduce([alive, *(p.grad for p in self.parameters if p.grad is not None)])
        for parameter, count in zip(self.parameters, alive.tolist(), strict=True):
            if count == 0:
                parameter.grad = None  # as in one process, Adam keeps no state of it

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state; the implementation of Adam (fused, foreach) stays this one's."""
        kept = [{name: group[name] for name in ("fused", "foreach")} for group in self.adam.param_groups]
        groups = [saved | own for saved, own in zip(state["param_groups"], kept, strict=True)]
        self.adam.load_state_dict(state | {"param_groups": groups})
        for parameter, moments in self.adam.state.items():
            for name, value in moments.items():
                # The fused update walks through memory: the moments need the weights' layout.
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(value)


def move_average(averages: list[Tensor], weights: list[Tensor], beta: float, foreach: bool) -> None:
    """Update a moving average in place: beta times the average plus 1 - beta times the weights."""
    with torch.no_grad():
        if foreach:
            lerp_all(averages, weights, 1 - beta)
            return
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1 - beta)


def one_hot(labels: Tensor, label_dim: int) -> Tensor | None:
    """Convert class indices (B,) to float one-hot rows (B, label_dim); None for a network without labels."""
    if label_dim == 0:
        return None
    return torch.nn.functional.one_hot(labels.long(), label_dim).float()


def where_good(good: Tensor, value: Tensor) -> Tensor:
    """Set the samples of `value` (B, ...) that are not `good` (B,) to zero; a product would keep NaN."""
    return torch.where(good.reshape(-1, *[1] * (value.ndim - 1)), value, 0.0)
