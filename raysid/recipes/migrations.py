"""Recipes and recorded configs of earlier releases, in this release's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raysid.formats import check_format

if TYPE_CHECKING:
    from upath import UPath

RENAMED: Mapping[str, str | None] = {"tracking.samples_every_images": None}
"""Settings by the dotted name that earlier releases gave them: the present name, or None for one that is gone."""


def migrated(values: Mapping[str, Any], path: str | UPath) -> dict[str, Any]:
    """Return a file's settings in this release's names, without the file's `format`.

    Args:
        path: the file, for messages.

    Raises:
        UserError: a newer release wrote the file.
    """
    check_format(values.get("format"), path)
    current = {name: value for name, value in values.items() if name != "format"}
    for old, new in RENAMED.items():
        section, name = _section(current, old)
        if section is not None and name in section:
            value = section.pop(name)
            if new is not None:
                target, name = _section(current, new, make=True)
                if target is not None:
                    target.setdefault(name, value)
    return current


def _section(values: dict[str, Any], path: str, make: bool = False) -> tuple[dict[str, Any] | None, str]:
    """Return the section that a dotted name lies in, copied into `values`, and the last part of the name."""
    *sections, name = path.split(".")
    found: Any = values
    for part in sections:
        inner = found.get(part, {} if make else None)
        if not isinstance(inner, dict):
            return None, name
        found[part] = dict(inner)
        found = found[part]
    return found, name
