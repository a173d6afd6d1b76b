"""README and docs: their commands run, their links resolve, and the names that they use exist.

A page is run in a folder of its own, from top to bottom. A block of code is one of these:

- `bash` or `python`: it is run, unless the comment above it says otherwise;
- with `<!-- slow: why -->` above it: it is run among the slow tests;
- with `<!-- not run: why -->` above it: it is not run, but what it names must exist;
- with `<!-- file: NAME -->` above it: it is written to that file, and a YAML file must be a recipe;
- `text`: output, or a drawing.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from raysid.cli.main import cli
from raysid.config import Config, PretrainConfig, TuneConfig
from raysid.config.fields import config_fields
from raysid.recipes import load_recipe, packaged_recipes

ROOT = Path(__file__).parents[1]
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
PAGES = [*(ROOT / name for name in TOP_PAGES), *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 160
RUN_SECONDS = 1500  # for a block; the machine may be busy

BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIELDS = {name for model in (Config, PretrainConfig, TuneConfig) for name in config_fields(model)}
SECTIONS = {name.partition(".")[0] for name in FIELDS if "." in name}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: as the fence names it.
        note: the comment above it; empty without one.
        line: number of its first line, from 1.
    """

    language: str
    note: str
    text: str
    line: int

    @property
    def kind(self) -> str:
        """One of slow, not run, file, text, run; empty where the page does not say."""
        word, colon, reason = self.note.partition(": ")
        if self.note:
            return word if word in ("slow", "not run", "file") and colon and reason.strip() else ""
        return {"text": "text", "bash": "run", "python": "run"}.get(self.language, "")


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(match[2], match[1] or "", match[3], text.count("\n", 0, match.start(2)) + 1)
        for match in BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """The text of a page outside its blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def code_spans(page: Path) -> list[str]:
    """The code within the lines of a page's text."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def with_blocks(kind: str) -> list[Path]:
    return [page for page in PAGES if any(block.kind == kind for block in blocks(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which also names what is gone
every_page_of_the_present = pytest.mark.parametrize("page", PRESENT, ids=name_of)


# -- running them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", with_blocks("run"), ids=name_of)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, {"run"})


@pytest.mark.slow
@pytest.mark.timeout(4 * RUN_SECONDS)
@pytest.mark.parametrize("page", with_blocks("slow"), ids=name_of)
def test_the_slow_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, {"run", "slow"})


def run_page(page: Path, folder: Path, kinds: set[str]) -> None:
    """Write a page's files and run its blocks of some kinds, in their order."""
    prepare(folder)
    for block in blocks(page):
        if block.kind == "file":
            (folder / block.note.removeprefix("file: ")).write_text(block.text)
        elif block.kind in kinds:
            start = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
            run([*start, block.text], folder, f"{page.name}, line {block.line}")


def prepare(folder: Path) -> None:
    """Give a page the files that it names: pictures, a recipe for them, a published network, the examples."""
    make_photos(folder / "photos")
    (folder / "mine.yaml").write_text(RECIPE)
    shutil.copy(ROOT / "tests" / "reference" / "edm_ddpmpp.pkl", folder / "edm-network.pkl")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "jobs", folder / "jobs")


RECIPE = """
kind: pretrain
data: {source: photos}
network: {img_resolution: 8, img_channels: 1, label_dim: 2, model_channels: 16, channel_mult: [1, 2], num_blocks: 1}
total_images: 1000
"""


def make_photos(folder: Path) -> None:
    source = np.random.default_rng(0)
    for number in range(40):
        path = folder / f"class-{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.integers(256, size=(8, 8), dtype=np.uint8)).save(path)


def run(command: list[str], folder: Path, where: str) -> str:
    """Run a command in `folder` with this tree's raysid first on the path, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_worker_niceness": "0",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


# -- the examples ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(4 * RUN_SECONDS)
def test_a_generator_in_python_and_many_images_of_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path, dirs_exist_ok=True)
    run([sys.executable, "own_images.py"], tmp_path, "own_images.py")
    assert Image.open(tmp_path / "generated.png").size == (640, 512)
    many = [sys.executable, "batch_inference.py", "runs/mine"]
    run([*many, "images", "--count", "120", "--batch-size", "50"], tmp_path, "batch_inference.py")
    pictures = sorted((tmp_path / "images").rglob("*.png"))
    assert len(pictures) == 120 and {path.parent.name for path in pictures} == {str(k) for k in range(10)}
    run([*many, "table", "--count", "120", "--actors", "1", "--parquet"], tmp_path, "batch_inference.py")
    import pyarrow.parquet as parquet

    rows = {row["id"]: row["image"] for row in parquet.read_table(tmp_path / "table").to_pylist()}
    assert sorted(rows) == list(range(120))
    for path in pictures:  # the same image, however the work was shared; a pixel may round the other way
        image = np.array(rows[int(path.stem)], dtype=int).reshape(8, 8)
        assert np.abs(np.asarray(Image.open(path)).astype(int) - image).max() <= 1, path.name


@pytest.mark.slow
@pytest.mark.timeout(2 * RUN_SECONDS)
def test_the_tour(tmp_path: Path) -> None:
    printed = run([sys.executable, str(ROOT / "examples" / "tour.py")], tmp_path, "tour.py")
    assert "torch.Size([20, 1, 8, 8])" in printed


@pytest.mark.slow
@pytest.mark.timeout(2 * RUN_SECONDS)
def test_the_points(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "points", tmp_path, dirs_exist_ok=True)
    run([sys.executable, "points.py"], tmp_path, "points.py")
    run(["raysid", "distill", "points.yaml"], tmp_path, "points.yaml")
    printed = run([sys.executable, "sample.py"], tmp_path, "sample.py")
    (share,) = re.findall(r"(\d+)% of 2,000 points", printed)
    assert int(share) > 55, printed


# -- what they name -------------------------------------------------------------------------------------------


@every_page
def test_every_block_is_run_or_marked(page: Path) -> None:
    wrong = [f"{page.name}, line {block.line}: {block.note!r}" for block in blocks(page) if not block.kind]
    assert not wrong, "neither run nor marked:\n" + "\n".join(wrong)


@every_page
def test_every_python_and_yaml_block_is_well_formed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "yaml":
            assert block.kind == "file", f"{page.name}, line {block.line}: a recipe is a file"
            name = block.note.removeprefix("file: ")
            Path(name).write_text(block.text)
            load_recipe(name)


@every_page
def test_links_resolve(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page_of_the_present
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:raysid|tests|examples|docs|jobs|cluster)/[\w./-]*)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page.name}: {missing}"


@every_page_of_the_present
def test_commands_that_are_named_exist(page: Path) -> None:
    for where, words in named_commands(page):
        try:
            check_command(words)
        except AssertionError as error:
            raise AssertionError(f"{page.name}, {where}: {' '.join(words)}: {error}") from None


def named_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of the blocks and of the text, in words, and where it is."""
    for block in blocks(page):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                yield f"line {block.line}", shlex.split(line, comments=True)
    for span in code_spans(page):
        if span.startswith(("raysid ", "python -m ", "make ", "pytest ")):
            yield "text", shlex.split(span)


def check_command(words: list[str]) -> None:
    """Refuse a command with a name that does not exist."""
    match words:
        case ["raysid", *rest]:
            check_raysid(rest)
        case ["python", "-m", module, *_]:
            assert module == "raysid" or importlib.util.find_spec(module), f"no module {module}"
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), "no such target"
        case ["pytest", *rest]:
            paths = [word for word in rest if word.startswith("tests/")]
            assert all((ROOT / path).exists() for path in paths), "no such test"


