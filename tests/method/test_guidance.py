"""Guided prediction: the formula, what it costs, and dropping conditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raysid.method.guidance import drop_conditions, guided
from raysid.networks import EDMDenoiser
from tests.support.tiny_networks import CLASSES, SHAPE, tiny_network


class Counted:
    """A network that counts its passes."""

    def __init__(self, network: EDMDenoiser) -> None:
        self.network = network
        self.passes = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.passes += 1
        return self.network(*args, **kwargs)


@pytest.fixture
def network() -> Counted:
    return Counted(tiny_network(0).eval())


@pytest.fixture
def noised() -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t, cond of three images."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(3, *SHAPE, generator=source), torch.tensor([0.1, 1.0, 10.0]), torch.eye(CLASSES)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_goes_from_the_unconditional_prediction_towards_the_conditional(
    network: Counted, noised, scale: float
) -> None:
    x_t, t, cond = noised
    conditional, unconditional = network.network(x_t, t, cond), network.network(x_t, t, None)
    assert not torch.allclose(conditional, unconditional)
    x_hat, logits = guided(network, x_t, t, cond, scale)  # type: ignore[arg-type]
    torch.testing.assert_close(x_hat, unconditional + scale * (conditional - unconditional))
    assert logits is None and network.passes == 2


@pytest.mark.parametrize("with_logits", [False, True])
def test_scale_one_runs_the_network_once(network: Counted, noised, with_logits: bool) -> None:
    x_hat, _ = guided(network, *noised, 1.0, with_logits)  # type: ignore[arg-type]
    assert network.passes == 1
    assert torch.equal(x_hat, network.network(*noised))


def test_without_conditions_there_is_nothing_to_guide(network: Counted, noised) -> None:
    x_t, t, _ = noised
    x_hat, _ = guided(network, x_t, t, None, 4.0)  # type: ignore[arg-type]
    assert network.passes == 1
    assert torch.equal(x_hat, network.network(x_t, t, None))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_logits_are_those_of_the_conditional_pass(network: Counted, noised, scale: float) -> None:
    _, logits = guided(network, *noised, scale, with_logits=True)  # type: ignore[arg-type]
    assert logits is not None and logits.shape[:2] == (3, 1)
    torch.testing.assert_close(logits, network.network.encode(*noised))


def test_conditions_are_dropped_where_the_number_is_under_the_probability() -> None:
    dropped = drop_conditions(torch.eye(3), torch.tensor([0.05, 0.1, 0.9]), 0.1)
    assert dropped.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    uniform = torch.tensor([0.0, 0.5, 0.999])
    assert torch.equal(drop_conditions(torch.eye(3), uniform, 0.0), torch.eye(3))
    assert drop_conditions(torch.eye(3), uniform, 1.0).sum() == 0


def test_a_dropped_condition_gives_its_place_to_the_unconditional_one() -> None:
    text, empty = torch.randn(3, 5, 6), torch.randn(5, 6)
    dropped = drop_conditions(text, torch.tensor([0.05, 0.1, 0.9]), 0.1, empty)
    assert torch.equal(dropped, torch.stack([empty, text[1], text[2]]))
    assert torch.equal(drop_conditions(text, torch.full((3,), 0.5), 0.1, empty), text)
