"""`raysid evaluate`, `sample` and `watch`: finished and running runs."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysid.cli.options import EVALUATION_SEED, FACTORY, NUM_SAMPLES, RUN_HELP, SEEDS, WHICH, announce
from raysid.errors import UserError

# The commands import torch when they run: the others must not wait for that.
if TYPE_CHECKING:
    from torch import Tensor

    from raysid.generator import Generator, Which

_FIGURES = {
    "frechet_distance": "Fréchet distance to the real images",
    "halves_distance": "the same between two halves of the real images",
    "agreement": "images that agree with their prompts",
    "words_right": "words for attributes that are right",
    "held_out_right": "the same of words never seen in training",
    "ms_per_image": "milliseconds per image",
    "num_samples": "images made",
}


@click.command(help=f"Measure a generator against the real images.\n\n{RUN_HELP}")
@click.argument("run")
@WHICH
@NUM_SAMPLES
@EVALUATION_SEED
@FACTORY
@click.pass_context
def evaluate(
    ctx: click.Context, run: str, which: Which, num_samples: int, seed: int, factory: str | None
) -> None:
    announce(ctx, run)
    from raysid.generator import generator_folder
    from raysid.trainers.evaluation import evaluate_generator_path

    folder = generator_folder(run, which)
    print_figures(str(folder), evaluate_generator_path(run, which, num_samples, seed, factory))


@click.command(help=f"Draw images from a generator into a PNG.\n\n{RUN_HELP}")
@click.argument("run")
@click.option(
    "--labels", help="Classes to draw, a row for each: `3`, `0-9` or `0,2,5-7`. Default: random classes."
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Text to draw, for a generator that takes text; repeat the option for several, a row for each.",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Number of images, over all rows.",
)
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Random seed of the noise.")
@WHICH
@FACTORY
@click.option(
    "--out", required=True, metavar="PNG", help="Image file to write, a .png; replaced if it exists."
)
def sample(
    run: str,
    labels: str | None,
    prompts: tuple[str, ...],
    count: int,
    seed: int,
    which: Which,
    factory: str | None,
    out: str,
) -> None:
    classes = None if labels is None else _parse_labels(labels)
    _check_writable(Path(out))
    from raysid.generator import load_generator
    from raysid.run.image_grid import is_picture, save_grid

    generator = load_generator(run, which, factory)
    if prompts or generator.takes_text:
        if labels is not None:
            raise UserError(f"{run} takes text, not classes: leave out --labels")
        _sample_prompts(generator, run, prompts, count, seed, out)
        return
    if not is_picture(generator.sample_shape):
        raise UserError(
            f"{run} generates samples of shape {generator.sample_shape}, which are not images (1 or 3, height, width): "
            "use raysid.load_generator in Python"
        )
    images, columns = _draw(generator, classes, count, seed)
    save_grid(images, out, columns)
    click.echo(out)


def _sample_prompts(
    generator: Generator, run: str, prompts: tuple[str, ...], count: int, seed: int, out: str
) -> None:
    """Draw images of prompts, a row for each of several."""
    if not generator.takes_text:
        raise UserError(f"{run} takes no text: leave out --prompt")
    if not prompts:
        raise UserError(f'{run} makes images from text: give --prompt "a red fox in the snow"')
    import torch

    from raysid.run.image_grid import is_picture, save_grid

    per_prompt = math.ceil(count / len(prompts))
    columns = per_prompt if len(prompts) > 1 else math.ceil(math.sqrt(count))
    wanted = [prompt for prompt in prompts for _ in range(per_prompt)]
    images = generator.sample(len(wanted), generator=torch.Generator().manual_seed(seed), prompts=wanted)
    if not is_picture(tuple(images.shape[1:])):
        raise UserError(f"{run} generates samples of shape {tuple(images.shape[1:])}, which are not images")
    save_grid(images, out, columns, captions=wanted)
    click.echo(out)


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Repeat every two seconds until the run is finished.")
def watch(run: str, follow: bool) -> None:
    """Show the progress of a run, on one screen.

    RUN is the folder of a run, as in `runs/digits-sida`.
    """
    from raysid.run.watch import WATCH_SECONDS, state_of

    while True:
        state = state_of(run)
        if follow:
            click.clear()
        click.echo(state.text)
        if not follow or state.finished:
            return
        time.sleep(WATCH_SECONDS)


def print_figures(title: str, figures: dict[str, Any]) -> None:
    """Print the figures of an evaluation as a table."""
    from raysid.metrics.figures import FIGURES
    from raysid.run.table import print_table

    by_word = figures.get("by_word")
    rows = []
    for name, value in figures.items():
        if name != "by_word":
            share = value is not None and name in FIGURES and FIGURES[name].form.endswith("%")
            shown = FIGURES[name].show(value) if share else value
            rows.append([_FIGURES.get(name, name.replace("_", " ")), shown])
    print_table(title, ["figure", "value"], rows)
    if by_word:
        _print_words(by_word)


def _print_words(right: dict[str, float]) -> None:
    """Print the share of right images of each word for an attribute, that held out of training in its own column."""
    from raysid.data.captions import WORDS
    from raysid.run.table import print_table

    def shown(words: Sequence[str]) -> str:
        return ", ".join(f"{word} {right[word]:.1%}" for word in words if word in right) or "-"

    rows = [
        [f"{attribute}, {'high' if level > 0 else 'low'}", shown(words[:-1]), shown(words[-1:])]
        for attribute, levels in WORDS.items()
        for level, words in levels.items()
    ]
    print_table(
        "Images that are as the word says", ["attribute", "words of the training", "never seen"], rows
    )


def _parse_labels(text: str) -> list[int]:
    """Return the classes of a list such as `0,2,5-7`, in order, each once."""
    classes: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UserError(f"--labels {text!r} is not a list of classes; write 3, 0-9 or 0,2,5-7")
        classes |= dict.fromkeys(range(first, last + 1))
    return list(classes)


def _draw(generator: Generator, classes: list[int] | None, count: int, seed: int) -> tuple[Tensor, int]:
    """Return images (N, C, H, W) in the order of a grid, and its number of columns; with classes, a row for each."""
    import torch

    from raysid.run.image_grid import BACKGROUND

    source = torch.Generator().manual_seed(seed)
    if classes is None:
        return generator.sample(count, generator=source), math.ceil(math.sqrt(count))
    if generator.num_classes == 0:
        raise UserError("the generator has no classes; leave out --labels")
    outside = next((label for label in classes if label >= generator.num_classes), None)
    if outside is not None:
        raise UserError(f"label {outside} is outside the classes, which are 0 to {generator.num_classes - 1}")
    rows, columns = len(classes), math.ceil(count / len(classes))
    labels = torch.tensor(classes).repeat(columns)[:count]
    images = generator.sample(count, labels, generator=source)
    # Image i is in row i % rows; if the rows are not of equal length, the last cells stay empty.
    grid = torch.full((rows * columns, *images.shape[1:]), BACKGROUND)
    index = torch.arange(count)
    grid[index % rows * columns + index // rows] = images
    return grid, columns


def _check_writable(path: Path) -> None:
    """Refuse an image file that cannot be written, before any work is done."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; give the name of a file in it")
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {path} is not a .png, the format that `raysid sample` writes")
    if not folder.is_dir():
        raise UserError(f"--out {path}: there is no folder {folder}; make it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"--out {path} cannot be written: permission denied")
