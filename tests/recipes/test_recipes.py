"""Recipes: their configs, extension, overrides, and the message for each mistake."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from raysid.config import Config, PretrainConfig, TuneConfig
from raysid.errors import InvalidConfig, UserError
from raysid.recipes import KINDS, config_model, config_yaml, load_recipe, packaged_recipes
from raysid.recipes.yaml_form import dump_yaml, parse_yaml

DISTILL = "kind: distill\nteacher: {path: t}\ntotal_images: 1000\n"


def write(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def complaint(recipe: str, overrides: dict[str, Any] | None = None, kind: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides, kind)
    line = str(caught.value)
    assert line and "\n" not in line
    return line


# Resolved configs.


def test_the_packaged_recipes_are_described_and_load() -> None:
    recipes = packaged_recipes()
    assert {"digits-teacher", "digits-sid", "digits-sida"} <= set(recipes)
    assert {"quickstart-digits-sid", "quickstart-digits-sida"} <= set(recipes)
    for name, summary in recipes.items():
        assert summary.kind in KINDS
        assert len(summary.description) > 20
        assert type(load_recipe(name, kind=summary.kind)) is config_model(summary.kind)


def test_digits_recipes_match_their_names() -> None:
    sid, sida = load_recipe("digits-sid", kind="distill"), load_recipe("digits-sida", kind="distill")
    assert sid.method.adversarial is None
    assert sida.method.adversarial is not None
    for name in ("digits-sid", "digits-sida"):
        whole, quick = load_recipe(name, kind="distill"), load_recipe(f"quickstart-{name}", kind="distill")
        assert (quick.method.adversarial is None) == (whole.method.adversarial is None)
        assert quick.total_images < whole.total_images
        # All use one teacher, from a recipe that exists.
        assert quick.teacher.recipe == whole.teacher.recipe == "digits-teacher"


def test_the_text_recipes_need_no_image_and_have_one_k() -> None:
    whole, quick = (load_recipe(name, kind="distill") for name in ("digits-text", "quickstart-digits-text"))
    assert quick.total_images < whole.total_images
    for config in (whole, quick):
        assert config.data.source is None and config.prompts.source == "digits"
        guidance = config.method.guidance
        assert guidance.train_fake == guidance.eval_fake == guidance.eval_teacher == 1.5
        assert config.teacher.recipe == "digits-text-teacher"
        # The teacher's own figures are those that the run's table needs.
        teacher = load_recipe(config.teacher.recipe, kind="pretrain")
        assert teacher.evaluation_guidance == guidance.eval_teacher
        assert teacher.evaluation_samples == config.evaluation.num_samples


def test_a_run_is_named_after_its_recipe(tmp_path: Path) -> None:
    assert load_recipe("digits-sid", kind="distill").run.name == "digits-sid"
    assert load_recipe("digits-sid", {"run.name": "other"}, kind="distill").run.name == "other"
    assert load_recipe(write(tmp_path, "mine.v2.yaml", DISTILL), kind="distill").run.name == "mine.v2"
    assert load_recipe(write(tmp_path, "-a b (ü).yaml", DISTILL), kind="distill").run.name == "a-b-"
    named = write(tmp_path, "file.yaml", DISTILL + "run: {name: given}\n")
    assert load_recipe(named, kind="distill").run.name == "given"


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_resolved_recipe_reloads_as_it_was(name: str, tmp_path: Path) -> None:
    config = load_recipe(name)
    text = config_yaml(config)
    again = load_recipe(write(tmp_path, "config.yaml", text))
    assert again == config
    assert config_yaml(again) == text


def test_values_that_look_like_something_else_survive_the_round_trip(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {
        "run.name": "1e-4",
        "storage": "yes: # no",
        "data.source": "~",
        "teacher.path": "null and void\n- é",
        "method.alpha": "1e+17",
        "fake_score.eps": 1e-300,
        "fake_score.betas": (0.1, 1),
        "seed": 2**40,
        "resources.teacher.resources": {"1e3": 0.5, "on": 2},
        "resources.teacher.label_selector": {
            "true": "false",
            "a.b/c": "012",
            "d": "1_000",
            "e": "2024-01-01",
        },
    }
    config = load_recipe("digits-sida", overrides, kind="distill")
    assert config.run.name == "1e-4" and config.data.source == "~"
    assert config.resources.teacher.label_selector["e"] == "2024-01-01"
    assert load_recipe(write(tmp_path, "c.yaml", config_yaml(config))) == config


# Overrides.


def test_overrides_are_read_as_yaml() -> None:
    config = load_recipe(
        "digits-sida",
        {
            "method.alpha": "1.2",
            "generator.lr": "1e-4",
            "fake_score.lr": "2E-4",
            "generator.betas": "[0.5, 0.9]",
            "total_images": "1e6",
            "method.adversarial": "null",
            "resources.teacher.resources": "{tpu: 1}",
            "placement": "local",
            "seed": 7,
        },
        kind="distill",
    )
    assert (config.method.alpha, config.generator.lr, config.fake_score.lr) == (1.2, 1e-4, 2e-4)
    assert (config.generator.betas, config.total_images, config.seed) == ((0.5, 0.9), 1_000_000, 7)
    assert config.method.adversarial is None
    assert config.resources.teacher.resources == {"tpu": 1.0}
    assert config.placement == "local"


def test_text_fields_take_text_as_it_is() -> None:
    config = load_recipe(
        "digits-sid", {"run.name": "2024", "storage": "null", "teacher.path": "[a"}, "distill"
    )
    assert isinstance(config, Config)
    assert (config.run.name, config.storage, config.teacher.path) == ("2024", "null", "[a")
    # null is None if the field allows it.
    config = load_recipe("digits-sid", {"teacher.recipe": "null", "teacher.path": "x"}, kind="distill")
    assert config.teacher.recipe is None


def test_a_value_inside_a_null_section_makes_the_section() -> None:
    config = load_recipe("digits-sid", {"method.adversarial.generator_weight": "0.1"}, kind="distill")
    assert config.method.adversarial is not None
    assert config.method.adversarial.generator_weight == 0.1
    config = load_recipe("digits-sid", {"method.adversarial": "{}"}, kind="distill")
    assert config.method.adversarial is not None


def test_overrides_apply_in_order_and_leave_the_rest_of_a_section() -> None:
    sida = load_recipe("digits-sida", kind="distill")
    changed = load_recipe("digits-sida", {"method.adversarial.clip_gradient": "2"}, kind="distill")
    assert sida.method.adversarial is not None and changed.method.adversarial is not None
    assert changed.method.adversarial == sida.method.adversarial.model_copy(update={"clip_gradient": 2.0})
    last_wins = {"method.adversarial.clip_gradient": "2", "method.adversarial": "null"}
    assert load_recipe("digits-sida", last_wins, kind="distill").method.adversarial is None


# Extending.


def test_a_recipe_extends_another_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(
        tmp_path, "base.yaml", "extends: digits-sida\nmethod: {alpha: 1.2}\ngenerator: {betas: [0.9, 0.99]}\n"
    )
    path = write(
        tmp_path / "sub",
        "top.yaml",
        "extends: ../base.yaml\nmethod:\n  adversarial: null\n  tmax: 700\ngenerator: {betas: [0.5, 0.9]}\n",
    )
    config, sida = load_recipe(path, kind="distill"), load_recipe("digits-sida", kind="distill")
    assert (config.method.alpha, config.method.tmax, config.method.adversarial) == (1.2, 700, None)
    assert config.generator.betas == (0.5, 0.9)  # a list replaces a list
    assert config.generator.lr == sida.generator.lr
    assert config.run.name == "top"


def test_a_teachers_recipe_is_found_beside_the_file_that_names_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", "base.yaml", "kind: distill\nteacher: {recipe: teacher.yaml}\ntotal_images: 1\n")
    top = write(tmp_path / "b", "top.yaml", "extends: ../a/base.yaml\nseed: 1\n")
    config = load_recipe(top, kind="distill")
    assert config.teacher.recipe == str(tmp_path / "a" / "teacher.yaml")
    # A resolved config means the same in any folder; a path given by hand is relative to the working directory.
    (tmp_path / "run").mkdir()
    assert load_recipe(write(tmp_path / "run", "config.yaml", config_yaml(config))).teacher == config.teacher  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path / "b")
    by_hand = load_recipe("digits-sid", {"teacher.recipe": "./t.yaml"}, kind="distill")
    assert by_hand.teacher.recipe == str(tmp_path / "b" / "t.yaml")


def test_extending_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    path = write(tmp_path, "b.yaml", "extends: ./a.yaml\n")
    assert "a recipe cannot extend itself" in complaint(path)
    assert "a recipe cannot extend itself" in complaint(write(tmp_path, "c.yaml", "extends: c.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nope.yaml", "`extends`: no file"),
        ("extends: digits-sidd", "did you mean digits-sid"),
        ("extends: [digits-sid]", "`extends` must be a recipe's name or path"),
        ("extends: .", "is a folder"),
        ("extends: digits-teacher\nkind: distill", "of kind distill, but extends digits-teacher"),
        ('extends: "\\0"', "`extends`: \\x00: a path cannot have a zero byte"),
        ("extends: " + "x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_a_bad_base_is_reported(text: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, "top.yaml", text)
    line = complaint(path)
    assert words in line and path in line


# Mistakes: one line with the problem, its place, and what to do.


def test_an_unknown_recipe_gets_the_closest_names_and_all_of_them() -> None:
    line = complaint("digit-sida")
    assert "no recipe 'digit-sida'; did you mean digits-sida" in line
    assert all(name in line for name in packaged_recipes())
    assert "did you mean" not in complaint("zzz")
    assert complaint("digits-sid.yaml").startswith("no file digits-sid.yaml; did you mean digits-sid ")
    assert complaint("no/such/file.yaml").startswith("no file no/such/file.yaml")


def test_a_recipe_of_another_kind_is_refused_with_its_command() -> None:
    line = complaint("digits-teacher", kind="distill")
    assert line.startswith("digits-teacher is a recipe for `raysid pretrain`, not for `raysid distill`")
    assert "digits-sida" in line
    assert "for `raysid distill`, not for `raysid pretrain`" in complaint("digits-sid", kind="pretrain")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: distill\nmethod: [1,\n", "line 3"),
        ("a: 1\n\tb: 2", "line 2"),
        ("", "is empty, not a mapping"),
        ("- 1", "is a list, not a mapping"),
        ("just words", "is a str, not a mapping"),
        ("seed: 1", "has no `kind`; add `kind: pretrain` or `kind: distill`"),
        ("kind: search", "unknown kind 'search'"),
        ("kind: [distill]", "unknown kind ['distill']"),
        ("seed: 1\nseed: 2", "line 2, column 1: the key 'seed' is given twice"),
        ("1: 2", "line 1, column 1: a key is not text"),
        ("{[1]: 2}", "a key is not text"),
        ("a: &a {b: *a}", "recursive"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !!timestamp 2024-13-45", "month must be in 1..12"),
        ("a: 1\n---\nb: 2", "another document"),
        ("[" * 5000, "nested too deeply"),
        (b"\xff\xfe\x00", "is not a recipe in YAML"),
        (b"a: \x80", "is not a recipe in YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_reported_with_its_line(
    text: str | bytes, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "bad.yaml", text)
    line = complaint(path)
    assert line.startswith(path) and words in line


def test_a_folder_and_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    assert "is a folder" in complaint(str(tmp_path))
    assert "cannot be read" in complaint(str(tmp_path / ("x" * 5000)))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # unknown keys
        ({"method.alfa": "1"}, "unknown key method.alfa; did you mean method.alpha?"),
        ({"total_imagez": "1"}, "unknown key total_imagez; did you mean total_images?"),
        ({"alpha": "1"}, "did you mean method.alpha?"),
        ({"lr": "1"}, "did you mean generator.lr or fake_score.lr?"),
        ({"zzz": "1"}, "the keys here are kind, storage,"),
        ({"failure.zzz": "1"}, "the keys of failure are max_failures"),
        ({"method.guidance.zzz.y": "1"}, "unknown key method.guidance.zzz"),
        ({"method.adversarial.a\nb": "1"}, "unknown key method.adversarial.a b"),
        ({"": "1"}, "unknown key"),
        # values
        ({"method.tmax": "2000"}, "method.tmax is 2000; allowed: integer above 0, at most 1000"),
        ({"method.tmax": "1.5"}, "method.tmax is 1.5; allowed: integer"),
        ({"method.tmax": "many"}, "method.tmax is 'many'; allowed: integer"),
        ({"batch_size": ""}, "batch_size is null; allowed: integer"),
        ({"batch_size": "yes"}, "batch_size is 'yes'"),
        ({"seed": "-1"}, "seed is -1; allowed: integer at least 0"),
        ({"generator.lr": ".inf"}, "generator.lr is inf; allowed: a finite number above 0"),
        ({"generator.lr": ".nan"}, "generator.lr is nan"),
        ({"generator.lr": "[1"}, "generator.lr is '[1', which is not a YAML value"),
        ({"method.alpha": "{a: 1}"}, "method.alpha is {'a': 1}; allowed: number"),
        ({"method.alpha.x": "1"}, "method.alpha is {'x': 1}; allowed: number"),
        ({"method": "3"}, "method is 3; allowed: mapping of alpha,"),
        ({"method": None}, "method is null; allowed: mapping"),
        ({"placement": "spit"}, "placement is 'spit'; allowed: split or colocated or local"),
        ({"run.name": "a/b"}, "run.name is 'a/b'; allowed: text that matches"),
        ({"run.name": ".."}, "run.name is '..'"),
        ({"run.name": ""}, "run.name is ''"),
        ({"data.source": 3}, "data.source is 3; allowed: text, or list, each: text, or null; quote it"),
        ({"generator.betas": "[0.9]"}, "generator.betas.1 is missing; allowed in generator.betas: list of 2"),
        ({"generator.betas": "[0.9, 2]"}, "generator.betas.1 is 2; allowed in generator.betas: list of 2"),
        ({"resources.teacher.resources": "{a: b}"}, "resources.teacher.resources.a is 'b'"),
        ({"seed": "[" * 5000}, "nested too deeply"),
        ({"seed": "x" * 10_000}, "seed is 'xxx"),
        # together
        ({"microbatch_size": "48"}, "is not a multiple of microbatch_size 48"),
        ({"generator.num_workers": "0"}, "generator.num_workers is 0; allowed: integer above 0"),
        (
            {"generator.num_workers": "3"},
            "batch_size 128 does not divide among generator.num_workers 3 and fake_score.num_workers 1",
        ),
        (
            {"fake_score.num_workers": "2", "microbatch_size": "128"},
            "batch_size 128 in microbatches of 128 is 1 a step, which do not divide among generator.num_workers 1",
        ),
        (
            {"generator.num_workers": "2", "placement": "local"},
            "placement local is one process, not generator.num_workers 2 and fake_score.num_workers 1",
        ),
        (
            {"method.adversarial.group_size": "32", "fake_score.num_workers": "8"},
            "a microbatch of 16 images (batch_size 128, generator.num_workers 1 and fake_score.num_workers 8) does "
            "not divide into groups of method.adversarial.group_size 32",
        ),
        ({"teacher.recipe": "null"}, "teacher: give teacher.path (a teacher's folder), teacher.recipe"),
        ({"kind": "pretrain"}, "kind is 'pretrain'; allowed: distill"),
    ],
)
def test_a_bad_override_is_reported(overrides: dict[str, Any], words: str) -> None:
    line = complaint("digits-sid", overrides)
    assert words in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            {"seed": "-1", "method.tmax": "0", "storag": "x"},
            [
                "unknown key storag; did you mean storage?",
                "seed is -1; allowed: integer at least 0, below 9223372036854775808",
                "method.tmax is 0; allowed: integer above 0, at most 100000, or null",
            ],
        ),
        (  # conflicts, with all settings valid or not
            {"microbatch_size": "48", "data.source": "null", "method.adversarial": "{}"},
            [
                "digits-sid: method.adversarial needs real images: give data.source, or null for method.adversarial",
                "digits-sid: batch_size 128 is not a multiple of microbatch_size 48",
            ],
        ),
        (
            {"microbatch_size": "48", "seed": "-1", "colocated.min_workers": "2"},
            [
                "seed is -1; allowed: integer at least 0, below 9223372036854775808",
                "colocated: min_workers 2 is more than num_workers 1",
                "digits-sid: batch_size 128 is not a multiple of microbatch_size 48",
            ],
        ),
        # conflicts with a setting that is invalid by itself
        ({"microbatch_size": "x"}, ["microbatch_size is 'x'; allowed: integer above 0, or null"]),
        ({"generator.num_workers": "0"}, ["generator.num_workers is 0; allowed: integer above 0"]),
        (
            {"data.source": "[1, a]"},
            ["data.source.0 is 1; allowed in data.source: text, or list, each: text, or null; quote it"],
        ),
    ],
)
def test_all_problems_are_reported_at_once(overrides: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_recipe("digits-sid", overrides)
    assert str(caught.value).splitlines() == lines


def test_all_problems_of_a_file_are_reported_with_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "kind: distill\nmetod: {}\ntotal_imagez: 5\nseed: -1\n")
    with pytest.raises(InvalidConfig) as caught:
        load_recipe(path)
    assert str(caught.value).splitlines() == [
        f"{path}: unknown key metod; did you mean method?",
        f"{path}: unknown key total_imagez; did you mean total_images?",  # so it is not missing
        f"{path}: seed is -1; allowed: integer at least 0, below 9223372036854775808",
        f"{path}: teacher is missing; give it a value (Teacher to distil)",
    ]


def test_an_inconsistent_network_is_reported() -> None:
    line = complaint("digits-teacher", {"network.img_resolution": "9"})
    assert line.startswith("network: img_resolution 9 cannot be halved")


def test_a_bad_value_is_reported_with_its_file(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", DISTILL + "seed: -1\n")
    top = write(tmp_path, "top.yaml", "extends: base.yaml\nbatch_size: 64\n")
    assert complaint(top).startswith(f"{base}: seed is -1")
    assert complaint(base).startswith(f"{base}: seed is -1")
    assert complaint(top, {"seed": "-2"}).startswith("seed is -2")


def test_a_missing_value_is_reported_with_its_meaning(tmp_path: Path) -> None:
    path = write(tmp_path, "short.yaml", "kind: distill\nteacher: {path: t}\n")
    line = complaint(path)
    assert line == f"{path}: total_images is missing; give it a value (Length of the distillation, in images)"
    path = write(tmp_path, "short.yaml", "kind: pretrain\ntotal_images: 1\nnetwork: {img_channels: 1}\n")
    assert complaint(path).startswith(f"{path}: network.img_resolution is missing")


def test_kinds_have_the_config_of_their_name() -> None:
    assert [config_model(kind) for kind in KINDS] == [PretrainConfig, Config, TuneConfig]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("-.inf", -math.inf),
    ]
    + [
        (text, text) for text in ("2:30", "2026-11-30", "on", "0b1", "1__0", "1:30:00", "2026-11-30 10:00:00")
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """YAML 1.1 reads octal numbers, numbers to the base of 60, and dates."""
    assert parse_yaml(f"key: {text}") == {"key": value}
    assert parse_yaml(dump_yaml({"key": text})) == {"key": text}  # as text it is quoted


@pytest.mark.parametrize("device", ["/dev/zero", "pipe"])
def test_a_recipe_that_is_no_file_is_refused_and_not_read(tmp_path: Path, device: str) -> None:
    if device == "pipe":
        os.mkfifo(tmp_path / "pipe.yaml")
        device = str(tmp_path / "pipe.yaml")
    mine = write(tmp_path, "mine.yaml", f"extends: {device}\n")
    with pytest.raises(UserError, match="is not a file, but a pipe or a device"):
        load_recipe(mine)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/mine.yaml", "ftp://host/mine.yaml", "r2://b/mine.yaml"]
)
def test_a_recipe_is_fetched_from_buckets_only(address: str) -> None:
    with pytest.raises(UserError, match=r"give a path, gs://\.\.\. or s3://\.\.\."):
        load_recipe(address)


@pytest.mark.parametrize("kind", ["lists", "mappings", "merges"])
def test_aliases_that_expand_without_end_are_refused(tmp_path: Path, kind: str) -> None:
    """Twenty lines that stand for 9^20 values; a few aliases are usual."""
    form = {"lists": "[{}]", "mappings": "{{{}}}", "merges": "{{<<: [{}]}}"}[kind]
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 21):
        parts = [f"k{n}: *a{level - 1}" if kind == "mappings" else f"*a{level - 1}" for n in range(9)]
        lines.append(f"a{level}: &a{level} " + form.format(", ".join(parts)))
    bomb = write(tmp_path, "bomb.yaml", DISTILL + "\n".join(lines) + "\n")
    assert "more than 100,000 values once its aliases are expanded" in complaint(bomb)
    few = "kind: distill\ntotal_images: 1000\ngenerator: &g {lr: 1e-4}\nfake_score: *g\nteacher: {path: t}\n"
    config = load_recipe(write(tmp_path, "few.yaml", few))
    assert isinstance(config, Config) and config.fake_score.lr == 1e-4


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "0o" + "7" * 5000])
def test_a_number_without_measure_is_refused(tmp_path: Path, number: str) -> None:
    assert "a number of more than 100 digits" in complaint(
        write(tmp_path, "m.yaml", DISTILL + f"seed: {number}\n")
    )


def test_a_file_that_is_too_large_for_a_recipe_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"[" * (1 << 19))
    with pytest.raises(UserError, match="has 524,288 bytes, and a recipe at most 262,144"):
        load_recipe(str(path))
