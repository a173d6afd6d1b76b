"""A learner's handle and its actor, without a cluster: which calls are made, and how their errors read."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from raysid.actors.remote_learners import (
    RECEIVING,
    WRITING,
    FakeScoreActor,
    GeneratorActor,
    LastMicrobatch,
    RemoteFakeScore,
    role_call,
)
from raysid.errors import PeerLost, RunFailed
from raysid.roles.messages import Slice, StepReport, merge_step_reports
from raysid.roles.profile import Traffic

FIRST, SECOND = Slice(3, 0, 16), Slice(3, 16, 16)


class Recorder:
    """An actor handle that records its calls and returns a number for each."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> int:
            self.calls.append((method, *arguments))
            return len(self.calls)

        return type("Method", (), {"remote": staticmethod(remote)})


def test_the_last_microbatch_and_the_update_are_one_call() -> None:
    actor = Recorder()
    learner = RemoteFakeScore([actor], batch_size=32)
    tokens: list[Any] = [
        learner.accumulate(at, images, cond)  # type: ignore[arg-type]
        for at, images, cond in ((FIRST, "a", "c"), (SECOND, "b", "d"))
    ]
    assert actor.calls == [("accumulate", FIRST, "a", "c")] and isinstance(tokens[1], LastMicrobatch)
    assert learner.step(3, *tokens) == [2]
    assert actor.calls[1:] == [("finish", SECOND, "b", "d", 1)]


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, None), (2, 32)])
def test_otherwise_every_rank_steps_with_all_tokens(ranks: int, batch_size: int | None) -> None:
    actors = [Recorder() for _ in range(ranks)]
    learner = RemoteFakeScore(actors, batch_size)
    tokens = [learner.accumulate(at, "images", "cond") for at in (FIRST, SECOND)]
    learner.step(3, *tokens)
    assert all(actor.calls[-1] == ("step", 3, *tokens) for actor in actors)
    assert sum(len(actor.calls) for actor in actors) == 2 + ranks


def test_ray_reads_the_settings_of_decorated_methods() -> None:
    two = {"generate": 2, "cotangents": 2}
    for actor, expected in ((GeneratorActor, two), (FakeScoreActor, {})):
        methods = ray.remote(actor).__ray_metadata__.method_meta  # type: ignore[attr-defined]
        assert {name: count for name, count in methods.num_returns.items() if count} == expected
        assert methods.concurrency_group_for_methods == {"write": WRITING, "receive": RECEIVING}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("bad"), RunFailed(f"the fake_score learner failed in `score` ({FIRST}): bad")),
        (RunFailed("one line"), RunFailed("one line")),
        (PeerLost("rank 1 is gone"), PeerLost("fake_score: rank 1 is gone")),
    ],
)
def test_an_error_names_the_learner_the_method_and_the_microbatch(
    raised: Exception, expected: Exception
) -> None:
    class Actor:
        name, traffic = "fake_score", Traffic()

        @role_call
        def score(self, at: Slice) -> None:
            raise raised

    with pytest.raises(type(expected)) as caught:
        Actor().score(FIRST)
    assert str(caught.value) == str(expected)


def test_reports_of_a_step_merge() -> None:
    """Figures of all learners; the largest count of recomputes; the images that every rank has loaded."""
    reports = [
        StepReport({"loss/fake_score": 1.0}, images_until=96.0),
        StepReport({"loss/fake_score": 1.0}, images_until=64.0),
        StepReport({"loss/sid": 2.0}, recomputes=3),
    ]
    assert merge_step_reports(reports) == StepReport({"loss/fake_score": 1.0, "loss/sid": 2.0}, 3, 64.0)
