"""The check of a run's memory before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import raysid
from raysid.bench.compare import recipe_network
from raysid.errors import UserError
from raysid.plan import fits
from raysid.plan.costs import network_costs, quick_costs
from raysid.plan.fits import Room, check_memory, host_memory
from raysid.plan.memory import PROCESS
from raysid.recipes import load_recipe
from tests.support.command_line import raysid as command
from tests.support.tiny_run import BATCH, NETWORK, run_of, tiny_config, tiny_teacher, write_recipe

GPUS = {f"resources__{role}__num_gpus": 1.0 for role in ("teacher", "fake_score", "generator")}


def test_a_run_whose_weights_alone_do_not_fit_is_refused(tmp_path: Path) -> None:
    config = tiny_config("teacher", tmp_path, placement="local")
    weights = 10 * 4 * network_costs(NETWORK).parameters
    with pytest.raises(
        UserError, match=r"does not fit: this machine has 0\.0 GB, and weights, gradients and optim"
    ):
        check_memory(config, NETWORK, [Room("cpu", weights - 1)])
    assert len(check_memory(config, NETWORK, [Room("cpu", weights + PROCESS)])) == 1  # no room for graphs
    assert check_memory(config, NETWORK, [Room("cpu", 24e9)]) == []
    assert check_memory(config, NETWORK, [Room("cuda", 1.0)]) == []  # no role computes there


def test_processes_on_one_device_are_added_up_if_no_other_can_come(tmp_path: Path) -> None:
    config = tiny_config("teacher", tmp_path, **GPUS)
    largest = 5 * 4 * network_costs(NETWORK).parameters
    assert "GPU has" in check_memory(config, NETWORK, [Room("cuda", largest, None)])[0]
    assert "each of 3 GPUs has" in check_memory(config, NETWORK, [Room("cuda", largest, 3)])[0]
    with pytest.raises(UserError, match=r"in 3 processes, the largest process"):
        check_memory(config, NETWORK, [Room("cuda", largest, 1)])
    few = config.model_copy(
        update={"compute": config.compute.model_copy(update={"activation_checkpointing": True})}
    )
    assert check_memory(few, NETWORK, [Room("cuda", largest, 3)]) == []  # whose graphs are not planned


def test_the_quick_count_has_the_graphs_of_the_full_one() -> None:
    quick, full = quick_costs(NETWORK, None, "bf16"), network_costs(NETWORK)
    assert quick.parameters == full.parameters and quick.conditional == full.conditional
    assert quick.graph("bf16").learn == full.graph("bf16").learn >= full.graph("bf16").pull


@pytest.mark.parametrize("recipe", ["imagenet64-sida", "ffhq64-sida"])
def test_a_packaged_recipe_fits_gpus_of_80_gb(recipe: str) -> None:
    config = load_recipe(recipe, {}, kind="distill")
    network = recipe_network(config)
    assert network is not None
    assert check_memory(config, network, [Room("cuda", 80e9, 3)]) == []
    larger = config.model_copy(update={"microbatch_size": 2 * config.microbatch})
    (warning,) = check_memory(larger, network, [Room("cuda", 80e9, 3)])
    assert f"at microbatches of {larger.microbatch}; lower microbatch_size" in warning


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = host_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(fits, "CGROUP", limit)
    for text, expected in (("max\n", None), ("1000\n", 1000.0)):
        limit.write_text(text)
        assert host_memory() == (expected or max(whole, host_memory()))


def test_the_command_refuses_before_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path, placement="local")
    monkeypatch.setattr(fits, "host_memory", lambda: 1000.0)
    done = command("distill", write_recipe(config, tmp_path / "tiny.yaml"))
    assert done.exit_code == 2 and "this run does not fit: this machine has" in done.stderr
    assert not (run_of(config) / "run.json").exists()


def test_a_program_is_refused_and_warned_as_the_command_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path, placement="local", total_images=BATCH)
    with monkeypatch.context() as patched:
        patched.setattr(fits, "host_memory", lambda: 1000.0)
        with pytest.raises(UserError, match="this run does not fit: this machine has"):
            raysid.distill(config)
    assert not (run_of(config) / "run.json").exists()
    monkeypatch.setattr(fits, "host_memory", lambda: 10 * 4 * network_costs(NETWORK).parameters + PROCESS)
    assert raysid.distill(config).metrics["step"] == 1
    assert "warning: this run may be out of memory: this machine has" in capsys.readouterr().err
