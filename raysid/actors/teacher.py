"""The teacher-scoring service's worker: a frozen network that scores and pulls back."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from raysid.actors.busy import busy
from raysid.actors.messages import Noised, Prediction, Pull, Seed, Slice
from raysid.guidance import guided
from raysid.networks import EDMDenoiser


class TeacherScorer:
    """phi: predicts the clean image, and returns the vector-Jacobian product of that prediction.

    It holds no state that a run could miss. The graph of a `score` may be kept for the `pullback` that
    follows; where it is gone (evicted, or the scorer died in between) the pullback recomputes it from the
    same noised images and gives the same numbers.

    Args:
        network: the teacher's denoiser; frozen and put in eval mode here.
        graphs_kept: microbatches whose graph is kept, oldest evicted; 0 recomputes every pullback.
    """

    def __init__(self, network: EDMDenoiser, guidance_scale: float = 1.0, graphs_kept: int = 2) -> None:
        self.network = network.eval().requires_grad_(False)
        self.guidance_scale = guidance_scale
        self.graphs_kept = graphs_kept
        self.graphs: OrderedDict[Slice, tuple[Tensor, Tensor]] = OrderedDict()
        self.busy_seconds = 0.0

    @busy
    def score(self, noised: Noised) -> Prediction:
        """Predict the clean image of x_t."""
        noised = noised.to(self.device)
        if self.graphs_kept == 0:
            with torch.no_grad():
                return Prediction(self._predict(noised)[1])
        self.graphs.pop(noised.at, None)  # a repeated call takes no second place
        x_t, x_hat = self._predict(noised)
        while len(self.graphs) >= self.graphs_kept:
            self.graphs.popitem(last=False)
        self.graphs[noised.at] = (x_t, x_hat)
        return Prediction(x_hat.detach())

    @busy
    def pullback(self, noised: Noised, seed: Seed) -> Pull:
        """J^T seed: the loss's gradient at x_t through this network, exactly."""
        noised, seed = noised.to(self.device), seed.to(self.device)
        kept = self.graphs.pop(noised.at, None)
        x_t, x_hat = kept if kept is not None else self._predict(noised)
        pull = torch.autograd.grad(x_hat, x_t, seed.x_hat)[0]
        return Pull(pull, recomputed=int(kept is None))

    def report(self) -> dict[str, float]:
        """Figures since this scorer started: busy seconds."""
        return {"busy_seconds": self.busy_seconds}

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _predict(self, noised: Noised) -> tuple[Tensor, Tensor]:
        x_t = noised.x_t.detach().requires_grad_(torch.is_grad_enabled())
        return x_t, guided(self.network, x_t, noised.t, noised.cond, self.guidance_scale)[0]