def options_of(command: click.Command) -> set[str]:
    """The options of a command, with `_` for every dash."""
    with click.Context(command) as context:
        params = command.get_params(context)
    return {option.replace("-", "_") for param in params for option in (*param.opts, *param.secondary_opts)}


TAKES_RECIPE = ("distill", "pretrain", "tune", "plan", "bench", "config")


def check_raysid(words: list[str]) -> None:
    """Refuse a command of raysid, an option or a recipe that does not exist."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0].isupper():  # a placeholder
            return
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    spelt = options_of(command) | {"__help", "_h", "__version"}
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"--?[A-Za-z][\w.-]*", option):
            assert option.replace("-", "_") in spelt, f"no option {option}"
    if command.name in TAKES_RECIPE and words and not words[0].startswith("-"):
        recipe = words[0]
        known = recipe in packaged_recipes() or recipe.endswith(".yaml") or recipe.isupper()
        assert known or "[" in recipe, f"no recipe {recipe}"


@every_page_of_the_present
def test_options_and_settings_that_are_named_exist(page: Path) -> None:
    every_option = all_options()
    for span in code_spans(page):
        option = re.match(r"--([a-z][\w.-]*)", span)
        if option:
            name = option[1].removeprefix("against.").replace("-", "_")
            assert name in every_option or name.endswith("NAME"), f"{page.name}: no option {span}"
        setting = re.fullmatch(r"([a-z_]+)((\.[a-z0-9_]+)+)( .*)?", span)
        if setting and setting[1] in SECTIONS and not setting[2].endswith((".json", ".yaml")):
            assert setting[1] + setting[2] in FIELDS, f"{page.name}: no setting {span}"


# Options of other programs.
OTHERS = {"load_fast", "working_dir", "follow"}


@cache
def all_options() -> set[str]:
    """Every option of every command, without dashes in front and with `_` inside."""
    commands: list[click.Command] = [cli]
    found = OTHERS | {"help"}
    for command in commands:
        found |= {option.lstrip("_") for option in options_of(command)}
        if isinstance(command, click.Group):
            commands.extend(command.commands.values())
    return found


# -- what holds of all ----------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_recipe_and_command_is_documented() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in packaged_recipes() if f"{name}" not in text] == []
    assert [name for name in cli.commands if f"raysid {name}" not in text] == []


def test_what_the_code_cites_is_there() -> None:
    documents = {name: (ROOT / name).read_text() for name in ("docs/design.md", "docs/method.md")}
    wrong = []
    for folder in ("raysid", "tests", "jobs", "examples"):
        for path in sorted({*(ROOT / folder).rglob("*.py")} - {Path(__file__)}):
            # The document, and the section where one is named.
            cited = re.findall(r'([\w/]*(?:design|method)\.md)(?:,\s*"([^"]+)")?', path.read_text())
            for document, section in cited:
                heading = f"^#+ {re.escape(section)}$" if section else ""
                if document not in documents or not re.search(heading, documents[document], re.MULTILINE):
                    wrong.append(f"{path.relative_to(ROOT)}: {document} {section}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "words",
    [
        "raysid distil digits-sida",
        "raysid distill digits-nope",
        "raysid sample RUN --ouput x",
        "raysid plan digits-sid --device 1",
    ],
)
def test_a_wrong_command_is_noticed(words: str) -> None:
    with pytest.raises(AssertionError, match="no (command|recipe|option)"):
        check_command(words.split())
