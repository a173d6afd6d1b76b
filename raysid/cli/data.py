"""`raysid data`: checking real images before a run, and converting them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from raysid.cli.recipe_command import FieldOption, given_overrides
from raysid.errors import UserError

if TYPE_CHECKING:
    from raysid.config import DataSettings
    from raysid.data import ImageSource

GRID_IMAGES, GRID_COLUMNS = 64, 8
MOST_LISTED = 12  # sizes, modes and classes in a line


class DataCommand(click.Command):
    """A command that takes the settings of real images as options."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self._field_options]

    # Built when first needed: importing the config takes a second.
    @cached_property
    def _field_options(self) -> list[FieldOption]:
        from raysid.config import DataConfig
        from raysid.config.fields import config_fields

        return [
            FieldOption(field)
            for field in config_fields(DataConfig).values()
            # The argument is the source.
            if not (field.is_section or "training_only" in field.marks or field.path == "data.source")
        ]


@click.group()
def data() -> None:
    """Check real images before training, or convert them to Parquet."""


@data.command(cls=DataCommand, short_help="Describe real images, and refuse those that cannot be trained on.")
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
@click.pass_context
def check(ctx: click.Context, path: tuple[str, ...], recipe: str | None, grid: str) -> None:
    """Describe real images, and refuse those that cannot be trained on.

    PATH is a folder of images, a .zip, .parquet or .tar, gs://... or s3://..., a glob, several of them, or
    `digits` or `patches`. Every image is decoded; each that cannot be used is named.
    """
    overrides = {"data.source": path[0] if len(path) == 1 else list(path), **given_overrides(ctx)}
    from raysid.data import to_unit
    from raysid.data.check import check_usable, first_images, survey
    from raysid.data.opening import find_source
    from raysid.data.picture_source import PictureSource
    from raysid.recipes import data_settings, load_recipe
    from raysid.run.image_grid import save_grid
    from raysid.run.progress import ProgressLine

    config: Any = load_recipe(recipe, overrides) if recipe else None
    settings: DataSettings = config.data if config else data_settings(overrides)
    source = find_source(settings)
    click.echo(f"{source.name}: {source.num_images:,} images")
    if isinstance(source, PictureSource):
        with ProgressLine("check", source.num_images) as line:
            found = survey(source, settings, lambda count: line.update(count, {}))
        sizes = {f"{width}x{height}": count for (width, height), count in found.sizes.most_common()}
        click.echo(f"sizes    {_counts(sizes)}")
        click.echo(f"modes    {_counts(dict(found.modes.most_common()))}")
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


@data.command(cls=DataCommand, short_help="Convert real images to Parquet files, for streaming.")
@click.argument("src", nargs=-1, required=True)
@click.argument("dst")
@click.pass_context
def convert(ctx: click.Context, src: tuple[str, ...], dst: str) -> None:
    """Convert real images to Parquet files, of a size for streaming, in parallel with Ray Data.

    SRC is as PATH of `raysid data check`; DST is a folder, gs://... or s3://..., for `data.source`. Images are
    cropped and resized to `--data.resolution`, if given; those that cannot be used are skipped and named. Run the
    same command to resume.
    """
    overrides = {"data.source": src[0] if len(src) == 1 else list(src), **given_overrides(ctx)}
    from raysid.cluster.connect import connect
    from raysid.data import open_source
    from raysid.data.convert import check_target, convert_files, plan_files
    from raysid.data.picture_source import PictureSource
    from raysid.recipes import data_settings
    from raysid.run.progress import ProgressLine
    from raysid.storage import storage_folder

    source = open_source(data_settings(overrides))
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
    from raysid.errors import printable

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
    from raysid.trainers.teacher_checks import check_fits
    from raysid.trainers.teachers import find_teacher

    if isinstance(config, PretrainConfig):
        check_fits(config.network, "network", source)
    else:
        find_teacher(config, source)
