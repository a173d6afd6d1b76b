"""Bad input, as a user meets it: exit code 2 and one line at once; nothing is started and nothing is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from raysid.errors import UserError
from raysid.networks.files import weights_digest
from raysid.recipes import load_recipe
from raysid.roles.state_files import write_state
from raysid.run.folder import RunFolder
from tests.support.command_line import raysid
from tests.support.tiny_networks import digits_network, save_generator, save_teacher, tiny_network
from tests.support.tiny_run import tiny_config, write_recipe

SECONDS = 60


@dataclass(frozen=True)
class Desk:
    """A folder with a storage, a teacher, a recipe of SiDA, and a folder in which Ray would leave files.

    Attributes:
        root: the folder that holds the rest; commands run in it.
        storage: the folder of runs; `run` is the folder of the recipe's run.
        teacher: a valid teacher for the digits.
        recipe: the user's recipe file, with this storage and teacher.
    """

    root: Path

    @property
    def storage(self) -> Path:
        return self.root / "runs"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def run(self) -> Path:
        return self.storage / "mine"

    @property
    def recipe(self) -> Path:
        return self.root / "mine.yaml"

    def raysid(self, *arguments: Any) -> subprocess.CompletedProcess[str]:
        """Run the command in a new process, without Ray's environment variables."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
        return subprocess.run(
            [sys.executable, "-m", "raysid", *map(str, arguments)],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment | {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(self.root / "ray")},
        )

    def refused(self, *arguments: Any, process: bool = False) -> str:
        """Run a command that must be refused without changing anything; return its error line.

        Args:
            process: run it in a new process, as a user does; else in this process, which saves seconds of imports.
        """
        before = self.snapshot()
        if process:
            done = self.raysid(*arguments)
            loading = f"raysid {arguments[0]} {arguments[1]}: loading torch and Ray\n"
            code, stdout, stderr = done.returncode, done.stdout, done.stderr.removeprefix(loading)
        else:
            result = raysid(*arguments)
            code, stdout, stderr = result.exit_code, result.stdout, result.stderr
        assert code == 2, stderr or stdout
        assert re.fullmatch(r"raysid: error: [^\n]+\n", stderr), stderr
        assert stdout == ""
        assert self.snapshot() == before
        return stderr.removeprefix("raysid: error: ")

    def snapshot(self) -> dict[str, bytes | None]:
        """Every file with its content and every folder, except records of the last owner of a run's lock."""
        return {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
            if path.name not in ("owner.json", ".lock")
        }

    def refuses_distilling(self, *arguments: Any, process: bool = False) -> str:
        """`refused` for a distillation with this desk's recipe."""
        return self.refused("distill", self.recipe, *arguments, process=process)

    def run_folder(self, **overrides: str) -> RunFolder:
        """The folder of the recipe's run, owned by this process."""
        return RunFolder(load_recipe(str(self.recipe), overrides, kind="distill"))

    def begin_run(self) -> None:
        """Begin a run: record its settings and write one checkpoint."""
        folder = self.run_folder()
        folder.begin(weights_digest(self.teacher))
        files = [
            write_state(folder.checkpoints.path(1), name, {"weight": torch.ones(2)})
            for name in ("fake_score", "generator")
        ]
        folder.checkpoints.finish(1, 32, files)
        folder.close()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    desk = Desk(tmp_path)
    (desk.root / "ray").mkdir()
    save_teacher(desk.teacher, digits_network(0))
    # A run records the tmax of its teacher's noise process; `begin_run` records the one given here.
    write_recipe(tiny_config(str(desk.teacher), desk.storage, "mine", method__tmax=800), desk.recipe)

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a Ray cluster was started")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", started)
    yield desk
    assert not list((desk.root / "ray").iterdir()), "a Ray cluster was started"


