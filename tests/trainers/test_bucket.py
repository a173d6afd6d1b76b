"""Runs in a bucket, with local servers of Google Cloud Storage and S3 and connections that often fail."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
from upath import UPath

from raysid.config import Config
from raysid.networks.files import WEIGHTS
from raysid.recipes import config_yaml
from raysid.roles.protocols import Roles
from raysid.roles.step import Share, StepResult, take_step
from raysid.run.checkpoint import MANIFEST
from raysid.run.metrics import read_metrics
from raysid.storage import children, read_whole
from raysid.trainers.distill import distill
from tests.support.bucket_server import (
    BUCKET,
    FATES,
    Connection,
    bucket_environment,
    bucket_server,
    in_bucket,
    s3_server,
)
from tests.support.command_line import raysid
from tests.support.picture_files import digit_pictures, write_folder, write_parquet
from tests.support.processes import Command, Moment, wait_until
from tests.support.tensorboard_server import tensorboard
from tests.support.tiny_pretrain import tiny_pretrain
from tests.support.tiny_run import (
    BATCH,
    STEPS,
    assert_ends_as_local,
    assert_same,
    run_of,
    tiny_config,
    tiny_teacher,
    write_recipe,
)


@dataclass(frozen=True)
class BucketRun:
    """A finished run. All but the `good` one were killed once and then resumed by the same command."""

    url: str
    config: Config
    run: UPath
    server: str
    connection: Connection
    bad: bool
    killed: bool
    output: str
    refused: str


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket_server() as address:
        yield address


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


KINDS = ["good", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bad", "colocated", "bad-s3"))]


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketRun]:
    protocol = "s3" if "s3" in request.param else "gs"
    server = request.getfixturevalue("s3" if protocol == "s3" else "server")
    folder, storage = tmp_path_factory.mktemp("bucket"), f"{protocol}://{BUCKET}/{request.param}"
    bad = "bad" in request.param
    connection = Connection(server, bad=bad)
    changes = {"placement": "colocated", "colocated__num_workers": 2} if request.param == "colocated" else {}
    config = tiny_config(tiny_teacher(folder / "teacher"), folder, **changes)
    config = config.model_copy(update={"storage": storage})
    recipe = write_recipe(config, folder / "tiny.yaml")
    run = in_bucket(server, f"{storage}/tiny")
    second = run / "checkpoints" / "step-00000008" / MANIFEST
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket_environment(connection.address, protocol).items():
            patch.setenv(name, value)
        if killed := request.param != "good":
            first = Command("distill", recipe, log=folder / "first.log")
            first.kill_when(Moment("a checkpoint", lambda _: second.exists()), seconds=200)
        last = Command("distill", recipe, log=folder / "last.log")
        refused = second_owner(last, recipe, folder / "refused.log")
        assert last.wait(300) == 0, last.output
    yield BucketRun(f"{storage}/tiny", config, run, server, connection, bad, killed, last.output, refused)
    connection.close()


def second_owner(owner: Command, recipe: Path, log: Path) -> str:
    """The output of a second process that starts the same run while its owner is running."""
    owner.wait_for("real images of")
    other = Command("distill", recipe, log=log)
    assert other.wait(120) == 2, other.output
    return other.output


def test_the_weights_are_those_of_an_undisturbed_run_in_a_folder(finished: BucketRun, tmp_path: Path) -> None:
    if finished.bad:
        assert finished.connection.met.keys() == FATES.keys()
    assert (f"resuming from {finished.url}/checkpoints/step-" in finished.output) == finished.killed
    assert_ends_as_local(finished.run, finished.config, tmp_path)


def test_nothing_recorded_is_lost_or_there_twice(finished: BucketRun) -> None:
    entries = read_metrics(finished.run)
    for kind, steps in {"train": [*range(2, STEPS + 1, 2)], "evaluation": [0, 8, 16, STEPS]}.items():
        assert [entry["step"] for entry in entries if entry["kind"] == kind] == steps
    assert entries[-1]["kind"] == "table"
    assert sorted(path.name for path in (finished.run / "samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (0, 8, 16, STEPS)
    ]


def test_it_has_one_owner_at_a_time_and_none_at_its_end(finished: BucketRun) -> None:
    assert f"{finished.url} is in use by process " in finished.refused
    assert not (finished.run / ".lock").exists()


def test_the_commands_read_a_run_in_a_bucket(
    finished: BucketRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.url
    for name, value in bucket_environment(finished.server, finished.run.protocol).items():
        monkeypatch.setenv(name, value)

    def output_of(*arguments: object) -> str:
        done = raysid(*arguments)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    assert output_of("watch", run).startswith(f"{run}: finished\n")
    picture = tmp_path / "grid.png"
    output_of("sample", run, "--which", "best", "--out", str(picture))
    assert picture.stat().st_size > 1000
    assert "Fréchet distance" in output_of("evaluate", run, "--num-samples", "100")
    output_of("export", run, "--to", "safetensors", "--out", str(tmp_path / "exported"))
    theirs = safetensors.torch.load(read_whole(finished.run / "generator" / WEIGHTS))
    assert_same(safetensors.torch.load_file(tmp_path / "exported" / WEIGHTS), theirs)


def test_tensorboard_reads_a_run_in_a_bucket(finished: BucketRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket_environment(finished.server, finished.run.protocol).items():
        monkeypatch.setenv(name, value)
    recorded = [
        (e["images"], e["frechet_distance"]) for e in read_metrics(finished.run) if e["kind"] == "evaluation"
    ]
    with tensorboard(finished.url, fast=False) as board:
        board.wait_until(lambda: "eval/frechet_distance" in board.get("scalars/tags").get("tensorboard", {}))
        # TensorBoard shows the first points while it reads the others.
        board.wait_until(lambda: len(board.scalars("eval/frechet_distance", "tensorboard")) >= len(recorded))
        shown = board.scalars("eval/frechet_distance", "tensorboard")
        assert shown == [(images, pytest.approx(value)) for images, value in recorded]
        assert "eval/samples" in board.get("images/tags")["tensorboard"]


def test_training_continues_while_a_checkpoint_is_written(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's files are held back until two more steps are done."""
    connection = Connection(server, bad=False)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", connection.address)
    taken: list[int] = []
    held: list[str] = []

    def noted(roles: Roles, config: Config, step: int, share: Share) -> StepResult:
        taken.append(step)
        return take_step(roles, config, step, share)

    def hold(address: str, body: bytes) -> None:
        if found := re.search(rb"checkpoints/step-0000(0004/\w+)", address.encode() + body):
            wait_until(lambda: taken[-1] >= 5, 60, "two more steps")
            held.append(found[1].decode())

    monkeypatch.setattr("raysid.actors.local.take_step", noted)
    connection.before = hold
    config = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path, "held", placement="local")
    result = distill(config.model_copy(update={"storage": f"gs://{BUCKET}/held"}))
    assert result.checkpoint is not None and result.checkpoint.endswith(f"step-{STEPS:08d}")
    assert {"0004/fake_score", "0004/generator"} <= set(held)
    connection.close()


