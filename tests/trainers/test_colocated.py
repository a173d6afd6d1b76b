"""`placement: colocated`: Ray Train's workers give the results of one process, and a lost worker is restored."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raysid.config import Config
from raysid.errors import RunFailed
from raysid.roles.step import Share, microbatches
from raysid.trainers.distill import distill
from tests.support.processes import Moment, Process, errors_of, find, killing, still_running
from tests.support.run_copies import continued
from tests.support.tiny_run import (
    BATCH,
    LAST_LOSS,
    assert_same,
    assert_same_record,
    end_of,
    in_a_step,
    lines_of,
    run_of,
    step_recorded,
    tiny_config,
    write_recipe,
)

SLOW = pytest.mark.slow
WORKER = "ray::RayTrainWorker"


def colocated(teacher: str, storage: Path, workers: int = 2, **changes: Any) -> Config:
    """`tiny_config` with colocated workers."""
    return tiny_config(teacher, storage, placement="colocated", colocated__num_workers=workers, **changes)


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=SLOW)])
def test_workers_give_the_results_of_three_actors(
    whole_run: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """A whole SiDA run, two microbatches a step: same bits and same record; no files of Ray Train are left."""
    config = colocated(teacher, tmp_path, workers)
    distill(config)
    number = "2 workers" if workers == 2 else "1 worker"
    assert f"{number} of Ray Train, all networks in each" in capsys.readouterr().out
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)
    assert {path.name for path in run_of(config).iterdir()} == {path.name for path in whole_run.iterdir()}


@SLOW
@pytest.mark.parametrize("schedule", ["overlapped", "alternating"])
def test_three_workers_give_the_same_results_but_for_rounding(
    ray_cluster: None, teacher: str, tmp_path: Path, schedule: str
) -> None:
    """Shares of 8, 8 and 16 images: the batch need not divide evenly."""
    changes = {
        "microbatch_size": None,
        "schedule": schedule,
        "generator__dropout": 0.0,
        "fake_score__dropout": 0.0,
    }
    one = tiny_config(teacher, tmp_path / "one", placement="local", **changes)
    three = colocated(teacher, tmp_path / "three", 3, **changes)
    for config in (one, three):
        distill(config)
    losses = [
        [line["loss/fake_score"] for line in lines_of(run_of(config), "train")] for config in (one, three)
    ]
    assert losses[1][:3] == pytest.approx(losses[0][:3], rel=1e-3)


@SLOW
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_restored_bit_for_bit(
    whole_run: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """Ray Train restarts the workers; the run restores its newest checkpoint and reports the loss."""
    config = colocated(teacher, tmp_path, workers)
    moment = in_a_step(run_of(config), random.Random(3), last=LAST_LOSS)
    with killing(WORKER, moment) as killings:
        distill(config)
    assert killings.done == [moment.name]
    said = capsys.readouterr().err.splitlines()
    [line] = [line for line in said if line.startswith("lost a learner")]
    assert "worker" in line and "restoring all from step" in line and line.endswith("failure 1 of 3")
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert_same_record(run_of(config), whole_run)


@SLOW
def test_too_many_losses_end_the_run(ray_cluster: None, teacher: str, tmp_path: Path) -> None:
    config = colocated(teacher, tmp_path, failure__max_failures=0)
    moment = in_a_step(run_of(config), random.Random(3), last=LAST_LOSS)
    with killing(WORKER, moment), pytest.raises(RunFailed, match="max_failures = 0") as raised:
        distill(config)
    assert "\n" not in str(raised.value)


@SLOW
def test_a_run_moves_between_placements(
    whole_run: Path, whole_config: Config, teacher: str, tmp_path: Path
) -> None:
    """Begun on three actors, resumed on two workers, then in one process: the results are the same."""
    config = continued(whole_run, whole_config, tmp_path, before=9, placement="colocated")
    config = config.model_copy(
        update={
            "colocated": config.colocated.model_copy(update={"num_workers": 2}),
            "total_images": 16 * BATCH,
        }
    )
    distill(config)
    config = config.model_copy(update={"placement": "local", "total_images": whole_config.total_images})
    distill(config)
    assert_same(end_of(run_of(config)), end_of(whole_run))


@SLOW
@pytest.mark.timeout(1500)  # on a busy machine
def test_workers_grow_with_the_cluster_and_continue_with_fewer(teacher: str, tmp_path: Path) -> None:
    """A node joins and leaves during training: 1, 2 and 1 workers, and the weights of one process."""
    changes = {"total_images": 600 * BATCH, "checkpoint__every_images": 50 * BATCH}
    changes |= {"tracking__log_every_images": 20 * BATCH, "evaluation__every_images": 600 * BATCH}
    config = colocated(
        teacher,
        tmp_path,
        colocated__min_workers=1,
        colocated__elastic_resize_monitor_interval_s=3,
        resources__worker={"num_cpus": 0.5, "resources": {"slot": 1.0}},
        **changes,
    )
    recipe = write_recipe(config, tmp_path / "elastic.yaml")
    output = errors_of("tests.trainers.elastic_run", recipe, run_of(config), seconds=1000)
    change = "Ray Train changes its workers: 1 -> 2"
    saved = re.search(rf"{change}: writing a checkpoint of step ([\d,]+)", output)
    assert saved and f"{change}; restoring them from step {saved[1]}\n" in output  # nothing is repeated
    assert "lost a learner (worker" in output
    local = tiny_config(teacher, tmp_path / "local", placement="local", **changes)
    distill(local)
    assert_same(end_of(run_of(config)), end_of(run_of(local)))


@SLOW
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_hangs_counts_as_lost(
    whole_run: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """Its process answers nothing, not even Ray's request to end: the run replaces all workers and loses no bit."""
    config = colocated(teacher, tmp_path, workers, failure__hang_timeout_s=30.0)
    hung: list[int] = []
    moment = Moment("step 6", lambda began: step_recorded(run_of(config), began) >= 6)

    def stop() -> None:
        while not moment.come(0.0):
            time.sleep(0.02)
        hung.append(find(WORKER)[0])
        os.kill(hung[0], signal.SIGSTOP)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    distill(config)
    thread.join()
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lost a learner")]
    assert "(failure.hang_timeout_s)" in line and line.endswith("failure 1 of 3")
    assert_same(end_of(run_of(config)), end_of(whole_run))
    assert not still_running([Process(hung[0], 0, "")])


def test_workers_share_a_batch_without_a_gap(teacher: str, tmp_path: Path) -> None:
    """Groups of the discriminator are not split; each image is in exactly one share."""
    for workers in (1, 2, 3, 4):
        config = colocated(teacher, tmp_path, workers, microbatch_size=16)
        cut = [at for rank in range(workers) for at in microbatches(config, 5, Share(rank, workers))]
        assert [at.start for at in cut] == [0, *(at.start + at.count for at in cut[:-1])]
        assert cut[-1].start + cut[-1].count == BATCH
        assert all(at.start % 8 == at.count % 8 == 0 and at.count <= 16 for at in cut)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"colocated__num_workers": 5},
            "batch_size 32 in groups of 8 has no share for each of colocated.num_workers 5",
        ),
        ({"generator__num_workers": 2}, "all roles in each worker"),
        ({"teacher__num_replicas": 2}, "give colocated.num_workers"),
        ({"colocated__min_workers": 3}, "min_workers 3 is more than num_workers 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    teacher: str, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        tiny_config(teacher, tmp_path, **{"placement": "colocated", "colocated__num_workers": 2} | changes)