# Recipes.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "digits-siba"], "no recipe 'digits-siba'; did you mean digits-sida"),
        (["distill", "theirs.yaml"], "no file theirs.yaml"),
        (["pretrain", "digits-sida"], "is a recipe for `raysid distill`, not for `raysid pretrain`"),
        (["distill", "digits-teacher"], "is a recipe for `raysid pretrain`, not for `raysid distill`"),
        (["distill", "digits-sid", "--batch_size", "0"], "batch_size is 0; allowed: integer above 0"),
        (["distill", "digits-sid", "--method.tmax", "1001"], "method.tmax is 1001; allowed: integer above"),
        (["distill", "digits-sid", "--generator.lr=-1"], "generator.lr is -1; allowed: number above 0"),
        (["distill", "digits-sid", "--generator.lr", "nan"], "generator.lr is"),
        (["distill", "digits-sid", "--batch_size", "many"], "batch_size is 'many'"),
        (["distill", "digits-sid", "--microbatch_size", "48"], "128 is not a multiple of microbatch_size 48"),
        (["distill", "digits-sida", "--microbatch_size", "16"], "does not divide into groups"),
        (["distill", "digits-sid", "--run.name", "../elsewhere"], "run.name is '../elsewhere'"),
        (["pretrain", "digits-teacher", "--num_workers", "3"], "256 does not divide among num_workers 3"),
        (
            ["config", "digits-teacher", "--network.model_channels", "80"],
            "makes layers of 240 channels, which do not divide into the 32 groups of their normalisation",
        ),
        (["pretrain", "digits-teacher", "--network.img_resolution", "9"], "cannot be halved 1 times"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_a_recipe_that_cannot_be_run(desk: Desk, arguments: list[str], words: str) -> None:
    assert words in desk.refused(*arguments, process="digits-siba" in arguments)


def test_an_unknown_key_of_a_recipe(desk: Desk) -> None:
    desk.recipe.write_text("extends: digits-sida\nmethod: {alhpa: 1.2}\n")
    assert "unknown key method.alhpa; did you mean method.alpha" in desk.refuses_distilling()


def test_a_recipe_cannot_call_python(desk: Desk) -> None:
    call = f"!!python/object/apply:os.mkdir [{desk.root / 'made'}]"
    desk.recipe.write_text(f"extends: digits-sida\nseed: {call}\n")
    assert "mine.yaml" in desk.refuses_distilling()


@pytest.mark.parametrize(
    "change",
    ["--network.model_channels=9", "--network.img_resolution=16", "--network.label_dim=7"],
)
def test_a_network_that_cannot_be_or_does_not_fit_the_images(desk: Desk, change: str) -> None:
    name = change.removeprefix("--").partition("=")[0]
    line = desk.refused("pretrain", "digits-teacher", "--storage", desk.storage, change)
    assert "network" in line and ("channels" in line or "digits" in line), name


def test_an_unknown_source_of_images(desk: Desk) -> None:
    for arguments in (["pretrain", "digits-teacher"], ["distill", desk.recipe]):
        assert "unknown source of real images 'dogs'" in desk.refused(*arguments, "--data.source", "dogs")


# Teachers.


def test_a_missing_teacher(desk: Desk) -> None:
    line = desk.refuses_distilling("--teacher.path", desk.root / "nowhere", process=True)
    assert f"no teacher at {desk.root / 'nowhere'}" in line


def test_a_truncated_teacher(desk: Desk) -> None:
    file = desk.teacher / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"{file} is damaged (truncated or not safetensors)" in desk.refuses_distilling()


def test_a_folder_that_is_no_teacher(desk: Desk) -> None:
    generator = save_generator(desk.root / "generator", digits_network(1))
    line = desk.refuses_distilling("--teacher.path", generator)
    assert f"{generator} holds a generator, where a teacher is needed" in line
    (desk.teacher / "config.json").write_text('{"model": "a language model"}')
    assert "does not describe a network" in desk.refuses_distilling()


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"img_resolution": 16}, "makes images of shape (1, 16, 16), but data.source digits has (1, 8, 8)"),
        ({"img_channels": 3}, "makes images of shape (3, 8, 8)"),
        ({"label_dim": 7}, "knows 7 classes, but data.source digits has 10"),
    ],
    ids=["size", "channels", "classes"],
)
def test_a_teacher_for_other_images(desk: Desk, network: dict[str, Any], words: str) -> None:
    other = save_teacher(desk.root / "other", digits_network(0, **network))
    assert words in desk.refuses_distilling("--teacher.path", other)