def test_a_longer_run_resumes_in_a_bucket(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    storage, teacher = f"gs://{BUCKET}/longer", tiny_teacher(tmp_path / "teacher")
    for steps in (6, 9):
        changes = {"placement": "local", "lr_schedule__decay": "constant", "total_images": steps * BATCH}
        config = tiny_config(teacher, tmp_path, **changes)
        result = distill(config.model_copy(update={"storage": storage}))
    assert f"resuming from {storage}/tiny/checkpoints/step-00000006, step 6\n" in capsys.readouterr().err
    run = in_bucket(server, result.path)
    assert_ends_as_local(run, config, tmp_path / "local", 9)
    recorded = read_metrics(run)
    assert [entry["step"] for entry in recorded if entry["kind"] == "train"] == [2, 4, 6, 8, 9]


IMAGES, SOME_STEPS = 150, 6  # a little more than an epoch


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["gs", "s3"])
def test_a_run_on_images_converted_over_a_bad_connection_is_the_one_on_a_folder(
    protocol: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = request.getfixturevalue("s3" if protocol == "s3" else "server")
    connection = Connection(server, bad=True)
    for name, value in bucket_environment(connection.address, protocol).items():
        monkeypatch.setenv(name, value)
    folder = write_folder(tmp_path / "images", digit_pictures(IMAGES))
    images = f"{protocol}://{BUCKET}/some images"
    converted = Command("data", "convert", folder, images, log=tmp_path / "convert.log")
    assert converted.wait(200) == 0, converted.output
    config = tiny_config(
        tiny_teacher(tmp_path / "teacher"),
        tmp_path,
        data__source=folder,
        data__shuffle_window=40,  # smaller than the set: shards are read in parts, and again in each epoch
        total_images=SOME_STEPS * BATCH,
    )
    recipe = write_recipe(config, tmp_path / "tiny.yaml")
    ran = Command("distill", recipe, "--data.source", images, log=tmp_path / "run.log")
    assert ran.wait(300) == 0, ran.output
    assert_ends_as_local(run_of(config), config, tmp_path / "local", SOME_STEPS)
    assert connection.met["503"] > 0
    connection.close()


@pytest.fixture
def going(server: str, tmp_path: Path) -> Iterator[tuple[Connection, str, str]]:
    """A connection that fails after GONE_AFTER requests for images, the images' URL, and a local copy of them.

    By then the images of a dozen epochs have been read: Ray Data reads a thousand images at a time, and several
    thousand ahead.
    """
    connection = Connection(server, bad=False)
    local = write_parquet(tmp_path / "images.parquet", digit_pictures(IMAGES), group=50)
    images = f"gs://{BUCKET}/{tmp_path.name}.parquet"
    in_bucket(server, images).write_bytes(Path(local).read_bytes())
    read = 0

    def count(address: str, body: bytes) -> None:
        nonlocal read
        read += ".parquet" in address
        if read > GONE_AFTER:
            raise ConnectionError("gone")

    connection.before = count
    yield connection, images, local
    connection.close()


GONE_AFTER = 200
MANY_STEPS = 300
LITTLE = {
    "data__shuffle_window": 40,
    "checkpoint__every_images": 100_000,
    "evaluation__every_images": 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["split", "colocated"])
def test_a_run_that_loses_its_images_writes_a_checkpoint_and_resumes_when_they_are_back(
    placement: str,
    going: tuple[Connection, str, str],
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, images, local = going
    config = tiny_config(
        tiny_teacher(tmp_path / "teacher"),
        tmp_path,
        placement=placement,
        data__source=local,
        total_images=MANY_STEPS * BATCH,
        **LITTLE,
    )
    recipe = write_recipe(config, tmp_path / "tiny.yaml")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", connection.address)
    first = Command("distill", recipe, "--data.source", images, log=tmp_path / "first.log")
    assert first.wait(400) == 1, first.output
    said = re.search(
        rf"raysid: error: [^\n]*{images}[^\n]*; run the same command to resume; checkpoint of step (\d+) written\n",
        first.output,
    )
    assert said and int(said[1]) > 0, first.output
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    again = Command("distill", recipe, "--data.source", images, log=tmp_path / "again.log")
    assert again.wait(300) == 0, again.output
    assert f"resuming from {run_of(config)}/checkpoints/step-{int(said[1]):08d}" in again.output
    assert_ends_as_local(run_of(config), config, tmp_path / "local", MANY_STEPS)


@pytest.mark.slow
def test_a_teacher_that_loses_its_images_resumes(
    going: tuple[Connection, str, str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, images, _ = going
    recipe = tmp_path / "teacher.yaml"
    data = {"source": images, "shuffle_window": 40}
    teacher = tiny_pretrain(tmp_path, data=data, total_images=20_000, checkpoint={"every_images": 1_000_000})
    recipe.write_text(config_yaml(teacher))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", connection.address)
    first = Command("pretrain", recipe, log=tmp_path / "first.log")
    assert first.wait(400) == 1, first.output
    said = re.search(
        rf"raysid: error: training the teacher stopped: data.source {images} cannot be read: [^\n;]*; run the "
        r"same command to resume from the last whole checkpoint, of step (\d+)\n",
        first.output,
    )
    assert said and int(said[1]) > 0, first.output
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    again = Command("pretrain", recipe, log=tmp_path / "again.log")
    assert again.wait(300) == 0, again.output
    assert f", step {int(said[1]):,}\n" in again.output.replace("\r", "\n")


def test_a_bucket_that_does_not_exist_is_refused_in_one_line(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    config = tiny_config(tiny_teacher(tmp_path / "teacher"), tmp_path)
    storage = "gs://nobody-has-this/runs"
    recipe = write_recipe(config.model_copy(update={"storage": storage}), tmp_path / "tiny.yaml")
    done = raysid("distill", recipe)
    assert (done.exit_code, done.stdout) == (2, "")
    line = rf"raysid: error: {storage}/tiny/[^ \n]+ cannot be written: [^\n]+\n"
    assert re.fullmatch(line, done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["gs", "s3"])
def test_a_teacher_and_a_search_lie_in_a_bucket_too(
    protocol: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train and Ray Tune keep their state in the bucket; the same command finishes a killed search."""
    server = request.getfixturevalue("s3" if protocol == "s3" else "server")
    for name, value in bucket_environment(server, protocol).items():
        monkeypatch.setenv(name, value)
    storage = f"{protocol}://{BUCKET}/search"
    teacher = tiny_pretrain(tmp_path).model_copy(update={"storage": storage})
    (tmp_path / "teacher.yaml").write_text(config_yaml(teacher))
    trained = Command("pretrain", tmp_path / "teacher.yaml", log=tmp_path / "teacher.log")
    assert trained.wait(200) == 0, trained.output
    assert f"Teacher: {storage}/teachers/" in trained.output
    path = trained.output.split("Teacher: ")[1].split()[0]

    recipe = write_recipe(tiny_config(path, tmp_path), tmp_path / "tiny.yaml")
    search = {
        "kind": "tune",
        "storage": storage,
        "recipe": str(recipe),
        "space": [{"fields": ["method.alpha"], "grid": [0.5, 1.0]}],
        "scheduler": {"name": "none"},
        "max_concurrent_trials": 1,
    }
    (tmp_path / "search.yaml").write_text(json.dumps(search))  # JSON is YAML
    trials = in_bucket(server, f"{storage}/search/trials")

    def second_runs(_: float) -> bool:
        runs = [read_metrics(run) for run in children(trials)]
        return sorted(any(e["kind"] == "table" for e in run) for run in runs) == [False, True]

    first = Command("tune", tmp_path / "search.yaml", log=tmp_path / "first.log")
    first.kill_when(Moment("the second trial", second_runs), seconds=300)
    again = Command("tune", tmp_path / "search.yaml", log=tmp_path / "again.log")
    assert again.wait(300) == 0, again.output
    table = json.loads(read_whole(trials.parent / "trials.json"))
    assert {trial["status"] for trial in table} == {"finished"} and len(table) == 2
    assert (trials.parent / "plots" / "method.alpha.png").exists()
    best = Command("distill", trials.parent / "best.yaml", log=tmp_path / "best.log")
    assert best.wait(200) == 0, best.output
