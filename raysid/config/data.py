"""Settings of the real images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysid.config.settings import ADDED, COMMON, MAY_CHANGE, TRAINING_ONLY, Fraction, Positive, Settings


class DataSettings(Settings):
    source: Annotated[str | list[str] | None, COMMON] = Field(
        "digits",
        description="Real images: `digits` or `patches` (included in scikit-learn), or files: a folder of images, a "
        ".zip made by EDM's dataset_tool.py, .parquet or .tar (WebDataset); as a path, gs://... or s3://..., a glob, "
        "or a list of them. `null`: none (SiD).",
    )
    format: Literal["folder", "zip", "parquet", "webdataset"] | None = Field(
        None, description="Format of the files in `source`. Default: inferred from their names."
    )
    origin: Annotated[str | None, MAY_CHANGE, TRAINING_ONLY] = Field(
        None, description="Download instructions for the images; part of the message when they are missing."
    )
    image_column: str | None = Field(
        None,
        description="Column of the Parquet files that holds the encoded images (bytes, or a struct with `bytes`); in a "
        ".tar the kind of picture, such as `input.png`. Default: the only one.",
    )
    label_column: str = Field(
        "label",
        description="Name of the class label: a column of the Parquet files or of their folders (`name=value`), or a "
        "field of the .json files in a .tar (nested: `meta.label`).",
    )
    caption_column: Annotated[str | None, ADDED] = Field(
        None,
        description="Name of the captions, for a teacher that learns text: a column of the Parquet files or of a "
        "metadata.csv, or the kind of file in a .tar. Default: `text`, `caption` or `prompt`, if there is one of them; "
        "in a .tar `txt`.",
    )
    resolution: Positive | None = Field(
        None,
        description="Height and width, in pixels, to which images of other sizes are cropped and resized. Default: "
        "all images must have the same size.",
    )
    crop: Literal["center", "none"] = Field(
        "center",
        description="Before resizing: `center` crops to a square, as EDM's center-crop; `none` stretches.",
    )
    filter: Literal["lanczos", "box", "bicubic"] = Field(
        "lanczos", description="Resampling filter; EDM's dataset_tool.py uses lanczos."
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1: greyscale, 3: RGB. Default: RGB, or greyscale if the first images all are."
    )
    xflip: Annotated[bool, TRAINING_ONLY] = Field(
        False, description="Mirror half of the real images, another half in each epoch."
    )
    max_bad_fraction: Annotated[Fraction, MAY_CHANGE] = Field(
        0.01,
        description="Fraction of the images that may be unreadable or unlabelled. Each is skipped and named in "
        "metrics.jsonl; above this fraction the run stops.",
    )
    shuffle_window: Annotated[Positive, TRAINING_ONLY] = Field(
        16_384,
        description="Images shuffled at a time. About twice as many are held in memory, one byte per channel and "
        "pixel. A smaller set is read once and kept.",
    )
    lanes: Annotated[Positive, TRAINING_ONLY] = Field(
        16,
        description="Independently shuffled parts of a batch, so that a worker reads only its own images. At least as "
        "many as a step has microbatches; fewer are used if `shuffle_window` holds fewer shards (row groups, or 1,024 "
        "files each).",
    )

    @property
    def source_name(self) -> str | None:
        """The name of the images in messages and records."""
        return ", ".join(self.source) if isinstance(self.source, list) else self.source


class DataConfig(Settings):
    """Real images without a recipe, for `raysid data`."""

    data: DataSettings = DataSettings()
