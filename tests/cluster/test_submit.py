"""Jobs of a cluster: submitted, followed, stopped, resumed; errors of submission."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raysid.cluster.submit import JobServer
from raysid.config import Config
from raysid.run.checkpoint import Checkpoints
from tests.support.processes import running, wait_until
from tests.support.tiny_run import (
    BATCH,
    assert_ends_as_local,
    run_of,
    step_recorded,
    tiny_config,
    tiny_teacher,
    write_recipe,
)

ROOT = Path(__file__).parents[2]
NEVER = 1_000_000


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny teacher's folder."""
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))


def raysid(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """A `raysid` command, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "raysid", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )


def ray_command(output: str, purpose: str) -> str:
    """Run the Ray command that `submit` printed for a purpose; its output."""
    (line,) = re.findall(rf"^  {purpose} +(.*ray job .*)$", output, re.MULTILINE)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(line, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def output_of(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a command's end; its output."""
    output, _ = process.communicate(timeout=seconds)
    return output


def long_config(teacher: str, storage: Path) -> Config:
    """A run without an end, with a checkpoint at its start only."""
    return tiny_config(
        teacher,
        storage,
        total_images=NEVER,
        evaluation__every_images=NEVER,
        checkpoint__every_images=NEVER,
    )


def test_a_submitted_run_is_followed_to_its_end(cluster: str, teacher: str, tmp_path: Path) -> None:
    """Its log is printed, its weights are those of a local run, and Ray's commands find the job."""
    config = tiny_config(teacher, tmp_path)
    recipe = write_recipe(config, tmp_path / "mine.yaml")
    process = raysid("submit", "distill", recipe, "--address", cluster)
    output = output_of(process)
    assert process.returncode == 0, output
    (job,) = re.findall(rf"^job (\S+) at {cluster}$", output, re.MULTILINE)
    assert re.search(r"^distill 100% \| step 20/20", output, re.MULTILINE)
    assert f"job {job}: succeeded" in output
    assert_ends_as_local(run_of(config), config, tmp_path / "local")

    assert re.search(rf"'{job}' succeeded", ray_command(output, "status"))
    assert "distill 100%" in ray_command(output, "log")


@pytest.mark.slow
def test_a_stopped_job_writes_a_checkpoint_and_resumes(cluster: str, teacher: str, tmp_path: Path) -> None:
    """`ray job stop` stops it; the same command, with an end, resumes it."""
    config = long_config(teacher, tmp_path)
    recipe = write_recipe(config, tmp_path / "mine.yaml")
    submit = ("submit", "distill", recipe, "--address", cluster)
    output = output_of(raysid(*submit, "--no-follow"))
    job = re.findall(r"^job (\S+) at", output, re.MULTILINE)[0]
    wait_until(lambda: step_recorded(run_of(config)) >= 6, 120, "step 6")
    assert f"'{job}' was stopped" in ray_command(output, "stop")
    newest = Checkpoints(run_of(config) / "checkpoints").newest()  # type: ignore[arg-type]
    assert newest is not None and newest.step >= 6
    assert "stopped by SIGTERM, checkpoint of step" in ray_command(output, "log")
    wait_until(lambda: not actors_of(cluster), 60, "the end of the job's actors")

    steps = newest.step + 4
    output = output_of(raysid(*submit, "--total_images", str(steps * BATCH)))
    assert f"step {newest.step:,}" in output and "resuming from" in output
    assert_ends_as_local(run_of(config), config, tmp_path / "local", steps)


def actors_of(cluster: str) -> list[str]:
    """The roles' processes on the test's cluster."""
    names = ("ray::FakeScoreActor", "ray::GeneratorActor", "ray::TeacherActor")
    nodes = {p.pid for p in running() if "raylet" in p.title and f"/tmp/raysid-test-{os.getpid()}" in p.title}
    return [p.title for p in running() if p.title.startswith(names) and p.parent in nodes]


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_reports_it(cluster: str, teacher: str, tmp_path: Path) -> None:
    config = long_config(teacher, tmp_path)
    process = raysid("submit", "distill", write_recipe(config, tmp_path / "mine.yaml"), "--address", cluster)
    wait_until(lambda: step_recorded(run_of(config)) >= 2, 120, "step 2")
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    job = re.findall(r"^job (\S+) at", output, re.MULTILINE)[0]
    assert f"job {job} is still running: the commands above follow and stop it" in output
    step = step_recorded(run_of(config))
    wait_until(lambda: step_recorded(run_of(config)) > step, 60, "another step")
    assert JobServer(cluster).wait(job, 0) == "RUNNING"
    ray_command(output, "stop")
    assert JobServer(cluster).wait(job, 120) == "STOPPED"


@pytest.mark.slow
def test_a_failed_job_is_reported(cluster: str, tmp_path: Path) -> None:
    recipe = write_recipe(tiny_config(str(tmp_path / "nowhere"), tmp_path), tmp_path / "mine.yaml")
    process = raysid("submit", "distill", recipe, "--address", cluster)
    output = output_of(process)
    assert process.returncode == 1
    assert re.search(r"^raysid: error: .*no teacher at .*nowhere", output, re.MULTILINE)
    assert re.search(r"^raysid: error: job \S+ failed; its log says why$", output, re.MULTILINE)


@pytest.mark.slow
def test_the_entry_points_run_under_rays_own_command(cluster: str, teacher: str, tmp_path: Path) -> None:
    """`ray job submit --working-dir . -- python jobs/distill.py RECIPE`."""
    config = tiny_config(teacher, tmp_path)
    recipe = write_recipe(config, tmp_path / "mine.yaml")
    command = [
        Path(sys.executable).parent / "ray",
        "job",
        "submit",
        "--address",
        cluster,
        "--working-dir",
        ".",
    ]
    command += ["--", "python", "jobs/distill.py", recipe]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_ends_as_local(run_of(config), config, tmp_path / "local")


def one_line(process: subprocess.Popen[str]) -> str:
    """The one line of a refused command, which exits with code 2."""
    output = output_of(process, 60)
    assert process.returncode == 2 and output.count("\n") == 1, output
    return output


def test_without_the_token_the_error_says_where_to_put_it(cluster: str, tmp_path: Path) -> None:
    for mode in ({}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        submit = ("submit", "evaluate", tmp_path, "--address", cluster)
        line = one_line(raysid(*submit, HOME=str(tmp_path), **mode))
        assert "this cluster asks for its token: put it into ~/.ray/auth_token" in line


def test_an_impossible_submission_is_refused(cluster: str, teacher: str, tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:1"
    evaluate = ("submit", "evaluate", tmp_path, "--address")
    assert f"no Ray cluster answers at {nobody}" in one_line(raysid(*evaluate, nobody))
    assert "is not a job server's" in one_line(raysid(*evaluate, "127.0.0.1:6379"))
    submit = ("submit", "distill", "digits-sid", "--address", cluster)
    assert "storage ./runs would lie in the job's temporary folder" in one_line(raysid(*submit))
    shared = (*submit, "--storage", str(tmp_path))
    for setting, path in (("data.source", "images.zip"), ("generator.path", "runs/sid")):
        assert f"{setting} {path} would lie in" in one_line(raysid(*shared, f"--{setting}", path))
    assert "did you mean" in one_line(raysid("submit", "distill", "digit-sid", "--address", cluster))
    recipe = write_recipe(tiny_config(teacher, tmp_path), tmp_path / "mine.yaml")
    assert "raysid submit --address" in one_line(raysid("distill", recipe, "--address", cluster))


@pytest.mark.slow
def test_a_storage_that_a_learner_does_not_share_is_refused(
    cluster: str, teacher: str, tmp_path: Path
) -> None:
    """A learner is on a node with an empty folder at the path of the driver's storage."""
    storage = tmp_path / "storage"
    storage.mkdir()
    own = Path(f"/tmp/raysid-test-{os.getpid()}")
    gcs = yaml.safe_load((own / "autoscaler.yaml").read_text())["provider"]["gcs_address"]
    ray = Path(sys.executable).parent / "ray"
    start = f"{ray} start --block --address={gcs} --num-cpus=1 --temp-dir={own}/elsewhere"
    hide = f"mount -t tmpfs none {storage} && exec {start} --resources='{{\"elsewhere\": 1}}'"
    node = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", hide],
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
    )
    try:
        config = tiny_config(teacher, storage, resources__generator__resources={"elsewhere": 1.0})
        process = raysid(
            "submit", "distill", write_recipe(config, tmp_path / "mine.yaml"), "--address", cluster
        )
        output = output_of(process)
        assert process.returncode == 1
        line = r"^raysid: error: \S+ is not shared: the learner on node [\d.]+ does not see what the driver writes"
        assert re.search(line, output, re.MULTILINE), output
    finally:
        node.terminate()
        node.wait(30)


def test_a_signal_ends_a_run_with_a_checkpoint(teacher: str, tmp_path: Path) -> None:
    """SIGTERM, as from Slurm or Kubernetes."""
    config = long_config(teacher, tmp_path)
    recipe = write_recipe(config, tmp_path / "mine.yaml")
    process = raysid("distill", recipe, "--placement", "local")
    wait_until(lambda: step_recorded(run_of(config)) >= 4, 120, "step 4")
    process.send_signal(signal.SIGTERM)
    output = output_of(process, seconds=60)
    assert process.returncode == 128 + signal.SIGTERM
    newest = Checkpoints(run_of(config) / "checkpoints").newest()  # type: ignore[arg-type]
    assert newest is not None and newest.step >= 4
    assert (
        f"stopped by SIGTERM, checkpoint of step {newest.step:,} written; run the same command to resume"
        in output
    )
    assert_ends_as_local(run_of(config), config, tmp_path / "local", newest.step)
