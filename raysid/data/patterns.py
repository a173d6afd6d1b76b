"""Patterns of paths: `{000000..000009}` and `{a,b}` as in shells, and the signs of globs."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from itertools import product

from raysid.errors import UserError

SIGNS = "*?["
MAX_PATHS = 100_000
_BRACES = re.compile(r"(?<!\$)\{([^{}]*)\}")  # innermost; ${NAME} is a variable
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")


def expanded(path: str, setting: str = "data.source") -> list[str]:
    """Return the paths that braces in a path stand for, in their order; the path itself if it has none.

    Numbers have as many digits as the longer end of their range, as in shells and WebDataset: `{000..010..5}` is 000,
    005 and 010.

    Args:
        setting: the setting that has the path, for the error.

    Raises:
        UserError: there are more than 100,000.
    """
    paths = [""]
    end = 0
    for braces in _BRACES.finditer(path):
        choices = _choices(braces[1], setting)
        if choices is None:
            continue
        if len(paths) * len(choices) > MAX_PATHS:
            raise UserError(f"{setting} {path} stands for more than {MAX_PATHS:,} files")
        between = path[end : braces.start()]
        paths = [f"{before}{between}{choice}" for before, choice in product(paths, choices)]
        end = braces.end()
    paths = [before + path[end:] for before in paths]
    # Braces in braces: the inner ones are expanded by now.
    return [path] if paths == [path] else [inner for outer in paths for inner in expanded(outer, setting)]


def _choices(text: str, setting: str) -> list[str] | None:
    """The texts that braces with this content stand for; None if it is not a pattern."""
    if numbers := _RANGE.fullmatch(text):
        first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
        digits = max(len(numbers[1]), len(numbers[2])) if text.startswith("0") else 0
        if abs(last - first) > MAX_PATHS or not step:
            raise UserError(f"{setting}: {{{text}}} stands for more than {MAX_PATHS:,} files")
        numbered = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return [f"{number:0{digits}}" for number in numbered]
    return text.split(",") if "," in text else None


def escaped(path: str, is_folder: Callable[[str], bool]) -> str:
    """Return a glob in which the folders that exist under these very names are names, not patterns."""
    parts = path.split("/")
    names: list[str] = []
    for number, part in enumerate(parts[:-1]):
        if not any(sign in part for sign in SIGNS):
            names.append(part)
        elif is_folder("/".join([*parts[:number], part])):
            names.append(glob.escape(part))
        else:
            break
    return "/".join([*names, *parts[len(names) :]])
