"""`raysid bench`: its numbers add up, its files can be read, and it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from raysid.bench.compare import Comparison, compare
from raysid.bench.report import PARTS, as_json, as_trace, bound
from raysid.cli.main import cli
from raysid.config import Config
from raysid.recipes import load_recipe
from tests.support.command_line import raysid
from tests.support.tiny_run import tiny_config, tiny_teacher, write_recipe

ROUND = 0.1  # the fewest steps that a round may have: seconds
FLOAT = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("bench")
    return tiny_config(tiny_teacher(folder / "teacher"), folder / "runs")


@pytest.fixture(scope="module")
def said() -> list[str]:
    """The rounds of a result."""
    return []


@pytest.fixture(scope="module")
def found(ray_cluster: None, config: Config, said: list[str]) -> Comparison:
    """Three actors against one process."""
    before = torch.get_num_threads()
    try:
        return compare(config, local(config), rounds=3, seconds=ROUND, report=said.append)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def local(config: Config) -> Config:
    """The other side with `--against local`."""
    return config.model_copy(update={"placement": "local", "schedule": "alternating"})


def test_two_sides_take_turns_and_their_parts_add_up(
    found: Comparison, said: list[str], config: Config
) -> None:
    assert len(said) == 3 and all("against" in line for line in said)
    tree = json.loads(json.dumps(as_json(found)))
    assert tree["ratio_low"] <= tree["ratio"] <= tree["ratio_high"]
    assert tree["ratio"] == pytest.approx(
        tree["this"]["images_per_second"] / tree["against"]["images_per_second"]
    )
    assert (tree["settings"]["placement"], tree["against_settings"]["placement"]) == ("split", "local")
    assert (tree["settings"]["schedule"], tree["against_settings"]["schedule"]) == (
        "overlapped",
        "alternating",
    )
    for side in ("this", "against"):
        assert len(tree[side]["images_per_second_by_round"]) == 3
        for role in tree[side]["roles"].values():
            assert role["busy"] == pytest.approx(sum(role[part] for part in PARTS))
            assert role["busy"] + role["wait"] <= tree[side]["seconds_per_step"] * 1.001
            assert role["peak_bytes"] > 10e6
    generator, teacher, fake = (
        tree["this"]["roles"][name] for name in ("generator", "teacher", "fake_score")
    )
    assert all(generator[part] > 0 for part in ("generate", "cotangents", "accumulate", "step"))
    assert all(teacher[part] > 0 for part in ("score", "pullback")) and teacher["accumulate"] == 0
    assert all(fake[part] > 0 for part in ("score", "pullback", "accumulate", "step"))
    assert bound(found) > 0 and tree["this"]["driver_seconds_per_microbatch"] > 0
    # Nothing is left in the storage.
    runs = Path(config.storage)
    assert not runs.exists() or not list(runs.iterdir())


def test_transfers_are_counted_in_bytes(found: Comparison, config: Config) -> None:
    """Images, never weights: x_t, t and labels to the teacher, a prediction back; a cotangent there, a pull back.

    Labels are class indices, from the driver.
    """
    tree = as_json(found)
    image, label = 8 * 8 * FLOAT, 8
    noised, batch = image + FLOAT, config.batch_size
    teacher, generator = tree["this"]["roles"]["teacher"], tree["this"]["roles"]["generator"]
    assert teacher["received_bytes"] == batch * (
        2 * (noised + label) + image
    )  # x_t for the score and for the pullback
    assert teacher["sent_bytes"] == batch * 2 * image
    logits = 4 * 4 * FLOAT  # the discriminator's map
    # Noised images for the scorers, images for psi; two cotangents, one including the logits.
    assert generator["sent_bytes"] == batch * (noised + image + 2 * image + logits)
    # The labels, two predictions, two pulls.
    assert generator["received_bytes"] == batch * (label + 4 * image + logits)
    assert (
        tree["against"]["roles"]["teacher"]["received_bytes"] == 0
    )  # nothing is transferred within one process


def test_one_side_alone_has_no_ratio(config: Config) -> None:
    tree = as_json(compare(local(config), None, rounds=1, seconds=ROUND))
    assert "ratio" not in tree and "against" not in tree and tree["this"]["images_per_second"] > 0


def test_a_trace_shows_the_last_steps_of_every_role(found: Comparison) -> None:
    events = as_trace(found)["traceEvents"]
    roles = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert sorted(roles.values()) == ["fake score", "generator", "teacher scorer"]
    calls: dict[str, list[dict[str, Any]]] = {name: [] for name in roles.values()}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            calls[roles[event["pid"]]].append(event)
    assert {e["name"] for e in calls["generator"]} >= {"generate", "cotangents", "accumulate", "step"}
    assert {e["name"] for e in calls["teacher scorer"]} == {"score", "pullback"}
    assert sum(e["name"] == "step" for e in calls["fake score"]) >= 3
    for of_role in calls.values():  # one call at a time in each process
        ordered = sorted(of_role, key=lambda e: e["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1000 for a, b in zip(ordered, ordered[1:], strict=False))


def test_the_command(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process against another: tables, and files that name the two sides."""
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(config, tmp_path / "mine.yaml")
    result = CliRunner().invoke(
        cli,
        ["bench", str(recipe), "--placement", "local", "--against", "local", "--against.torch_threads", "1",
         "--rounds", "2", "--seconds", "0.1", "--json", "found.json", "--trace", "trace.json"],
        prog_name="raysid",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "local, overlapped, 1 thread " in result.output
    assert "local, alternating, 1 thread " in result.output
    assert "ratio" in result.output and "overhead" in result.output
    tree = json.loads((tmp_path / "found.json").read_text())
    assert (tree["settings"]["schedule"], tree["against_settings"]["schedule"]) == (
        "overlapped",
        "alternating",
    )
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_against_local_alone_is_the_authors_way() -> None:
    """Local, alternating, all cores; explicit settings override these."""
    from raysid.cli.bench import other_side

    mine = {"seed": "3", "torch_threads": "1"}
    plain = other_side("digits-sid", mine, "local", {})
    assert (plain.placement, plain.schedule, plain.torch_threads, plain.seed) == (
        "local",
        "alternating",
        None,
        3,
    )
    given = other_side("digits-sid", mine, "local", {"schedule": "overlapped", "torch_threads": "2"})
    assert (given.schedule, given.torch_threads) == ("overlapped", 2)
    assert other_side("digits-sid", mine, "split", {}) == load_recipe("digits-sid", mine)
    workers = {"generator.num_workers": "2", "fake_score.num_workers": "2"}
    assert other_side("digits-sid", workers, "local", {}).learner_workers == {"generator": 1, "fake_score": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against.torch_threads", "2"], "--against.torch_threads needs --against"),
        (["--against", "local", "--against.alpha", "2"], "No such option"),
        (
            ["--json", "no/such/found.json"],
            "no/such/found.json cannot be written: there is no folder no/such",
        ),
        (["--against", "local", "--against.batch_size", "7"], "does not divide into groups"),
        (["--batch_size", "64", "--against", "local", "--against.microbatch_size", "48"], "microbatch_size"),
    ],
)
def test_a_request_that_cannot_be_measured_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = raysid("bench", "digits-sida", *arguments)
    assert result.exit_code == 2 and words in result.stderr, result.output
