"""The command line: each command's output, the message for each mistake, and that nothing starts before it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import Result
from PIL import Image

from raysid.cli.main import cli
from raysid.config import Config, PretrainConfig, TuneConfig
from raysid.config.fields import config_fields
from raysid.errors import RunFailed, UserError
from raysid.generator import Generator
from raysid.networks import NetworkSettings, build_denoiser
from raysid.networks.files import NetworkCard
from raysid.recipes import load_recipe, packaged_recipes
from tests.support.command_line import raysid

COMMANDS = ("pretrain", "distill", "quickstart", "evaluate", "sample", "config", "recipes")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty folder, in which a refused command must leave nothing."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RAYSID_DEBUG", raising=False)
    return folder


def subprocess_raysid(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raysid", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=60,
    )


def assert_refused(result: Result, words: str) -> None:
    """One line on stderr, exit code 2, nothing else anywhere."""
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"raysid: error: [^\n]+\n", result.stderr), result.stderr
    assert words in result.stderr
    assert result.stdout == ""
    assert list(Path.cwd().iterdir()) == []


def words_of(text: str) -> str:
    """Help as one line: wrapping depends on the terminal and breaks words at hyphens."""
    return re.sub(r"\s+", "", text)


# Help.


def test_help_lists_the_commands() -> None:
    result = raysid("--help")
    assert result.exit_code == 0
    assert all(re.search(rf"^  {command} ", result.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "models"),
    [
        ("pretrain", [PretrainConfig]),
        ("distill", [Config]),
        ("quickstart", [Config]),
        ("config", [TuneConfig, PretrainConfig, Config]),
    ],
)
def test_help_explains_every_field(command: str, models: list[type[Config]]) -> None:
    result = raysid(command, "--help-all")
    assert result.exit_code == 0
    fields: dict = {}
    for model in models[::-1]:
        fields = {**config_fields(model), **fields}
    assert "method.adversarial.group_size" in fields or "network.channel_mult" in fields
    help_words = words_of(result.stdout)
    for path, field in fields.items():
        if path == "kind" or (field.is_section and not field.nullable):
            continue
        assert re.search(rf"^  --{re.escape(path)} [A-Z]", result.stdout, re.MULTILINE), path
        assert field.description, f"{path} has no description"
        assert words_of(field.description) in help_words, path
        assert re.search(re.escape(words_of(f"[{field.allowed}")) + r"[;\]]", help_words), path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help(command: str) -> None:
    one = cli.commands[command]
    assert one.get_short_help_str(200)
    for param in one.get_params(click.Context(one)):
        assert not isinstance(param, click.Option) or param.help, param.name


def titles_of(text: str) -> list[str]:
    return re.findall(r"^(\S.*):$", text, re.MULTILINE)


def test_help_lists_the_common_settings_alone() -> None:
    result = raysid("distill", "--help")
    assert titles_of(result.stdout) == ["Options", "Common settings"]
    assert re.findall(r"^  --([\w.]+)", result.stdout.partition("Common settings:")[2], re.MULTILINE) == [
        "storage",
        "run.name",
        "seed",
        "placement",
        "colocated.num_workers",
        "data.source",
        "prompts.source",
        "teacher.path",
        "teacher.num_replicas",
        "method.alpha",
        "total_images",
        "batch_size",
        "generator.num_workers",
        "fake_score.num_workers",
    ]
    assert len(result.stdout.splitlines()) < 110
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert re.search(r"^\d+ more settings: raysid distill --help-all$", result.stdout, re.MULTILINE)


def test_full_help_groups_the_fields_by_section() -> None:
    titles = titles_of(raysid("distill", "--help-all").stdout)
    assert titles[:3] == ["Options", "Common settings", "Top-level settings"]
    assert {"Settings of `data`", "Settings of `method`"} <= {*titles} and len(titles) == len(set(titles))


def test_help_of_config_names_the_kinds_of_recipes_by_section() -> None:
    text = raysid("config", "--help-all").stdout
    assert {
        "Common settings",
        "Common settings (distill, pretrain)",
        "Top-level settings (pretrain)",
        "Settings of `data` (distill, pretrain)",
        "Settings of `scheduler` (tune)",
    } <= {*titles_of(text)}
    assert "Only for" not in text


@pytest.mark.parametrize(
    ("command", "words"), [("tune", "digits-tune."), ("pretrain", "digits-teacher, digits-text-teacher.")]
)
def test_help_names_the_packaged_recipes(command: str, words: str) -> None:
    assert f"Packaged recipes for this command: {words}" in raysid(command, "--help").stdout


def test_version_names_the_libraries() -> None:
    result = raysid("--version")
    assert re.fullmatch(r"raysid \S+ \(torch \S+, ray \S+, Python \S+\)\n", result.stdout)


# Recipes and configs.


def test_recipes_lists_each_with_its_command_and_description() -> None:
    result = raysid("recipes")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    found: dict[str, dict[str, str]] = {}
    for line in result.stdout.splitlines():
        command, entry, more = re.fullmatch(r"raysid (\w+)|  (\S.*)|   +(.*)", line).groups()  # type: ignore[union-attr]
        if command:
            recipes = found.setdefault(command, {})
        elif entry:
            name, recipes[name] = entry.split(None, 1)
        else:
            recipes[name] += f" {more}"
    assert [*found] == ["pretrain", "distill", "tune"]
    for name, summary in packaged_recipes().items():
        assert found[summary.kind].pop(name) == summary.description
    assert not any(found.values())


def test_config_prints_a_recipe_with_overrides(tmp_path: Path) -> None:
    result = raysid(
        "config",
        "digits-sida",
        "--method.alpha=1.2",
        "--seed",
        "3",
        "--method.adversarial.clip_gradient",
        "1e-1",
    )
    assert result.exit_code == 0 and result.stderr == ""
    (tmp_path / "again.yaml").write_text(result.stdout)
    overrides = {"method.alpha": 1.2, "seed": 3, "method.adversarial.clip_gradient": 0.1}
    assert load_recipe(str(tmp_path / "again.yaml")) == load_recipe("digits-sida", overrides)


def test_only_the_options_given_change_a_config() -> None:
    plain = yaml.safe_load(raysid("config", "digits-sid").stdout)
    changed = yaml.safe_load(raysid("config", "digits-sid", "--batch_size", "64").stdout)
    assert {key for key in plain if plain[key] != changed[key]} == {"batch_size"}


def test_negative_values_and_repeated_options() -> None:
    result = raysid("config", "digits-sid", "--method.alpha", "-0.5", "--seed", "1", "--seed", "2")
    assert (yaml.safe_load(result.stdout)["method"]["alpha"], yaml.safe_load(result.stdout)["seed"]) == (
        -0.5,
        2,
    )


@pytest.mark.parametrize("option", ["--batch_size", "--batch-size"])
def test_options_take_dashes_and_underscores(option: str, tmp_path: Path) -> None:
    result = raysid("config", "digits-sid", option, "64", "--fake-score.num_workers", "2")
    changed = yaml.safe_load(result.stdout)
    assert (changed["batch_size"], changed["fake_score"]["num_workers"]) == (64, 2)
    assert_refused(raysid("evaluate", "nowhere", "--num_samples", "4"), "no run and no generator at nowhere")
    assert_refused(
        raysid("distill", "digits-teacher", "--resume_from", "x"), "is a recipe for `raysid pretrain`"
    )


def test_options_apply_in_the_order_given() -> None:
    off, clip = "--method.adversarial=null", "--method.adversarial.clip_gradient=2"
    adversarial = [
        yaml.safe_load(raysid("config", "digits-sida", *order).stdout)["method"]["adversarial"]
        for order in ([clip, off], [off, clip])
    ]
    assert adversarial[0] is None and adversarial[1]["clip_gradient"] == 2.0


def test_the_schema_is_valid_and_describes_every_field() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    result = raysid("config", "--schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name in packaged_recipes():
        validator.validate(yaml.safe_load(raysid("config", name).stdout))
    config = yaml.safe_load(raysid("config", "digits-sid").stdout)
    assert not validator.is_valid({**config, "batch_size": 0})
    assert not validator.is_valid({**config, "unknown": 0})
    assert {"Config", "PretrainConfig"} <= set(schema["$defs"])
    for section in schema["$defs"].values():
        for name, field in section["properties"].items():
            assert "description" in field or "$ref" in field, name


# Mistakes.


@pytest.mark.parametrize("command", ["pretrain", "distill", "config"])
def test_an_unknown_recipe_is_refused(command: str) -> None:
    assert_refused(raysid(command, "digits-side"), "did you mean digits-sid")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["distill", "digits-teacher"], "is a recipe for `raysid pretrain`, not for `raysid distill`"),
        (["pretrain", "digits-sid"], "is a recipe for `raysid distill`, not for `raysid pretrain`"),
        (["distill", "digits-sid", "--method.tmax", "2000"], "method.tmax is 2000; allowed: integer above 0"),
        (["distill", "digits-sid", "--seed", "-1"], "seed is -1"),
        (["distill", "digits-sid", "--microbatch_size=48"], "is not a multiple of microbatch_size 48"),
        (["quickstart", "digits-sid", "--placement", "spit"], "allowed: split or colocated or local"),
        (["pretrain", "digits-teacher", "--num_workers", "3"], "does not divide among num_workers 3"),
        (["config", "digits-teacher", "--method.alpha", "1"], "unknown key method"),
        (["config", "no\nsuch\x1b[31m.yaml"], "no file no such"),
        (["sample", "nowhere", "--out", "a.png"], "nowhere"),
        (["sample", "nowhere", "--out", "no/such/a.png"], "there is no folder no/such"),
        (["sample", "nowhere", "--out", "."], "is a folder"),
        (["sample", "nowhere", "--out", "x.npz"], "--out x.npz is not a .png"),
        (["tune", "digits-sid"], "not for `raysid tune`; packaged for that: digits-tune"),
        *(
            (["sample", "nowhere", "--out", "a.png", "--labels", labels], "write 3, 0-9 or 0,2,5-7")
            for labels in ("", "x", "3-1", "-1", "1,,2", "1-", "0x1", "²", "9999999")
        ),
    ],
)
def test_bad_input_gets_one_line(args: list[str], words: str) -> None:
    assert_refused(raysid(*args), words)


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("kind: distill\nmethod:\n  alpha: [1\n")
    assert_refused(raysid("distill", str(recipe)), "line 4")
    recipe.write_text("kind: distill\nmetod: {}\n")
    result = raysid("distill", str(recipe))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"raysid: error: {recipe}: {line}"
        for line in (
            "unknown key metod; did you mean method?",
            "teacher is missing; give it a value (Teacher to distil)",
            "total_images is missing; give it a value (Length of the distillation, in images)",
        )
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["distill", "digits-sid", "--method.alfa", "1"],
            "No such option: --method.alfa; did you mean --method.alpha?",
        ),
        (
            ["distill", "digits-sid", "--lr", "1"],
            "No such option: --lr; did you mean --generator.lr or --fake_score.lr?",
        ),
        (["distill", "digits-sid", "--frsh"], "No such option: --frsh; did you mean --fresh?"),
        (["distill", "digits-sid", "--zzz", "1"], "No such option: --zzz\n"),
        (["distill"], "Missing argument 'RECIPE'"),
        (["config"], "give a RECIPE, or --schema"),
        (["config", "digits-sid", "--schema"], "leave out RECIPE"),
        (["config", "--schema", "--seed", "1"], "leave out RECIPE"),
        (["quickstart", "digits-teacher"], "is not one of"),
        (["sample", "x"], "Missing option '--out'"),
        (["sample", "x", "--out", "x.png", "-n", "0"], "-n"),
        (["sample", "x", "--out", "x.png", "--seed", str(2**64)], "--seed"),
        (["evaluate", "x", "--which", "first"], "--which"),
        (["destill", "digits-sid"], "No such command"),
    ],
)
def test_misused_options_get_clicks_own_words(args: list[str], words: str) -> None:
    result = raysid(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert words in result.stderr and "Traceback" not in result.stderr
    assert list(Path.cwd().iterdir()) == []


# Exit codes of the errors that a command raises.


@pytest.fixture
def command_that_raises():
    """A command in the real group that raises a given error."""
    errors: list[BaseException] = []

    @cli.command("raise-it")
    def raise_it() -> None:
        raise errors.pop()

    yield errors
    del cli.commands["raise-it"]


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (UserError("no teacher at x"), 2, "raysid: error: no teacher at x\n"),
        (UserError("two\nlines"), 2, "raysid: error: two lines\n"),
        (RunFailed("scorer lost at step 3"), 1, "raysid: error: scorer lost at step 3\n"),
        (KeyboardInterrupt(), 130, "raysid: interrupted\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(command_that_raises, error, code: int, stderr: str) -> None:
    command_that_raises.append(error)
    result = raysid("raise-it")
    assert (result.exit_code, result.stderr, result.stdout) == (code, stderr, "")


def test_an_actors_error_is_shown_without_its_remote_traceback(command_that_raises) -> None:
    from ray.exceptions import RayTaskError

    task_error = RayTaskError(
        "score", "Traceback (most recent call last):\n...", UserError("no teacher at x")
    )
    command_that_raises.append(task_error.as_instanceof_cause())
    result = raysid("raise-it")
    assert (result.exit_code, result.stderr) == (2, "raysid: error: no teacher at x\n")


def test_debug_shows_the_traceback_too() -> None:
    result = subprocess_raysid("distill", "nope", RAYSID_DEBUG="1")
    assert result.returncode == 2
    assert "Traceback" in result.stderr and result.stderr.splitlines()[-1].startswith(
        "raysid: error: no recipe"
    )


# As a process.


def test_the_module_runs_as_the_command() -> None:
    result = subprocess_raysid("config", "digits-sid", "--method.alpha", "1.2")
    assert result.returncode == 0 and result.stderr == ""
    assert yaml.safe_load(result.stdout)["method"]["alpha"] == 1.2
    result = subprocess_raysid("distill", "digits-teacher")
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"raysid: error: digits-teacher is a recipe for [^\n]+\n", result.stderr)
    result = subprocess_raysid("distill", "digits-sid", "--nope", "1")
    assert result.returncode == 2 and "Usage: raysid distill" in result.stderr


def test_a_command_prints_a_line_before_it_loads_torch() -> None:
    result = subprocess_raysid("evaluate", "nowhere")
    assert result.stderr.splitlines() == [
        "raysid evaluate nowhere: loading torch and Ray",
        "raysid: error: no run and no generator at nowhere",
    ]
    code = (
        "import builtins, sys\nfrom raysid.cli.main import cli\nload = builtins.__import__\n"
        "def refuse(name, *rest):\n"
        "    if name.partition('.')[0] in ('torch', 'ray'): sys.exit()\n"
        "    return load(name, *rest)\n"
        "builtins.__import__ = refuse\n"
        "for argument in sys.argv[1:]:\n"
        "    try: cli(argument.split(), prog_name='raysid')\n"
        "    except SystemExit: pass"
    )
    commands = [
        *("pretrain digits-teacher", "distill digits-sid", "quickstart digits-sid", "tune digits-tune"),
        *("plan digits-sid", "bench digits-sid"),
    ]
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True)
    assert done.stderr.splitlines() == [f"raysid {command}: loading torch and Ray" for command in commands]


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["recipes"], ["config", "digits-sida"], ["distill", "--help"]]
)
def test_commands_that_compute_nothing_do_not_import_torch_or_ray(args: list[str]) -> None:
    code = (
        "import sys\nfrom raysid.cli.main import cli\n"
        f"cli({args!r}, standalone_mode=False)\n"
        "sys.exit(', '.join({'torch', 'ray'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_interrupting_a_process_is_one_line(tmp_path: Path) -> None:
    """Ctrl-C while `raysid watch -f` waits for the next state of a run."""
    (tmp_path / "config.yaml").write_text("total_images: 640\n")
    line = '{"kind": "train", "step": 8, "images": 256, "time": 3.0, "unix_time": 1700000000.0}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    process = subprocess.Popen(
        [sys.executable, "-m", "raysid", "watch", "-f", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("running"):
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "raysid: interrupted\n")


# Generators.


def save_generator(folder: Path, channels: int = 1, label_dim: int = 10) -> str:
    torch.manual_seed(0)
    settings = NetworkSettings(
        img_resolution=8,
        img_channels=channels,
        label_dim=label_dim,
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
    )
    network = build_denoiser(settings)
    for parameter in network.parameters():  # EDM's last layer starts at zero, which would give uniform grey
        torch.nn.init.normal_(parameter, std=0.2)
    card = NetworkCard(kind="generator", network=settings, sigma_init=2.5, trained={"data": "digits"})
    Generator(card, network).save_pretrained(str(folder))
    return str(folder)


def pixels(path: str) -> tuple[tuple[int, int], bytes]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size, picture.tobytes()


def test_sample_writes_a_grid_and_prints_its_path(tmp_path: Path) -> None:
    run = save_generator(tmp_path / "generator")
    for out, extra in [("a.png", []), ("b.png", []), ("c.png", ["--seed", "1"])]:
        result = raysid("sample", run, "--out", out, *extra)
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    assert pixels("a.png") == pixels("b.png") != pixels("c.png")
    assert pixels("a.png")[0] == (8 * 33 + 1, 8 * 33 + 1)  # 64 images of 8x8, four times enlarged


def test_sample_takes_a_run_and_which_of_its_generators(tmp_path: Path) -> None:
    save_generator(tmp_path / "run" / "generator")
    assert raysid("sample", str(tmp_path / "run"), "--out", "a.png").exit_code == 0
    result = raysid("sample", str(tmp_path / "run"), "--which", "best", "--out", "b.png")
    assert result.exit_code == 2 and "--which last" in result.stderr


@pytest.mark.parametrize(
    ("labels", "count", "cells"),
    [("0-9", 64, (7, 10)), ("3", 5, (5, 1)), ("0,2,5-7", 10, (2, 5)), ("0,0,1-1", 1, (1, 2))],
)
def test_sample_draws_a_row_for_each_label(
    labels: str, count: int, cells: tuple[int, int], tmp_path: Path
) -> None:
    run = save_generator(tmp_path / "generator")
    result = raysid("sample", run, "--labels", labels, "-n", str(count), "--out", "a.png")
    assert result.exit_code == 0, result.stderr
    assert pixels("a.png")[0] == (cells[0] * 33 + 1, cells[1] * 33 + 1)


def test_each_row_shows_its_own_label(tmp_path: Path) -> None:
    from raysid.run.image_grid import image_grid

    run = save_generator(tmp_path / "generator", channels=3)
    assert raysid("sample", run, "--labels", "4,1", "-n", "5", "--seed", "7", "--out", "a.png").exit_code == 0
    generator = Generator.from_pretrained(run)
    images = generator.sample(5, torch.tensor([4, 1, 4, 1, 4]), torch.Generator().manual_seed(7))
    rows = torch.cat([images[0::2], images[1::2], torch.zeros(1, 3, 8, 8)])
    assert pixels("a.png")[1] == image_grid(rows, columns=3).tobytes()


def test_sample_refuses_labels_outside_the_classes(tmp_path: Path) -> None:
    run = save_generator(tmp_path / "generator")
    assert_refused(
        raysid("sample", run, "--labels", "8-12", "--out", "a.png"), "label 10 is outside the classes"
    )
    run = save_generator(tmp_path / "unconditional", label_dim=0)
    assert_refused(raysid("sample", run, "--labels", "0", "--out", "a.png"), "has no classes")
    assert raysid("sample", run, "-n", "3", "--out", "a.png").exit_code == 0


def test_evaluate_prints_a_table_of_the_generator_it_measured(tmp_path: Path) -> None:
    save_generator(tmp_path / "run" / "generator")
    assert_refused(raysid("evaluate", "nowhere"), "no run and no generator at nowhere")
    result = raysid("evaluate", str(tmp_path / "run"), "--num-samples", "300")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "run" / "generator") in result.stdout
    assert re.search(r"Fréchet distance to the real images +\d", result.stdout)
    assert re.search(r"label accuracy +\d+\.\d%", result.stdout)
    assert re.search(r"images made +300\n", result.stdout)
