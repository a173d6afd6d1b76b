"""A scorer of the teacher-scoring service: a frozen network that scores and pulls back."""

from __future__ import annotations

import time
from collections import OrderedDict

import torch
from torch import Tensor

from raysid.method.guidance import guided
from raysid.networks.denoiser import Network
from raysid.networks.text import TextEncoder
from raysid.roles.conditions import network_conditions
from raysid.roles.messages import Conditions, Cotangent, Noised, Prediction, Pull, Slice
from raysid.roles.profile import Stopwatch, busy

ABSENT_SECONDS = 60.0  # after this silence a run counts as ended

Graphs = OrderedDict[tuple[Slice, float], tuple[Tensor, Tensor]]


class TeacherScorer:
    """phi: predicts clean images, and returns vector-Jacobian products of its predictions.

    Implements `raysid.roles.protocols.TeacherService` for one run or many: each call names its run and its guidance
    scale. It holds no state that a run could miss. The graph of a `score` may be kept for the following `pullback`; if
    it is lost (evicted, or the scorer died in between), the pullback computes it again from the same noised images and
    returns the same numbers. The number of graphs is bounded for each run and in total; the graphs of an inactive run
    are dropped.

    Args:
        network: the teacher's denoiser, which is frozen and put in eval mode.
        graphs_kept: microbatches of a run whose graph is kept, oldest evicted; 0 recomputes every pullback.
        runs_kept: number of runs that graphs are kept for; the least recently used is evicted.
        text: the text encoder, for conditions that are token ids.
    """

    def __init__(
        self, network: Network, graphs_kept: int = 2, runs_kept: int = 1, text: TextEncoder | None = None
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.graphs_kept = graphs_kept
        self.runs_kept = runs_kept
        self.text = text
        self.graphs: OrderedDict[str, Graphs] = OrderedDict()  # by run, in order of their last calls
        self.called: dict[str, float] = {}  # time of the last call, by run
        self.stopwatch = Stopwatch()
        self.microbatches = 0

    @busy
    def score(
        self, noised: Noised, cond: Conditions, guidance_scale: float = 1.0, run: str = ""
    ) -> Prediction:
        """Predict the clean images of x_t (B, ...) at a run's guidance scale (docs/method.md, k4)."""
        noised = noised.to(self.device)
        self.microbatches += 1
        if self.graphs_kept == 0:
            with torch.no_grad():
                return Prediction(self._predict(noised, cond, guidance_scale)[1])
        graphs, key = self._graphs_of(run), (noised.at, guidance_scale)
        graphs.pop(key, None)  # a repeated call is kept once
        x_t, x_hat = self._predict(noised, cond, guidance_scale)
        while len(graphs) >= self.graphs_kept:
            graphs.popitem(last=False)
        graphs[key] = (x_t, x_hat)
        return Prediction(x_hat.detach())

    @busy
    def pullback(
        self,
        noised: Noised,
        cond: Conditions,
        cotangent: Cotangent,
        guidance_scale: float = 1.0,
        run: str = "",
    ) -> Pull:
        """Return J^T cotangent, the loss's exact gradient at x_t through this network."""
        noised, cotangent = noised.to(self.device), cotangent.to(self.device)
        kept = self._graphs_of(run).pop((noised.at, guidance_scale), None)
        x_t, x_hat = kept if kept is not None else self._predict(noised, cond, guidance_scale)
        pull = torch.autograd.grad(x_hat, x_t, cotangent.x_hat)[0]
        return Pull(pull, recomputed=int(kept is None))

    def forget(self, run: str) -> None:
        """Drop the graphs kept for a run that has ended."""
        self.graphs.pop(run, None)
        self.called.pop(run, None)

    def report(self) -> dict[str, float]:
        """Return figures since this scorer started: busy seconds, microbatches scored; and the graphs kept now."""
        return {
            "busy_seconds": self.stopwatch.seconds,
            "microbatches": self.microbatches,
            "graphs": len(self.kept),
        }

    @property
    def kept(self) -> list[Slice]:
        """The microbatches whose graphs are kept, oldest first within a run."""
        return [at for graphs in self.graphs.values() for at, _ in graphs]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _graphs_of(self, run: str) -> Graphs:
        """Return a run's graphs and note its call; drop the graphs of inactive runs."""
        now = time.monotonic()
        self.called[run] = now
        graphs = self.graphs.setdefault(run, OrderedDict())
        self.graphs.move_to_end(run)
        for other in [run for run, called in self.called.items() if now - called > ABSENT_SECONDS]:
            self.forget(other)
        while len(self.graphs) > self.runs_kept:
            self.forget(next(iter(self.graphs)))
        return graphs

    def _predict(self, noised: Noised, cond: Conditions, guidance_scale: float) -> tuple[Tensor, Tensor]:
        x_t = noised.x_t.detach().requires_grad_(torch.is_grad_enabled())
        given = network_conditions(cond, self.network, self.device, self.text)
        return x_t, guided(self.network, x_t, noised.t, given, guidance_scale)[0]
