"""The check of the resources that roles ask for, before any of them starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raysid.actors import requirements
from raysid.actors.requirements import check_resources, role_resources
from raysid.config import RoleResources
from raysid.errors import UserError
from raysid.ray_internals import autoscales
from raysid.trainers.distill import distill
from raysid.trainers.pretrain import pretrain
from tests.support.processes import wait_until
from tests.support.tiny_pretrain import tiny_pretrain
from tests.support.tiny_run import run_of, tiny_config, tiny_teacher


def test_a_gpu_is_refused_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    teacher = tiny_teacher(tmp_path / "teacher")
    config = tiny_config(teacher, tmp_path, placement="local", resources__generator__num_gpus=1.0)
    with pytest.raises(
        UserError, match=r"resources\.generator\.num_gpus is 1, and this machine has no CUDA device"
    ):
        distill(config)
    assert not (run_of(config) / "run.json").exists()


def test_a_second_gpu_of_a_role_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    lines: list[str] = []
    check_resources({"resources.teacher": RoleResources(num_gpus=2)}, True, lines.append)
    check_resources({"resources.generator": RoleResources(num_gpus=1)}, True, lines.append)
    assert lines == [
        "warning: resources.teacher.num_gpus is 2, and a role computes on one device: the others stay idle; give 1"
    ]


def test_a_role_larger_than_any_node_is_refused_unless_nodes_may_come(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: not autoscales(), 60, "the monitor's report")
    lines: list[str] = []
    config = tiny_config("teacher", tmp_path, resources__generator__num_cpus=64.0)
    with pytest.raises(
        UserError,
        match=r"resources\.generator can never be placed: no node has 64 CPU \(the largest has 2\); lower",
    ):
        check_resources(role_resources(config), False, lines.append)
    for lacking in (RoleResources(num_gpus=1), RoleResources(resources={"learner": 1.0})):
        with pytest.raises(UserError, match="none has any"):
            check_resources({"resources.worker": lacking}, False, lines.append)
    assert lines == []
    with pytest.raises(UserError, match="worker_resources can never be placed: no node has 1 GPU"):
        pretrain(tiny_pretrain(tmp_path, worker_resources={"num_gpus": 1.0}))
    monkeypatch.setattr(requirements, "may_grow", lambda: True)
    check_resources(role_resources(config), False, lines.append)
    assert len(lines) == 1 and "waiting for the autoscaler" in lines[0]
