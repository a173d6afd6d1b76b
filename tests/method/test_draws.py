"""Random numbers have an address: cuts do not change them, other addresses do; their distributions are right."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from raysid.method.draws import Draws, derived_seed

SEED, STEP, BATCH = 7, 3, 12
FREQUENCIES = (3.0, 0.0, 1.0, 4.0)

DRAWERS: dict[str, Callable[[Draws], Tensor]] = {
    "uniform": lambda draws: draws.uniform("purpose"),
    "uniform of a shape": lambda draws: draws.uniform("purpose", (3, 5)),
    "normal": lambda draws: draws.normal("purpose"),
    "normal of a shape": lambda draws: draws.normal("purpose", (1, 3, 3)),
    "labels": lambda draws: draws.labels("purpose", FREQUENCIES),
}


@pytest.fixture(params=DRAWERS.values(), ids=DRAWERS)
def draw(request: pytest.FixtureRequest) -> Callable[[Draws], Tensor]:
    return request.param


@pytest.mark.parametrize("cut", [(12,), (6, 6), (4, 4, 4), (1,) * 12, (5, 1, 3, 3)])
def test_slices_are_the_whole_batch_whatever_the_cut(draw: Callable[[Draws], Tensor], cut) -> None:
    whole = draw(Draws(SEED, STEP, 0, BATCH))
    starts = itertools.accumulate(cut, initial=0)
    slices = [draw(Draws(SEED, STEP, start, count)) for start, count in zip(starts, cut, strict=False)]
    assert torch.equal(torch.cat(slices), whole)


def test_a_slice_does_not_depend_on_what_was_drawn_before(draw: Callable[[Draws], Tensor]) -> None:
    draws = Draws(SEED, STEP, 4, 4)
    first = draw(draws)
    draws.normal("another purpose", (100,))
    torch.manual_seed(0)
    np.random.seed(0)
    assert torch.equal(draw(draws), first)


def test_seeds_steps_purposes_and_samples_have_unrelated_numbers() -> None:
    shape, base = (64, 64), Draws(SEED, STEP, 0, 1)
    others = {
        "seed": Draws(SEED + 1, STEP, 0, 1).normal("z", shape),
        "step": Draws(SEED, STEP + 1, 0, 1).normal("z", shape),
        "sample": Draws(SEED, STEP, 1, 1).normal("z", shape),
        "purpose": base.normal("noise", shape),
        "seed and step swapped": Draws(STEP, SEED, 0, 1).normal("z", shape),
    }
    drawn = [base.normal("z", shape), *others.values()]
    for one, other in itertools.combinations(drawn, 2):
        correlation = np.corrcoef(one.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(one.numel())


def test_numbers_of_one_sample_and_of_neighbours_are_unrelated() -> None:
    rows = Draws(SEED, STEP, 0, 2000).normal("z", (8,)).numpy()
    correlations = np.corrcoef(np.concatenate([rows[:-1], rows[1:]], axis=1), rowvar=False)
    assert np.abs(correlations - np.eye(16)).max() < 4.5 / np.sqrt(len(rows))


def test_normal_numbers_are_standard_normal() -> None:
    drawn = Draws(SEED, STEP, 100, 5000).normal("z", (2, 5))
    assert drawn.dtype == torch.float32 and drawn.shape == (5000, 2, 5)
    values = drawn.flatten().double().numpy()
    error = 1 / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert abs(values.var() - 1) < 4 * np.sqrt(2) * error
    assert abs(stats.skew(values)) < 4 * np.sqrt(6) * error
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24) * error
    assert stats.kstest(values, "norm").pvalue > 1e-3


def test_uniform_numbers_are_uniform_and_below_one() -> None:
    drawn = Draws(SEED, STEP, 100, 5000).uniform("t", (2, 5))
    assert drawn.dtype == torch.float32 and drawn.shape == (5000, 2, 5)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert stats.kstest(drawn.flatten().double().numpy(), "uniform").pvalue > 1e-3


def test_uniform_numbers_stay_below_one_when_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest 53-bit fraction rounds to 1 as float32; 1 would be outside the noise levels' range."""
    largest = 1 - 2.0**-53
    monkeypatch.setattr(
        Draws, "_uniform64", lambda self, purpose, shape: np.full((self.count, *shape), largest)
    )
    assert Draws(0, 0, 0, 1).uniform("t").item() < 1
    assert Draws(0, 0, 0, 1).normal("z").isfinite().all()
    assert Draws(0, 0, 0, 1).labels("c", FREQUENCIES).item() == len(FREQUENCIES) - 1


def test_labels_follow_their_frequencies() -> None:
    drawn = Draws(SEED, STEP, 0, 8000).labels("c", FREQUENCIES)
    assert drawn.dtype == torch.int64
    counts = np.bincount(drawn, minlength=len(FREQUENCIES))
    expected = 8000 * np.array(FREQUENCIES) / sum(FREQUENCIES)
    assert counts[1] == 0
    assert stats.chisquare(np.delete(counts, 1), np.delete(expected, 1)).pvalue > 1e-3


def test_a_class_of_frequency_zero_is_not_drawn_at_the_edges_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, label in ((0.0, 1), (1 - 2.0**-53, 2)):
        monkeypatch.setattr(Draws, "_uniform64", lambda *_, it=number: np.full(1, it))
        assert Draws(0, 0, 0, 1).labels("c", (0.0, 1.0, 1.0, 0.0)).item() == label


def test_only_the_proportions_of_frequencies_count() -> None:
    draws = Draws(SEED, STEP, 0, 500)
    scaled = [1000 * frequency for frequency in FREQUENCIES]
    assert torch.equal(draws.labels("c", scaled), draws.labels("c", FREQUENCIES))


def test_dropout_seeds_differ_by_every_part_of_the_address_and_fit_torch() -> None:
    addresses = itertools.product((0, 1), (0, 1), (0, 4), ("fake", "generator"))
    seeds = {Draws(seed, step, start, 4).dropout_seed(purpose) for seed, step, start, purpose in addresses}
    assert len(seeds) == 16
    for seed in seeds:
        torch.manual_seed(seed)


def test_the_numbers_of_an_address_never_change() -> None:
    """A run resumed with another version of raysid, NumPy or Python draws the same numbers."""
    draws = Draws(7, 3, 5, 2)
    assert derived_seed(7, 3, "generator/z") == PINNED_SEED
    np.testing.assert_array_equal(draws.uniform("generator/t_uniform", (2,)).double(), PINNED_UNIFORM)
    # The last digits depend on the C library's logarithm and cosine.
    np.testing.assert_allclose(draws.normal("generator/z", (3,)), PINNED_NORMAL, rtol=1e-6)
    assert Draws(7, 3, 5, 8).labels("generator/labels", FREQUENCIES).tolist() == PINNED_LABELS
    assert draws.dropout_seed("generator/dropout") == PINNED_DROPOUT_SEED


PINNED_SEED = 100561473649770807581006432200746200128
PINNED_UNIFORM = [[0.8135822415351868, 0.22012126445770264], [0.06467799842357635, 0.6155300736427307]]
PINNED_NORMAL = [[-0.80900383, -2.0418036, -2.0042236], [-1.5717804, 0.65853983, -0.34432203]]
PINNED_LABELS = [0, 3, 3, 3, 3, 3, 3, 3]
PINNED_DROPOUT_SEED = 7147084332008000217
