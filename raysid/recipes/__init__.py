"""Recipes: YAML files that fill a config, those shipped with the package and the user's own.

A recipe's `kind` says which config it fills (`pretrain`, `distill` or `tune`). `extends: NAME_OR_PATH` takes another
recipe as the base: the keys given go over the base's, section by section, and `null` replaces a section.
Paths that a recipe gives to other recipes are relative to its own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from raysid.errors import UserError
from raysid.recipes.yaml_form import NotYAML, dump_yaml, parse_yaml

if TYPE_CHECKING:
    # Importing the config takes pydantic's time; listing the recipes needs none of it.
    from raysid.config import AnyConfig, Config, DataConfig, DataSettings, PretrainConfig, TuneConfig

__all__ = [
    "KINDS",
    "RecipeSummary",
    "config_model",
    "config_yaml",
    "load_recipe",
    "override",
    "packaged_recipes",
]

KINDS = ("pretrain", "distill", "tune")
"""Kinds of recipes; the command of the same name runs them."""

_FOLDER = Path(__file__).resolve().parent
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeSummary:
    """What a packaged recipe is: its kind and the first line of the comment that opens it."""

    kind: str
    description: str


@dataclass(frozen=True)
class _Source:
    """One YAML file: what messages call it, where it is, what it says."""

    name: str
    path: Path
    values: dict[str, Any]


def packaged_recipes() -> dict[str, RecipeSummary]:
    """The recipes shipped with the package, by name."""
    return {path.stem: _summary(path) for path in sorted(_FOLDER.glob("*.yaml"))}


def config_model(kind: str) -> type[AnyConfig]:
    """The config that recipes of a kind fill; KeyError for another kind than those in `KINDS`."""
    from raysid.config import Config, PretrainConfig, TuneConfig

    models: dict[str, type[AnyConfig]] = {
        "pretrain": PretrainConfig,
        "distill": Config,
        "tune": TuneConfig,
    }
    return models[kind]


@overload
def load_recipe(
    recipe: str, overrides: Mapping[str, Any] | None = None, *, kind: Literal["pretrain"]
) -> PretrainConfig: ...


@overload
def load_recipe(
    recipe: str, overrides: Mapping[str, Any] | None = None, *, kind: Literal["distill"]
) -> Config: ...


@overload
def load_recipe(
    recipe: str, overrides: Mapping[str, Any] | None = None, *, kind: Literal["tune"]
) -> TuneConfig: ...


@overload
def load_recipe(
    recipe: str, overrides: Mapping[str, Any] | None = None, kind: str | None = None
) -> AnyConfig: ...


def load_recipe(
    recipe: str, overrides: Mapping[str, Any] | None = None, kind: str | None = None
) -> AnyConfig:
    """The config that a recipe fills.

    Args:
        recipe: name of a packaged recipe, or path (or gs:// URL) of a YAML file.
        overrides: values by dotted name (`method.alpha`), which go over the recipe's, in order. Text is
            read as YAML (`1e-4`, `null`, `[1, 2]`), except for fields that hold text: they take it as it is
            (but for `null` where they may be null). A value inside a section that is null makes the section.
        kind: the kind the recipe must be of (`pretrain`, `distill` or `tune`); None takes any.

    Returns:
        The config. `run.name` of a distillation or a search is the recipe's name where nothing gives another.

    Raises:
        UserError: no such recipe; a file that cannot be read; a key that is not known; a value that is not
            allowed; a recipe of another kind.
    """
    from pydantic import ValidationError

    from raysid.recipes.problems import describe

    sources = _sources(recipe, Path.cwd())
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        _merge(merged, source.values)
    name = sources[0].name
    found = _kind(merged.get("kind"), name)
    if kind is not None and found != kind:
        suitable = ", ".join(other for other, summary in packaged_recipes().items() if summary.kind == kind)
        raise UserError(
            f"{name} is a recipe for `raysid {found}`, not for `raysid {kind}`; packaged for that: {suitable}"
        )
    model = config_model(found)
    given: dict[str, Any] = {}
    for path, value in (overrides or {}).items():
        value = _from_text(path, value, model) if isinstance(value, str) else value
        _set(given, path, value)
        _set(merged, path, value)
    _anchor_recipes(merged, Path.cwd())  # an override's; the files' own are by now
    if found != "pretrain":
        _name_run(merged, sources[0].path.stem)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        named = [(None, given), *((source.name, source.values) for source in sources)]
        raise UserError(describe(error, model, name, named)) from None


def data_settings(overrides: Mapping[str, Any]) -> DataSettings:
    """The settings of real images without a recipe: the defaults, and overrides as `load_recipe` takes them.

    Raises:
        UserError: a setting is not known or not allowed.
    """
    from pydantic import ValidationError

    from raysid.config import DataConfig
    from raysid.recipes.problems import describe

    given: dict[str, Any] = {}
    for path, value in overrides.items():
        _set(given, path, _from_text(path, value, DataConfig) if isinstance(value, str) else value)
    try:
        return DataConfig.model_validate(given).data
    except ValidationError as error:
        raise UserError(describe(error, DataConfig, "data", [(None, given)])) from None


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A config with values by dotted name over its own, as overrides go over a recipe's; the values are not text.

    Raises:
        ValidationError: pydantic's, for values that `load_recipe` would refuse.
    """
    merged = config.model_dump(mode="json")
    for path, value in values.items():
        _set(merged, path, value)
    return type(config).model_validate(merged)


def config_yaml(config: AnyConfig) -> str:
    """Every setting of a config as YAML: `load_recipe` on a file of it gives an equal config.

    A run without a `run.name` would get the file's name: a config from `load_recipe` has one.
    """
    return dump_yaml(config.model_dump(mode="json"))


def _summary(path: Path) -> RecipeSummary:
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    kinds = [source.values["kind"] for source in _sources(path.stem, _FOLDER) if "kind" in source.values]
    return RecipeSummary(kinds[0], first_line.lstrip("# ").strip())


def _sources(recipe: str, folder: Path) -> list[_Source]:
    """A recipe's file and those it extends, the strongest first; paths are relative to the folder."""
    sources: list[_Source] = []
    wanted: str | None = recipe
    while wanted is not None:
        name, path = _locate(wanted, folder, asked_by=sources[-1].name if sources else None)
        if any(path == source.path for source in sources):
            chain = " extends ".join([*(source.name for source in sources), name])
            raise UserError(f"{chain}: a recipe cannot extend itself; take out one `extends`")
        values = _read(name, path)
        wanted = values.pop("extends", None)
        if wanted is not None and not isinstance(wanted, str):
            raise UserError(f"{name}: `extends` must be a recipe's name or path, as text")
        folder = path.parent
        _anchor_recipes(values, folder)
        sources.append(_Source(name, path, values))
    kinds = [(source.name, source.values["kind"]) for source in sources if "kind" in source.values]
    for (name, kind), (base, base_kind) in zip(kinds, kinds[1:], strict=False):
        if kind != base_kind:
            raise UserError(f"{name} is of kind {kind}, but extends {base}, which is of kind {base_kind}")
    return sources


def _locate(recipe: str, folder: Path, asked_by: str | None) -> tuple[str, Path]:
    """What to call a recipe, and its file."""
    if _is_packaged(recipe):
        return recipe, _FOLDER / f"{recipe}.yaml"
    path = folder / recipe
    if "://" in recipe:  # in a bucket, as a search leaves its best there
        from upath import UPath

        path = UPath(recipe)  # type: ignore[assignment]  # all that is done with it, it does as a Path
    name = recipe if asked_by is None else str(path)
    who = f"{asked_by}: `extends`: " if asked_by else ""
    try:
        if path.is_dir():
            raise UserError(f"{who}{name} is a folder; give the YAML file in it")
        if path.exists():
            return name, path.resolve()
    except OSError as error:  # a folder on the way that may not be entered, a name too long
        raise UserError(f"{who}{name} cannot be read: {error.strerror}") from error
    from raysid.recipes.problems import closest

    known = _packaged_names()
    likely = closest(Path(recipe).name.removesuffix(".yaml"), known)
    what = f"no file {name}" if _is_path(recipe) else f"no recipe {recipe!r}"
    hint = f"did you mean {' or '.join(likely)}? " if likely else ""
    choices = f"packaged recipes: {', '.join(known)}; or give the path of a YAML file"
    raise UserError(f"{who}{what}; {hint}{choices}")


def _packaged_names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def _is_packaged(recipe: str) -> bool:
    return recipe in _packaged_names()


def _is_path(recipe: str) -> bool:
    return recipe.endswith(_SUFFIXES) or os.sep in recipe


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    except NotYAML as error:
        raise UserError(f"{name} is not YAML that a recipe can be read from: {error}") from error
    if not isinstance(values, dict):
        what = "empty" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{name} is {what}, not a mapping; a recipe has lines like `kind: distill`")
    return values


def _anchor_recipes(values: dict[str, Any], folder: Path) -> None:
    """Make paths of other recipes absolute, a teacher's or a search's: the command may be given anywhere."""
    if _is_relative(values.get("recipe")):
        values["recipe"] = str((folder / values["recipe"]).resolve())
    teacher = values.get("teacher")
    if isinstance(teacher, dict) and _is_relative(teacher.get("recipe")):
        values["teacher"] = {**teacher, "recipe": str((folder / teacher["recipe"]).resolve())}


def _is_relative(recipe: Any) -> bool:
    return isinstance(recipe, str) and _is_path(recipe) and "://" not in recipe


def _kind(kind: Any, name: str) -> str:
    if kind in KINDS:
        return kind
    what = "no `kind`" if kind is None else f"the unknown kind {kind!r}"
    raise UserError(f"{name} has {what}; say " + " or ".join(f"`kind: {known}`" for known in KINDS))


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Put `over` on `base`, which changes: mappings key by key, anything else (null too) replaces."""
    for key, value in over.items():
        if isinstance(value, Mapping):
            if not isinstance(base.get(key), dict):
                base[key] = {}
            _merge(base[key], value)  # copies it: sources must stay as they were read
        else:
            base[key] = value


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a dotted name, making the sections on the way."""
    for part in reversed(path.split(".")):
        value = {part: value}
    _merge(values, value)


def _from_text(path: str, text: str, model: type[AnyConfig | DataConfig]) -> Any:
    """The value that an override's text stands for."""
    from raysid.config.fields import config_fields
    from raysid.recipes.problems import show

    field = config_fields(model).get(path)
    if field is not None and field.is_text:
        if field.nullable and text == "null":
            return None
        if not (text.startswith("[") and "list" in field.allowed):
            return text
    try:
        return parse_yaml(text)
    except NotYAML as error:
        raise UserError(f"{path} is {show(text)}, which is not a YAML value: {error}") from error


def _name_run(values: dict[str, Any], name: str) -> None:
    """Give the run the recipe's name where nothing gives another."""
    run = values.get("run")
    if run is None:
        run = values["run"] = {}
    if isinstance(run, dict) and run.get("name") is None:
        # A file's name may hold what a run's may not.
        run["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-._") or "run"
