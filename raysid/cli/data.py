"""`raysid data`: checking real images and prompts before a run, and converting images."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from raysid.cli.recipe_command import FieldOption, given_overrides
from raysid.errors import UserError, printable

if TYPE_CHECKING:
    from raysid.config import DataSettings
    from raysid.data import ImageSource
    from raysid.data.check import Survey

GRID_IMAGES, GRID_COLUMNS = 64, 8
MOST_LISTED = 12  # sizes, modes and classes in a line


PROMPT_SUFFIXES = (".txt", ".jsonl", ".ndjson")


class DataCommand(click.Command):
    """A command that takes the settings of real images as options."""

    prompts = False  # whether it takes those of prompts, too

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self._field_options]

    # Built when first needed: importing the config takes a second.
    @cached_property
    def _field_options(self) -> list[FieldOption]:
        from raysid.config import DataConfig
        from raysid.config.fields import config_fields
        from raysid.config.prompts import PromptConfig

        fields = [*config_fields(DataConfig).values()]
        if self.prompts:
            fields += config_fields(PromptConfig).values()
        return [
            FieldOption(field)
            for field in fields
            # The argument is the source.
            if not (
                field.is_section
                or "training_only" in field.marks
                or field.path in ("data.source", "prompts.source", "prompts.max_bad_fraction")
            )
        ]


class CheckCommand(DataCommand):
    """A command that takes the settings of real images and of prompts as options."""

    prompts = True


@click.group()
def data() -> None:
    """Check real images or prompts before training, or convert images to Parquet."""


@data.command(
    cls=CheckCommand, short_help="Describe real images or prompts, and refuse those that cannot be used."
)
@click.argument("path", nargs=-1, required=True)
@click.option(
    "--recipe",
    help="Recipe that the images are for: its `data` settings apply, and its network must fit them.",
)
@click.option(
    "--grid",
    default="data-check.png",
    show_default=True,
    metavar="PNG",
    help="File for a grid of some images.",
)
@click.option(
    "--tokenizer",
    metavar="PIPELINE",
    help="Folder of a pipeline or a teacher, to count the prompts that are too long for its text encoder.",
)
@click.pass_context
def check(
    ctx: click.Context, path: tuple[str, ...], recipe: str | None, grid: str, tokenizer: str | None
) -> None:
    """Describe real images or prompts, and refuse those that cannot be used.

    PATH is a folder of images, a .zip, .parquet or .tar, gs://... or s3://..., a glob, several of them, or
    `digits` or `patches`. Every image is decoded; each that cannot be used is named. Prompts are .txt and .jsonl
    files, and .parquet or .tar files without pictures; a million of them are read.
    """
    given: Any = path[0] if len(path) == 1 else list(path)
    overrides = {"data.source": given, **given_overrides(ctx)}
    named = {name: value for name, value in overrides.items() if name.startswith("prompts.")}
    overrides = {name: value for name, value in overrides.items() if name not in named}
    if named or tokenizer or all(each.lower().endswith(PROMPT_SUFFIXES) for each in path):
        _check_prompts({"prompts.source": given, **named}, tokenizer)
        return
    try:
        _check_images(overrides, recipe, grid)
    except UserError as error:
        if recipe is not None:
            raise
        if (why := _no_prompts(given)) is not None:
            raise UserError(f"{error}{why}") from None
        _check_prompts({"prompts.source": given}, tokenizer)


def _check_images(overrides: dict[str, Any], recipe: str | None, grid: str) -> None:
    from raysid.data import to_unit
    from raysid.data.check import check_usable, first_images, survey
    from raysid.data.opening import find_source
    from raysid.data.picture_source import PictureSource
    from raysid.recipes import data_settings, load_recipe
    from raysid.run.image_grid import save_grid
    from raysid.run.progress import ProgressLine

    config: Any = load_recipe(recipe, overrides) if recipe else None
    settings: DataSettings = config.data if config else data_settings(overrides)
    captioned = settings.caption_column is not None or getattr(config, "takes_text", False)
    source = find_source(settings, captioned)
    click.echo(f"{source.name}: {source.num_images:,} images")
    if isinstance(source, PictureSource):
        with ProgressLine("check", source.num_images) as line:
            found = survey(source, settings, lambda count: line.update(count, {}))
        sizes = {f"{width}x{height}": count for (width, height), count in found.sizes.most_common()}
        click.echo(f"sizes    {_counts(sizes)}")
        click.echo(f"modes    {_counts(dict(found.modes.most_common()))}")
        if captioned:
            _print_captions(found)
    if not captioned:
        _print_classes(source)
    _print_notes(source)
    if isinstance(source, PictureSource):
        for name in found.bad:
            click.echo(f"bad      {name}")
        check_usable(source, settings, found)
    if config is not None:
        _check_recipe(config, source)
    save_grid(to_unit(first_images(source, GRID_IMAGES), source.pixel_max), grid, GRID_COLUMNS)
    click.echo(f"grid     {grid}")


def _print_captions(found: Survey) -> None:
    """Print the number of captions, their lengths and examples."""
    shortest, longest = min(found.words, default=0), max(found.words, default=0)
    good = found.count - len(found.bad)
    total = sum(found.words.values())
    click.echo(f"captions {total:,} in {good:,} images, {shortest} to {longest} words")
    for caption in found.captions:
        click.echo(f"caption: {printable(caption)}")


def _no_prompts(source: Any) -> str | None:
    """Return None if a source that holds no images holds prompts; else what to add to the message that it does not."""
    from raysid.config import PromptSettings
    from raysid.data.prompts import open_prompts

    try:
        open_prompts(PromptSettings(source=source))
    except UserError as error:
        return f"; or, if it is of prompts: {error}" if "prompts.column" in str(error) else ""
    return None


def _check_prompts(overrides: dict[str, Any], tokenizer: str | None) -> None:
    """Describe prompts. Raises UserError if they cannot be used."""
    from raysid.data.prompts import open_prompts
    from raysid.data.prompts.check import MOST_ROWS, in_words, survey
    from raysid.data.source import LEFT_OUT
    from raysid.recipes import prompt_settings
    from raysid.run.progress import ProgressLine
    from raysid.storage import location

    settings = prompt_settings(overrides)
    source = open_prompts(settings)
    click.echo(f"{source.name}: {source.num_prompts:,} prompts")
    cut = None
    if tokenizer is not None:
        from raysid.networks.text import Tokenizer

        counted = Tokenizer(location(tokenizer))
        cut = lambda texts: int(counted(texts).cut.sum()) if texts else 0  # noqa: E731
    with ProgressLine("check", min(source.num_prompts, MOST_ROWS), unit="prompts") as line:
        found = survey(source, cut, lambda rows: line.update(rows, {}))
    if found.rows < source.num_prompts:
        click.echo(f"read     the first {found.rows:,}")
    click.echo(f"columns  {_counts(dict(found.good))}")
    click.echo(f"words    {in_words(found.words)}")
    click.echo(f"letters  {in_words(found.characters)}")
    if found.left_out:
        click.echo(f"left out {found.left_out:,} ({LEFT_OUT})")
    if cut is None:
        click.echo("too long give --tokenizer PIPELINE to count the prompts that its text encoder cuts")
    elif found.words:
        click.echo(
            f"too long {found.cut:,} ({(found.cut or 0) / len(found.words):.1%}), cut at {counted.length} tokens"
        )
    for name, examples in found.examples.items():
        for text in examples:
            click.echo(f"{name + ':':<8} {text}")
    for fault in found.faults:
        click.echo(f"bad      {fault}")
    if not found.words:
        raise UserError(f"{source.name} holds no prompt that can be used")
    if found.bad > settings.max_bad_fraction * found.rows:
        raise UserError(
            f"{found.bad:,} of {found.rows:,} prompts cannot be used, which is more than prompts.max_bad_fraction = "
            f"{settings.max_bad_fraction:g} of them: repair them, or give a larger fraction"
        )


@data.command(cls=DataCommand, short_help="Convert real images to Parquet files, for streaming.")
@click.argument("src", nargs=-1, required=True)
@click.argument("dst")
@click.pass_context
def convert(ctx: click.Context, src: tuple[str, ...], dst: str) -> None:
    """Convert real images to Parquet files, of a size for streaming, in parallel with Ray Data.

    SRC is as PATH of `raysid data check`; DST is a folder, gs://... or s3://..., for `data.source`. Images are
    cropped and resized to `--data.resolution`, if given; those that cannot be used are skipped and named. With
    `--data.caption_column` captions are kept in place of labels. Run the same command to resume.
    """
    overrides = {"data.source": src[0] if len(src) == 1 else list(src), **given_overrides(ctx)}
    from raysid.cluster.connect import connect
    from raysid.data import open_source
    from raysid.data.convert import check_target, convert_files, plan_files
    from raysid.data.picture_source import PictureSource
    from raysid.recipes import data_settings
    from raysid.run.progress import ProgressLine
    from raysid.storage import storage_folder

    settings = data_settings(overrides)
    source = open_source(settings, captioned=settings.caption_column is not None)
    if not isinstance(source, PictureSource):
        raise UserError(f"data.source {source.name} comes with a package: there is nothing to convert")
    _print_notes(source)
    target = storage_folder(dst)
    files = plan_files(source)
    check_target(target, source, len(files))
    connect()
    done, written = 0, 0
    bad: list[str] = []
    with ProgressLine("convert", source.num_images) as line:
        for file in convert_files(source, target, files):
            done, written, bad = done + file.images, written + file.written, bad + file.bad
            line.update(done, {})
    for name in bad:
        click.echo(f"left out {name}")
    click.echo(f"{written:,} images in {len(files)} file{'s' * (len(files) > 1)}: {target}")


def _print_classes(source: ImageSource) -> None:
    if not source.num_classes:
        click.echo("classes  none")
        return
    labels = getattr(source, "labels", None)
    names = map(printable, labels.names) if labels else map(str, range(source.num_classes))
    counts = dict(zip(names, source.label_counts.tolist(), strict=True))
    click.echo(f"classes  {source.num_classes:,}: {_counts(counts)}")


def _print_notes(source: ImageSource) -> None:
    for note in source.notes:
        click.echo(f"note     {note}")


def _counts(counts: dict[str, int]) -> str:
    listed = [f"{name} ({count:,})" for name, count in list(counts.items())[:MOST_LISTED]]
    more = len(counts) - MOST_LISTED
    return ", ".join(listed or ["-"]) + (f" and {more:,} more" if more > 0 else "")


def _check_recipe(config: Any, source: ImageSource) -> None:
    """Refuse images that do not fit the recipe's network."""
    from raysid.config import PretrainConfig
    from raysid.trainers.teacher_checks import check_trains
    from raysid.trainers.teachers import find_teacher

    if isinstance(config, PretrainConfig):
        check_trains(config, source)
    else:
        find_teacher(config, source)