@pytest.mark.parametrize("augment_dim", [0, 2])
def test_augmentation_with_a_teacher_that_has_no_place_for_its_labels(desk: Desk, augment_dim: int) -> None:
    save_teacher(desk.teacher, digits_network(0, augment_dim=augment_dim))
    line = desk.refuses_distilling("--fake_score.augment=0.12")
    assert f"fake_score.augment is 0.12, but teacher {desk.teacher} has augment_dim {augment_dim}" in line
    assert "give a teacher whose network has augment_dim 9" in line


def test_augmentation_with_a_teacher_yet_to_be_trained(desk: Desk) -> None:
    recipe = ["--teacher.path=null", "--teacher.recipe", "digits-teacher"]
    line = desk.refuses_distilling(*recipe, "--fake_score.augment=0.12")
    assert "but teacher.recipe digits-teacher has augment_dim 0" in line


def test_a_teacher_with_nonsense_about_its_sampler(desk: Desk) -> None:
    """Otherwise the run would fail at its end, when the teacher is evaluated."""
    save_teacher(desk.teacher, digits_network(0), sampler_steps="many")
    assert "trained.sampler_steps is 'many'" in desk.refuses_distilling()


def test_an_unknown_teacher_recipe(desk: Desk) -> None:
    line = desk.refuses_distilling("--teacher.path=null", "--teacher.recipe", "digits-teecher")
    assert "did you mean digits-teacher" in line


# Labels.


def test_labels_outside_the_classes(desk: Desk) -> None:
    generator = save_generator(desk.root / "generator", digits_network(1))
    line = desk.refused("sample", generator, "--labels", "7-12", "--out", "grid.png", process=True)
    assert "label 10 is outside the classes, which are 0 to 9" in line


# Storage.


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["distill", "mine.yaml"], "under a file"),
        (["distill", "mine.yaml", "--teacher.path=null", "--teacher.recipe=digits-teacher"], "in /proc"),
        (["pretrain", "digits-teacher"], "under a file"),
        (["pretrain", "digits-teacher"], "in /proc"),
    ],
    ids=["distill", "distill with a teacher to train", "pretrain", "pretrain in proc"],
)
def test_a_storage_that_cannot_be_written(desk: Desk, arguments: list[str], where: str) -> None:
    (desk.root / "file").write_text("mine")
    storage = desk.root / "file" / "runs" if where == "under a file" else Path("/proc/raysid")
    process = where == "under a file" and arguments[0] == "pretrain"
    line = desk.refused(*arguments, "--storage", storage, process=process)
    assert str(storage) in line and "cannot be written" in line


def test_a_storage_that_is_neither_folder_nor_bucket(desk: Desk) -> None:
    line = "memory://runs is neither a path nor a bucket"
    assert line in desk.refuses_distilling("--storage", "memory://runs")
    assert line in desk.refused("pretrain", "digits-teacher", "--storage", "memory://runs")


def test_a_teachers_folder_that_cannot_be_written(desk: Desk) -> None:
    (desk.root / "file").write_text("mine")
    line = desk.refused("pretrain", "digits-teacher", "--out", desk.root / "file" / "teacher")
    assert "cannot be written" in line


def test_a_teachers_folder_that_holds_something_else(desk: Desk) -> None:
    """It is neither used as the requested teacher nor overwritten."""
    generator = save_generator(desk.root / "generator", digits_network(1))
    line = desk.refused("pretrain", "digits-teacher", "--out", generator)
    assert "holds a generator, where a teacher is needed" in line
    line = desk.refused("pretrain", "digits-teacher", "--out", desk.teacher)
    assert f"{desk.teacher} holds another teacher" in line
    (desk.teacher / "config.json").write_text("{")
    assert "does not describe a network" in desk.refused("pretrain", "digits-teacher", "--out", desk.teacher)


# A run's folder.


