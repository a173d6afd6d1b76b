"""The operations and memory that `raysid plan` counts, against numbers computed by hand or published."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import raysid
from raysid.config.networks import FactorySettings
from raysid.plan.costs import NetworkCosts, network_costs
from raysid.recipes import load_recipe

WIDTH = 16


class Line(nn.Module):
    """Two layers on points in the plane."""

    sample_shape = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return self.second(torch.relu(self.first(x_t)))


def make() -> tuple[nn.Module, raysid.EDMNoise]:
    return Line(), raysid.EDMNoise(sigma_data=1.0)


@pytest.fixture(scope="module")
def line() -> NetworkCosts:
    name = "tests.plan.test_costs:make"
    return network_costs(FactorySettings(factory=name, sample_shape=(2,), default_tmax=800), name)


def test_a_network_of_two_layers_by_hand(line: NetworkCosts) -> None:
    multiplied = 2 * WIDTH + WIDTH * 2
    assert line.parameters == 2 * WIDTH + WIDTH + WIDTH * 2 + 2
    assert line.forward == 2 * multiplied
    assert line.pullback == 2 * multiplied  # through both layers, to the input
    # The weights of both and the input of the second; the first input needs no gradient.
    assert line.backward == 2 * (multiplied + WIDTH * 2)
    assert line.encoder == line.encoder_backward == 0.0
    assert (line.image_bytes, line.conditional) == (8, False)


def test_a_graphs_memory_by_hand(line: NetworkCosts) -> None:
    # Each layer's input; the second's is also what relu saves.
    assert line.graph("float32").learn == 4 * (2 + WIDTH)
    assert line.copies("float32") == 0
    assert line.copies("bf16") == 2 * line.parameters


@pytest.mark.parametrize(
    ("recipe", "millions", "gigaflops"),
    [("cifar10-uncond-sid", 55.7, 42.25), ("imagenet64-sid", 295.9, 219.3)],
)
def test_published_networks(recipe: str, millions: float, gigaflops: float) -> None:
    """Parameters as in EDM's paper (Table 7); backward to the weights costs twice the forward pass."""
    network = load_recipe(recipe, kind="distill").teacher.network
    assert network is not None
    costs = network_costs(network)
    assert round(costs.parameters / 1e6, 1) == millions
    assert costs.forward / 1e9 == pytest.approx(gigaflops, rel=1e-3)
    assert costs.backward == pytest.approx(2 * costs.forward, rel=0.01)
    assert costs.forward < costs.pullback < 1.1 * costs.forward
    assert 0.2 < costs.encoder / costs.forward < 0.5
    whole, half = costs.graph("float32"), costs.graph("fp16")
    assert whole.encoder < whole.pull < whole.learn  # dropout masks exist in training only
    assert 0.5 * whole.learn < half.learn < whole.learn  # norms stay in float32
