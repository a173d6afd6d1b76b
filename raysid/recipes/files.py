"""Finding and reading the files of a recipe: its own and those that it extends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysid.errors import UserError
from raysid.recipes.migrations import migrated
from raysid.recipes.yaml_form import NotYAML, parse_yaml

_FOLDER = Path(__file__).resolve().parent
MAX_RECIPE = 1 << 18  # bytes; PyYAML takes seconds for them
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeSummary:
    """Kind and description of a packaged recipe; the description is the first line of its opening comment."""

    kind: str
    description: str


@dataclass(frozen=True)
class Source:
    """One YAML file: its name in messages, its path, its content."""

    name: str
    path: Path
    values: dict[str, Any]


def packaged_recipes() -> dict[str, RecipeSummary]:
    """Return the recipes that are part of the package, by name."""
    return {path.stem: _summary(path) for path in sorted(_FOLDER.glob("*.yaml"))}


def read_sources(recipe: str, folder: Path) -> list[Source]:
    """Read a recipe's file and those it extends; each overrides the next.

    Args:
        recipe: name of a packaged recipe, or path (or URL) of a YAML file.
        folder: folder that a relative path starts from.

    Raises:
        UserError: there is no such recipe, a file cannot be read, or a recipe extends itself or another kind.
    """
    sources: list[Source] = []
    wanted: str | None = recipe
    while wanted is not None:
        name, path = _locate(wanted, folder, extended_by=sources[-1].name if sources else None)
        if any(path == source.path for source in sources):
            chain = " extends ".join([*(source.name for source in sources), name])
            raise UserError(f"{chain}: a recipe cannot extend itself; take out one `extends`")
        values = _read(name, path)
        wanted = values.pop("extends", None)
        if wanted is not None and not isinstance(wanted, str):
            raise UserError(f"{name}: `extends` must be a recipe's name or path, as text")
        folder = path.parent
        make_recipes_absolute(values, folder)
        sources.append(Source(name, path, values))
    kinds = [(source.name, source.values["kind"]) for source in sources if "kind" in source.values]
    for (name, kind), (base, base_kind) in zip(kinds, kinds[1:], strict=False):
        if kind != base_kind:
            raise UserError(f"{name} is of kind {kind}, but extends {base}, which is of kind {base_kind}")
    return sources


def make_recipes_absolute(values: dict[str, Any], folder: Path) -> None:
    """Make relative paths of other recipes (a teacher's, a search's) absolute: a command may run in any folder."""
    if _is_relative(values.get("recipe")):
        values["recipe"] = str(_path(values["recipe"], folder).resolve())
    teacher = values.get("teacher")
    if isinstance(teacher, dict) and _is_relative(teacher.get("recipe")):
        values["teacher"] = {**teacher, "recipe": str(_path(teacher["recipe"], folder).resolve())}


def _summary(path: Path) -> RecipeSummary:
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    kinds = [source.values["kind"] for source in read_sources(path.stem, _FOLDER) if "kind" in source.values]
    return RecipeSummary(kinds[0], first_line.lstrip("# ").strip())


def _locate(recipe: str, folder: Path, extended_by: str | None) -> tuple[str, Path]:
    """Return a recipe's name in messages, and its file."""
    packaged = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    if recipe in packaged:
        return recipe, _FOLDER / f"{recipe}.yaml"
    prefix = f"{extended_by}: `extends`: " if extended_by else ""
    try:
        path = _path(recipe, folder)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None
    name = recipe if extended_by is None else str(path)
    try:
        if path.is_dir():
            raise UserError(f"{prefix}{name} is a folder; give the YAML file in it")
        if path.is_file():
            return name, path.resolve()
        if path.exists():  # reading a device or a pipe may never end
            raise UserError(f"{prefix}{name} is not a file, but a pipe or a device; give a YAML file")
    except OSError as error:  # a folder on the way without permission, a name that is too long
        raise UserError(f"{prefix}{name} cannot be read: {error.strerror}") from error
    from raysid.recipes.problems import closest

    likely = closest(Path(recipe).name.removesuffix(".yaml"), packaged)
    missing = f"no file {name}" if _is_path(recipe) else f"no recipe {recipe!r}"
    hint = f"did you mean {' or '.join(likely)}? " if likely else ""
    choices = f"packaged recipes: {', '.join(packaged)}; or give the path of a YAML file"
    raise UserError(f"{prefix}{missing}; {hint}{choices}")


def _path(recipe: str, folder: Path) -> Path:
    """Return a recipe's path, from `folder` if it is relative, with `~` and `${NAME}` expanded. Raises UserError."""
    if "://" in recipe or "${" in recipe or "\0" in recipe:  # the last is refused
        from raysid.storage import location  # imports the buckets' clients, which other recipes do not need

        path = location(recipe)
        # A bucket's path has the methods of a Path that are used here; a search writes its best recipe there.
        return path if "://" in recipe else folder / path.path  # type: ignore[return-value]
    return folder / os.path.expanduser(recipe)


def _is_path(recipe: str) -> bool:
    return recipe.endswith(_SUFFIXES) or os.sep in recipe


def _is_relative(recipe: Any) -> bool:
    return isinstance(recipe, str) and _is_path(recipe) and "://" not in recipe


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > MAX_RECIPE:
            raise UserError(
                f"{name} has {size:,} bytes, and a recipe at most {MAX_RECIPE:,}; give a YAML file"
            )
        values = parse_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    except NotYAML as error:
        raise UserError(f"{name} is not a recipe in YAML: {error}") from error
    if not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{name} is {found}, not a mapping; a recipe has lines like `kind: distill`")
    return migrated(values, name)


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Merge `over` into `base`, in place: mappings key by key; any other value, null too, replaces."""
    for key, value in over.items():
        if isinstance(value, Mapping):
            if not isinstance(base.get(key), dict):
                base[key] = {}
            merge(base[key], value)  # a copy: a source must not change
        else:
            base[key] = value