FORBIDDEN = [
    ("method.alpha", "1.3", "method.alpha = 1.0 and cannot resume with 1.3"),
    ("method.adversarial", "null", "method.adversarial"),
    ("method.adversarial.group_size", "4", "method.adversarial.group_size = 8 and cannot resume with 4"),
    ("schedule", "alternating", "schedule = overlapped and cannot resume with alternating"),
    ("seed", "1", "seed = 0 and cannot resume with 1"),
    ("batch_size", "64", "batch_size = 32 and cannot resume with 64"),
    ("precision", "bf16", "precision = float32 and cannot resume with bf16"),
    ("teacher.precision", "bf16", "teacher.precision = None and cannot resume with bf16"),
    ("compute.tf32", "true", "compute.tf32 = False and cannot resume with True"),
    ("data.shuffle_window", "500", "data.shuffle_window = 16384 and cannot resume with 500"),
    ("generator.lr", "1e-5", "generator.lr = 0.001 and cannot resume with 1e-05"),
    ("generator.dropout", "null", "generator.dropout = 0.1 and cannot resume with None"),
    ("fake_score.betas", "[0.9, 0.999]", "fake_score.betas"),
    ("ema.halflife_images", "6000", "ema.halflife_images = 200 and cannot resume with 6000"),
]
ALLOWED = {
    "data.origin": "elsewhere",
    "data.max_bad_fraction": "0.5",
    "total_images": "6400",
    "microbatch_size": "null",
    "placement": "local",
    "evaluation.every_images": "640",
    "tracking.log_every_images": "32",
    "checkpoint.every_images": "320",
    "teacher.num_replicas": "3",
    "generator.num_workers": "2",
    "fake_score.num_workers": "2",
    "teacher.graphs_kept": "0",
    "failure.max_failures": "0",
    "resources.generator.num_cpus": "1",
    "compute.channels_last": "true",
    "compute.compile": "true",
    "compute.activation_checkpointing": "true",
    "compute.fused_optimizer": "false",
    "compute.foreach_ema": "false",
    "teacher.compute.compile": "true",
    "torch_threads": "null",
}


@pytest.mark.parametrize(("field", "value", "words"), FORBIDDEN[:1], ids=["method.alpha"])
def test_a_resume_with_settings_that_may_not_change(desk: Desk, field: str, value: str, words: str) -> None:
    desk.begin_run()
    line = desk.refuses_distilling(f"--{field}={value}")
    assert f"{desk.run} was started with {words}" in line
    assert "give another --run.name, or --fresh to start over" in line


@pytest.mark.parametrize(("field", "value", "words"), FORBIDDEN, ids=[field for field, _, _ in FORBIDDEN])
def test_every_setting_that_may_not_change_is_named(desk: Desk, field: str, value: str, words: str) -> None:
    desk.begin_run()
    before = desk.snapshot()
    with pytest.raises(UserError) as caught:
        desk.run_folder(**{field: value})
    assert f"was started with {words}" in str(caught.value)
    assert desk.snapshot() == before
    desk.run_folder().close()  # the refused command holds no lock


@pytest.mark.parametrize("field", ALLOWED)
def test_a_resume_with_settings_that_may_change(desk: Desk, field: str) -> None:
    desk.begin_run()
    folder = desk.run_folder(**{field: ALLOWED[field]})
    folder.begin(weights_digest(desk.teacher))
    newest = folder.checkpoints.newest()
    folder.close()
    assert newest is not None and newest.step == 1


def test_a_resume_with_another_teacher(desk: Desk) -> None:
    desk.begin_run()
    other = save_teacher(desk.root / "other", digits_network(9))
    assert "was started with another teacher" in desk.refuses_distilling("--teacher.path", other)


def test_the_tmax_that_a_run_recorded_need_not_be_given(desk: Desk) -> None:
    desk.begin_run()
    write_recipe(tiny_config(str(desk.teacher), desk.storage, "mine"), desk.recipe)
    other = save_teacher(desk.root / "other", digits_network(9))  # checked after the settings
    assert "was started with another teacher" in desk.refuses_distilling("--teacher.path", other)
    assert "cannot resume with 700" in desk.refuses_distilling("--method.tmax", "700")


def test_a_run_whose_record_cannot_be_read(desk: Desk) -> None:
    desk.begin_run()
    for content in (b"method: [", b"kind: distill\n", b"\0", b"\xff"):
        (desk.run / "config.yaml").write_bytes(content)
        with pytest.raises(UserError, match="config.yaml cannot be read .*: give --fresh to start over"):
            desk.run_folder()
    line = desk.refuses_distilling()
    assert "config.yaml cannot be read" in line
    (desk.run / "config.yaml").unlink()
    (desk.run / "run.json").write_text("{")
    assert "run.json is damaged" in desk.refuses_distilling()


