"""Settings of the prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from raysid.config.settings import COMMON, MAY_CHANGE, TRAINING_ONLY, Fraction, Positive, Settings

Weight = Annotated[float, Field(gt=0)]


class PromptSettings(Settings):
    source: Annotated[str | list[str] | None, COMMON] = Field(
        None,
        description="Prompts, for a teacher that takes text: `digits` (captions of scikit-learn's digits), or files: a "
        ".txt with a prompt on each line, .jsonl, .parquet or .tar (WebDataset); as a path, gs://... or s3://..., a "
        "glob, or a list of them.",
    )
    format: Literal["text", "jsonl", "parquet", "webdataset"] | None = Field(
        None, description="Format of the files in `source`. Default: inferred from their names."
    )
    column: str | dict[str, Weight] | None = Field(
        None,
        description="Column of Parquet files, field of .jsonl files or kind of file in a .tar that holds the prompts; "
        "or several with weights, `{re_caption: 0.8, org_caption: 0.2}`, one of which is drawn for each row in each "
        "epoch. Default: `text`, `caption` or `prompt`, if there is one of them; in a .tar `txt`.",
    )
    min: dict[str, float] = Field(
        {},
        description="Least value of columns of scores, such as `{re_clip_score: 0.3}`: other rows are left out.",
    )
    max_bad_fraction: Annotated[Fraction, MAY_CHANGE] = Field(
        0.01,
        description="Fraction of the prompts that may be empty or unreadable. Each is skipped; above this fraction the "
        "run stops.",
    )
    shuffle_window: Annotated[Positive, TRAINING_ONLY] = Field(
        65_536,
        description="Prompts shuffled at a time, which are held in memory. A smaller set is read once and kept.",
    )

    @property
    def source_name(self) -> str | None:
        """The name of the prompts in records."""
        return ", ".join(self.source) if isinstance(self.source, list) else self.source

    @property
    def columns(self) -> dict[str, float]:
        """The columns that are named, with their weights."""
        if self.column is None:
            return {}
        return {self.column: 1.0} if isinstance(self.column, str) else dict(self.column)

    def problems(self) -> Iterator[str]:
        if isinstance(self.column, dict) and not self.column:
            yield "prompts.column names no column: give one, or null"


class PromptConfig(Settings):
    """Prompts without a recipe, for `raysid data`."""

    prompts: PromptSettings = PromptSettings()
