"""The base class of all settings, their value ranges, and the marks that a field can carry.

A mark states once, on the field, what other modules need to know of it. It is written in the annotation, as in
`storage: Annotated[str, COMMON, MAY_CHANGE]`, and is part of the JSON schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]

COMMON: Any = Field(json_schema_extra={"common": True})
"""Listed by `--help`; all others only by `--help-all`."""

FIXED: Any = Field(json_schema_extra={"on_resume": "fixed"})
"""Determines what is computed: a resumed run must have the same value, and a teacher trained by recipe is identified
by it. This is the default: a field without a mark inherits its section's mark, and a recipe's own fields are fixed."""

MAY_CHANGE: Any = Field(json_schema_extra={"on_resume": "may change"})
"""The opposite of FIXED: may differ when a run resumes, and does not identify a teacher."""

ADDED: Any = Field(json_schema_extra={"added": True})
"""Added to a section that teachers had been identified by before: at its default it is none of the fixed settings, so
that those teachers are found again."""

SPLIT_ONLY: Any = Field(json_schema_extra={"split_only": True})
"""Scales a role of `placement: split`; the other placements need the default."""

TRAINING_ONLY: Any = Field(json_schema_extra={"training_only": True})
"""Concerns the stream of images, not the files: `raysid data` has no such option."""

MARKS = ("common", "on_resume", "added", "split_only", "training_only")
"""Keys of the marks in the JSON schema."""


class Settings(BaseModel):
    """Base of all settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """Yield a line for each conflict between fields that are valid by themselves."""
        yield from ()

    @model_validator(mode="after")
    def _check_problems(self) -> Self:
        if problems := list(self.problems()):
            raise ValueError("\n".join(problems))
        return self


def fixed_settings(config: BaseModel) -> dict[str, Any]:
    """Return the settings of a config that are FIXED, as JSON has them."""
    return _fixed(config, config.model_dump(mode="json"), "fixed")


def _fixed(section: BaseModel, dumped: dict[str, Any], inherited: str) -> dict[str, Any]:
    found = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        on_resume = str(extra.get("on_resume", inherited)) if isinstance(extra, dict) else inherited
        value, is_fixed = getattr(section, name), on_resume == "fixed"
        if isinstance(extra, dict) and "added" in extra and value == field.default:
            continue
        if isinstance(value, BaseModel):
            inner = _fixed(value, dumped[name], on_resume)
            if inner or is_fixed:
                found[name] = inner
        elif is_fixed:
            found[name] = dumped[name]
    return found