@contextmanager
def in_use(desk: Desk) -> Iterator[int]:
    """Have another process own the run until the block ends; yield its pid."""
    program = (
        "import sys\nfrom raysid.recipes import load_recipe\nfrom raysid.run.folder import RunFolder\n"
        f"folder = RunFolder(load_recipe({str(desk.recipe)!r}))\nprint('mine', flush=True)\nsys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "mine\n"
        yield holder.pid
    finally:
        holder.communicate("", timeout=SECONDS)


@pytest.mark.parametrize("extra", [[], ["--fresh"]], ids=["", "fresh"])
def test_a_second_run_in_a_folder_in_use(desk: Desk, extra: list[str]) -> None:
    desk.begin_run()
    with in_use(desk) as pid:
        line = desk.refuses_distilling(*extra, process=not extra)
    assert f"{desk.run} is in use by process {pid}" in line and "--run.name" in line
    desk.run_folder().close()  # released at the process's end


def test_fresh_with_a_bad_teacher_keeps_the_old_run(desk: Desk) -> None:
    desk.begin_run()
    line = desk.refuses_distilling("--fresh", "--teacher.path", desk.root / "nowhere")
    assert "no teacher" in line
    assert (desk.run / "checkpoints" / "step-00000001" / "manifest.json").exists()


def test_fresh_does_not_empty_a_folder_that_is_no_run(desk: Desk) -> None:
    desk.run.mkdir(parents=True)
    (desk.run / "thesis.tex").write_text("years of work")
    line = desk.refuses_distilling("--fresh")
    assert f"{desk.run} is not a run's folder, so --fresh does not empty it" in line


def test_fresh_does_not_delete_the_checkpoint_to_branch_from(desk: Desk) -> None:
    desk.begin_run()
    line = desk.refuses_distilling("--fresh", "--resume-from", desk.run)
    assert "--resume-from" in line and "--fresh" in line


def test_a_branch_into_a_run_that_has_begun(desk: Desk) -> None:
    desk.begin_run()
    line = desk.refuses_distilling("--resume-from", desk.run / "checkpoints" / "step-00000001")
    assert "has begun already: --resume-from is for a new --run.name" in line


def test_a_branch_from_nowhere(desk: Desk) -> None:
    line = desk.refuses_distilling("--resume-from", desk.root / "nowhere")
    assert f"no whole checkpoint at {desk.root / 'nowhere'}" in line
    desk.begin_run()
    (desk.run / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    assert "no whole checkpoint" in desk.refuses_distilling("--run.name=new", "--resume-from", desk.run)


def test_a_branch_from_a_damaged_checkpoint(desk: Desk) -> None:
    desk.begin_run()
    file = desk.run / "checkpoints" / "step-00000001" / "generator.pt"
    file.write_bytes(file.read_bytes()[:-1])
    line = desk.refuses_distilling("--run.name=new", "--resume-from", file.parent)
    assert f"{file} is damaged" in line


# Generators.


def test_a_path_that_is_no_generator(desk: Desk) -> None:
    for command in (["evaluate"], ["sample", "--out", "grid.png"]):
        assert "no run and no generator at" in desk.refused(*command, "nowhere")
        assert "holds a teacher, where a generator is needed" in desk.refused(*command, desk.teacher)
    desk.begin_run()
    assert "holds no generator" in desk.refused("evaluate", desk.run)


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        ({}, "does not name the real images it was made for"),
        ({"data": "dogs"}, "dogs"),
        ({"data": ["digits"]}, "digits"),
    ],
    ids=["none", "unknown", "no text"],
)
def test_a_generator_that_cannot_be_measured(desk: Desk, trained: dict[str, Any], words: str) -> None:
    generator = save_generator(desk.root / "generator", digits_network(1), **trained)
    assert words in desk.refused("evaluate", generator)


def test_a_generator_of_other_images_than_its_card_says(desk: Desk) -> None:
    generator = save_generator(desk.root / "generator", tiny_network(1), data="digits")
    assert "digits" in desk.refused("evaluate", generator)
