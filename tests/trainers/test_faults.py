"""Faults that leave no dead process: an accelerator fails, a process hangs. Each costs a process, not the run."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from raysid.config import Config
from raysid.errors import DeviceFailed, LearnerLost, RunFailed
from raysid.trainers.distill import distill
from raysid.trainers.distill import run as run_module
from tests.support import faulty
from tests.support.processes import find, kill
from tests.support.tiny_run import (
    STEPS,
    assert_same,
    end_of,
    learner_states,
    run_of,
    step_recorded,
    tiny_config,
)

BATCH = 16
SMALL = {
    "data__source": None,
    "method__adversarial": None,
    "teacher__path": None,
    "teacher__factory": "tests.support.faulty:make",
    "total_images": 12 * BATCH,
    "batch_size": BATCH,
    "microbatch_size": BATCH // 2,
    "generator__dropout": None,
    "fake_score__dropout": None,
    "checkpoint__every_images": 4 * BATCH,
    "checkpoint__keep": 100,
    "tracking__log_every_images": BATCH,
}


@pytest.fixture(autouse=True)
def faults() -> Iterator[Path]:
    """The folder of the faults to come, empty."""
    shutil.rmtree(faulty.FAULTS, ignore_errors=True)
    faulty.FAULTS.mkdir()
    yield faulty.FAULTS
    shutil.rmtree(faulty.FAULTS)


def points_config(storage: Path, **changes: Any) -> Config:
    return tiny_config("", storage, **SMALL | changes)


def last_state(config: Config) -> dict[str, Any]:
    return learner_states(run_of(config) / "checkpoints" / "step-00000012")


@contextmanager
def at_step(run: Path, step: int, action: Any) -> Iterator[list[Any]]:
    """Do something once, in a thread, when a run has recorded a step; yields the list of what it returned."""
    done: list[Any] = []
    ended = threading.Event()

    def watch() -> None:
        while step_recorded(run) < step:
            if ended.wait(0.02):
                return
        done.append(action())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "role", ["GeneratorActor", pytest.param("FakeScoreActor", marks=pytest.mark.slow), "TeacherActor"]
)
def test_a_failed_accelerator_costs_its_process_and_not_the_run(
    ray_cluster: None, tmp_path: Path, faults: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = points_config(tmp_path, teacher__num_replicas=2, placement="split")
    distill(whole := points_config(tmp_path / "whole", placement="local"))
    with at_step(run_of(config), 6, lambda: (faults / role).touch()) as done:
        distill(config)
    assert done and not [*faults.iterdir()]
    assert_same(last_state(config), last_state(whole))
    said = capsys.readouterr().err
    restored = [line for line in said.splitlines() if line.startswith("lost a learner")]
    if role == "TeacherActor":
        assert not restored
    else:
        assert len(restored) == 1 and faulty.TEXT in restored[0]


def test_a_failed_accelerator_in_one_process_is_one_line(
    tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no other process to take over; the run says where to resume."""
    config = points_config(tmp_path, placement="local")
    name = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2]
    with at_step(run_of(config), 6, lambda: (faults / name).touch()), pytest.raises(RunFailed) as failed:
        distill(config)
    assert faulty.TEXT in str(failed.value) and "run the same command to resume" in str(failed.value)
    assert "\n" not in str(failed.value)
    distill(config)


def stop(title: str) -> int:
    """Stop the first process with this title; it does not end, and does not answer."""
    pid = find(title)[0]
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.parametrize(
    "role", [pytest.param("ray::GeneratorActor", marks=pytest.mark.slow), "ray::TeacherActor"]
)
def test_a_process_that_hangs_counts_as_lost(
    ray_cluster: None,
    teacher: str,
    whole_run: Path,
    tmp_path: Path,
    role: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(
        teacher, tmp_path, teacher__num_replicas=2, placement="split", failure__hang_timeout_s=20.0
    )
    with at_step(run_of(config), 6, lambda: stop(role)) as stopped:
        distill(config)
    assert stopped
    assert_same(end_of(run_of(config)), end_of(whole_run))
    said = capsys.readouterr().err
    assert "(failure.hang_timeout_s)" in said
    with suppress(ProcessLookupError):
        kill(stopped[0])


@pytest.mark.parametrize("forward", [True, False], ids=["with progress", "without progress"])
def test_losses_count_since_the_newest_checkpoint(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, forward: bool
) -> None:
    """Weeks of training lose more learners than `max_failures`; a run that gets no further must still end."""
    train, losses = run_module.train, []

    def losing(session: Any, start: Any, *others: Any) -> None:
        at = start.step if start else 0
        if len(losses) < 5:
            losses.append(at)
            if forward:  # as far as the next checkpoint
                session = session.__class__(**vars(session) | {"config": _until(session.config, at + 4)})
                train(session, start, *others)
            raise LearnerLost("GeneratorActor: its process died")
        train(session, start, *others)

    monkeypatch.setattr(run_module, "train", losing)
    config = tiny_config(teacher, tmp_path, placement="local", failure__max_failures=1)
    if forward:
        distill(config)
        assert losses == [0, 4, 8, 12, 16] and step_recorded(run_of(config)) == STEPS
    else:
        with pytest.raises(RunFailed, match=r"failure.max_failures = 1 times since the newest checkpoint"):
            distill(config)
        assert losses == [0, 0]


def _until(config: Config, step: int) -> Config:
    """The config of a run that ends after some steps."""
    return config.model_copy(update={"total_images": step * config.batch_size})


def test_too_little_memory_is_no_fault_of_the_device() -> None:
    """Another process would have as little; the message says what to change."""
    import torch

    from raysid.roles.faults import describe_fault, is_device_fault

    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
    assert not is_device_fault(memory)
    assert "\n" not in describe_fault(memory) and "lower microbatch_size" in describe_fault(memory)
    for fault in (
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
    ):
        assert is_device_fault(fault)
    assert not is_device_fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert issubclass(DeviceFailed, LearnerLost)
