"""The problems of a config, one line each: the setting, its value, the values allowed."""

from __future__ import annotations

import copy
import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from raysid.config.fields import config_fields
from raysid.errors import InvalidConfig, one_line

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def describe(
    error: ValidationError,
    model: type[BaseModel],
    values: Mapping[str, Any],
    recipe: str,
    sources: Sequence[tuple[str | None, Mapping[str, Any]]],
) -> InvalidConfig:
    """Return the error that lists all problems of a config.

    Args:
        error: raised by validating `values` against `model`.
        recipe: name of the recipe as a whole.
        sources: (name, mapping) of every file that was merged into `values`, the strongest first; a name of None
            marks values given by hand, which need no file name.
    """
    problems = error.errors(include_url=False)
    # The unknown keys come first: a misspelt key is often the reason for a missing one.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    problems += _hidden_conflicts(model, values, problems)
    lines: dict[str, None] = {}  # a set in order
    reported: set[str] = set()
    meant: set[str] = set()
    paths = [_path(problem) for problem in problems]
    for problem, path in zip(problems, paths, strict=True):
        name = ".".join(path)
        if name in reported or (problem["type"] == "missing" and name in meant):
            continue
        if any(len(path) < len(other) and path == other[: len(path)] for other in paths if path):
            continue  # the problem of another form of the value, which is less precise
        if problem["type"] == "extra_forbidden":
            meant |= {*suggestions(name, config_fields(model))}
        if problem["type"] != "value_error":
            reported.add(name)
        source: str | None = recipe
        if path and problem["type"] != "missing":
            source = next((name for name, values in sources if _has(values, problem["loc"])), recipe)
        for line in _describe(problem, path, model):
            line = f"{source}: {line}" if source else line
            # YAML allows line breaks and control sequences of terminals in keys.
            lines[one_line(line)] = None
    return InvalidConfig("\n".join(lines))


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names of which this one may be a misspelling, the likeliest first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)


def suggestions(name: str, fields: Iterable[str]) -> list[str]:
    """Return the fields, by dotted name, that an unknown one may mean, the likeliest first."""
    section, _, last = name.rpartition(".")
    keys = {field.rpartition(".")[2]: field for field in fields if field.rpartition(".")[0] == section}
    likely = [keys[key] for key in closest(last, keys)]
    if not likely:  # the key of another section, or one without its section
        near = closest(last, {field.rpartition(".")[2] for field in fields})[:1]
        likely = [field for field in fields if field.rpartition(".")[2] in near]
    return likely[:3]


def abbreviated(value: Any) -> str:
    """Format a value of a recipe as YAML does, in a few words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return reprlib.repr(value)


def _hidden_conflicts(
    model: type[BaseModel], values: Mapping[str, Any], problems: Sequence[ErrorDetails]
) -> list[ErrorDetails]:
    """Return the conflicts between valid settings, which pydantic checks only if all settings are valid.

    They are found by leaving out the invalid settings; conflicts that involve one of those are not reported.
    """
    valid: Any = copy.deepcopy(values)
    invalid = [path for problem in problems if (path := _path(problem)) and problem["type"] != "missing"]
    for *sections, last in invalid:
        section = valid
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(last, None)
    names = [".".join(path) for path in invalid]
    try:
        model.model_validate(valid)
    except ValidationError as error:
        return [
            problem
            for problem in error.errors(include_url=False)
            if problem["type"] == "value_error" and not any(name in problem["msg"] for name in names)
        ]
    return []


def _path(problem: ErrorDetails) -> list[str]:
    """Return the keys to a problem, without the tags of the types tried there."""
    return [str(part) for part in problem["loc"] if part not in ("str", "list[str]")]


def _describe(problem: ErrorDetails, path: list[str], model: type[BaseModel]) -> list[str]:
    name = ".".join(path)
    fields = config_fields(model)
    match problem["type"]:
        case "extra_forbidden":
            return [_unknown_key(name, fields)]
        case "missing" if name in fields:
            meaning = fields[name].description.rstrip(".")
            return [f"{name} is missing; give it a value" + (f" ({meaning})" if meaning else "")]
        case "value_error":
            lines = problem["msg"].removeprefix("Value error, ").split("\n")
            return [f"{name}: {line}" if name else line for line in lines]
    # The value is the element's, the words are those of the whole list or mapping.
    upwards = (".".join(path[:length]) for length in range(len(path), 0, -1))
    known = next((one for one in upwards if one in fields), None)
    value = "missing" if problem["type"] == "missing" else abbreviated(problem["input"])
    allowed = fields[known].allowed if known else problem["msg"]
    if problem["type"] == "finite_number":
        allowed = f"a finite {allowed}"
    whole = f" in {known}" if known and known != name else ""
    unquoted = problem["type"] == "string_type" and isinstance(problem["input"], int | float)
    hint = "; quote it" if unquoted else ""
    return [f"{name or 'the recipe'} is {value}; allowed{whole}: {allowed}{hint}"]


def _unknown_key(name: str, fields: Mapping[str, Any]) -> str:
    if likely := suggestions(name, fields):
        return f"unknown key {name}; did you mean {' or '.join(likely)}?"
    section = name.rpartition(".")[0]
    keys = [key for field in fields for start, _, key in [field.rpartition(".")] if start == section]
    return f"unknown key {name}; the keys {f'of {section}' if section else 'here'} are {', '.join(keys)}"


def _has(values: Any, path: Iterable[str | int]) -> bool:
    """True if a mapping has a value at the path, or a value that is no mapping on the way there."""
    for part in path:
        if not isinstance(values, Mapping):
            return values is not None
        if part not in values:
            return False
        values = values[part]
    return True
