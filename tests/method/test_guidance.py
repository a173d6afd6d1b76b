"""Guided prediction: the formula, its cost, and dropping conditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raysid.method.guidance import drop_conditions, guided
from raysid.method.noise import EDMNoise
from raysid.networks import EDMDenoiser
from tests.support.tiny_networks import CLASSES, SHAPE, tiny_network


class Counted:
    """A network that counts its passes. It shares no class with raysid's networks: it only satisfies the protocol."""

    def __init__(self, network: EDMDenoiser) -> None:
        self.network = network
        self.noise, self.clean, self.unconditional = network.noise, network.clean, network.unconditional
        self.passes = 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.predict(x_t, t, cond)

    def predict(self, *args: Any) -> Tensor:
        self.passes += 1
        return self.network.predict(*args)

    def predict_with_logits(self, *args: Any) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return self.network.predict_with_logits(*args)

    def encode(self, *args: Any) -> Tensor:
        return self.network.encode(*args)


class TextDenoiser:
    """A denoiser of a new kind, conditioned on a mapping: x_hat = x_t + the mean of the tokens that count."""

    noise = EDMNoise()

    def __call__(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        return self.clean(self.predict(x_t, t, cond), x_t, t)

    def predict(
        self, x_t: Tensor, t: Tensor, cond: Any = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        return (cond["tokens"] * cond["mask"]).mean(1).reshape(-1, 1, 1, 1).expand_as(x_t)

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t + prediction

    def unconditional(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"tokens": torch.full((5,), 7.0), "mask": torch.ones_like(cond["mask"])}


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
    x_hat, logits = guided(network, x_t, t, cond, scale)
    torch.testing.assert_close(x_hat, unconditional + scale * (conditional - unconditional))
    assert logits is None and network.passes == 2


@pytest.mark.parametrize("with_logits", [False, True])
def test_scale_one_runs_the_network_once(network: Counted, noised, with_logits: bool) -> None:
    x_hat, _ = guided(network, *noised, 1.0, with_logits)
    assert network.passes == 1
    assert torch.equal(x_hat, network.network(*noised))


def test_without_conditions_there_is_nothing_to_guide(network: Counted, noised) -> None:
    x_t, t, _ = noised
    x_hat, _ = guided(network, x_t, t, None, 4.0)
    assert network.passes == 1
    assert torch.equal(x_hat, network.network(x_t, t, None))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_logits_are_those_of_the_conditional_pass(network: Counted, noised, scale: float) -> None:
    _, logits = guided(network, *noised, scale, with_logits=True)
    assert logits is not None and logits.shape[:2] == (3, 1)
    torch.testing.assert_close(logits, network.network.encode(*noised))


def test_conditions_are_dropped_where_the_number_is_under_the_probability() -> None:
    none = torch.zeros(3, 3)
    dropped = drop_conditions(torch.eye(3), torch.tensor([0.05, 0.1, 0.9]), 0.1, none)
    assert dropped.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    uniform = torch.tensor([0.0, 0.5, 0.999])
    assert torch.equal(drop_conditions(torch.eye(3), uniform, 0.0, none), torch.eye(3))
    assert drop_conditions(torch.eye(3), uniform, 1.0, none).sum() == 0


def test_a_dropped_condition_gives_its_place_to_the_unconditional_one() -> None:
    text, empty = torch.randn(3, 5, 6), torch.randn(5, 6)
    dropped = drop_conditions(text, torch.tensor([0.05, 0.1, 0.9]), 0.1, empty)
    assert torch.equal(dropped, torch.stack([empty, text[1], text[2]]))
    assert torch.equal(drop_conditions(text, torch.full((3,), 0.5), 0.1, empty), text)


def test_conditions_may_be_a_mapping_and_the_network_of_a_new_kind() -> None:
    network, x_t, t = TextDenoiser(), torch.randn(3, *SHAPE), torch.ones(3)
    text = {"tokens": torch.randn(3, 5), "mask": torch.ones(3, 5)}
    shift = text["tokens"].mean(1).reshape(-1, 1, 1, 1)
    x_hat, logits = guided(network, x_t, t, text, 2.0)
    torch.testing.assert_close(x_hat, x_t + (2 * shift - 7.0).expand_as(x_t))
    assert logits is None
    with pytest.raises(ValueError, match="a TextDenoiser has no encoder logits"):
        guided(network, x_t, t, text, 2.0, with_logits=True)
    dropped = drop_conditions(text, torch.tensor([0.05, 0.1, 0.9]), 0.1, network.unconditional(text))
    assert dropped["tokens"][0].tolist() == [7.0] * 5
    assert torch.equal(dropped["tokens"][1:], text["tokens"][1:])
    assert torch.equal(dropped["mask"], text["mask"])
