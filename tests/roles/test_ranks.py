"""The sum over ranks, and the error when another rank is lost. Ranks are threads here, connected by sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

import raysid.roles.ranks
from raysid.config import LearnerSettings
from raysid.errors import PeerLost
from raysid.roles.learner import Optimizer
from raysid.roles.ranks import Ranks, buckets
from tests.support.tiny_networks import tiny_config

HERE = "127.0.0.1"
T = TypeVar("T")


def on_every_rank(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """The results of `work` on each of `count` connected ranks."""
    ranks = [Ranks(rank, size) for rank in range(size)]
    address = ranks[0].open(HERE)

    def joined(rank: Ranks) -> T:
        rank.join(address, HERE)
        return work(rank)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(joined, ranks))


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(raysid.roles.ranks, "BUCKET", 10)
    yield


def parts(rank: int) -> list[Tensor]:
    """Tensors of several shapes, layouts and types, different on each rank."""
    source = torch.Generator().manual_seed(rank)
    shapes = [(3, 2), (), (4, 3), (2, 3, 2), (1,)]
    tensors = [torch.randn(shape, generator=source) for shape in shapes]
    tensors[3] = tensors[3].transpose(0, 1)
    return [*tensors, torch.randn(5, generator=source, dtype=torch.float64)]


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_same_sums(small_buckets: None, size: int) -> None:
    """Each rank holds the sum in place; for two ranks, with the bits of one addition."""

    def work(ranks: Ranks) -> list[Tensor]:
        tensors = parts(ranks.rank)
        ranks.all_reduce(tensors)
        return tensors

    sums = on_every_rank(size, work)
    expected = [sum(own[1:], own[0]) for own in zip(*map(parts, range(size)), strict=True)]
    for own in sums:
        for here, there, total in zip(own, sums[0], expected, strict=True):
            assert torch.equal(here, there)
            torch.testing.assert_close(here, total)
            assert size > 2 or torch.equal(here, total)


def test_the_size_of_one_sum_is_bounded(small_buckets: None) -> None:
    tensors = parts(0)
    cut = list(buckets(tensors))
    assert [[tensor.numel() for tensor in bucket] for bucket in cut] == [[6, 1], [12], [12], [1], [5]]
    assert sorted(id(tensor) for bucket in cut for tensor in bucket) == sorted(map(id, tensors))


class Three(nn.Module):
    """Parameters with a gradient on both ranks, on one rank, on none."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.one, self.none = (nn.Parameter(torch.ones(3)) for _ in range(3))


def test_gradients_are_cleaned_after_they_are_summed() -> None:
    """A missing gradient counts as zero; a parameter with none on any rank keeps none, as in one process."""

    def work(ranks: Ranks) -> tuple[Three, list[Tensor | None], Optimizer]:
        network = Three()
        optimizer = Optimizer(network, LearnerSettings(lr=0.1), tiny_config(), ranks)
        bad = torch.nan if ranks.rank == 0 else 1.0
        network.both.grad = torch.tensor([1.0 + ranks.rank, bad, torch.inf * (1 - 2 * ranks.rank)])
        if ranks.rank == 1:
            network.one.grad = torch.tensor([4.0, 5.0, -torch.inf])
        seen: list[Tensor | None] = []
        optimizer.adam.register_step_pre_hook(
            lambda *_: seen.extend(None if p.grad is None else p.grad.clone() for p in optimizer.parameters)
        )
        optimizer.step(0)
        return network, seen, optimizer

    for network, (both, one, none), optimizer in on_every_rank(2, work):
        assert both is not None and both.tolist() == [3.0, 0.0, 0.0]  # inf - inf is NaN
        assert one is not None and one.tolist() == [4.0, 5.0, -1e5]
        assert none is None and network.none.tolist() == [1.0] * 3
        assert len(optimizer.state_dict()["state"]) == 2


def test_a_rank_that_is_gone_is_noticed() -> None:
    """At once if its process has ended, which closes its sockets."""

    def work(ranks: Ranks) -> str:
        ranks.all_reduce([torch.ones(3)])
        if ranks.rank == 1:
            ranks._group = None  # as the end of its process would
            return ""
        tensors = [torch.ones(3)]
        with pytest.raises(PeerLost, match="rank 0 of 2 lost the others: .*") as raised:
            ranks.all_reduce(tensors)
        return str(raised.value)

    said, _ = on_every_rank(2, work)
    assert "\n" not in said


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raysid.roles.ranks, "TIMEOUT", timedelta(seconds=0.5))

    def work(ranks: Ranks) -> None:
        if ranks.rank == 0:
            with pytest.raises(PeerLost, match="rank 0 of 2 lost the others: .*"):
                ranks.all_reduce([torch.ones(3)])

    on_every_rank(2, work)
    alone = Ranks(0, 2)
    with pytest.raises(PeerLost, match="rank 0 of 2 could not meet the others: .*"):
        alone.join(alone.open(HERE), HERE)
