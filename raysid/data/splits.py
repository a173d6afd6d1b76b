"""Splits of a data set, such as train and test, by the names of its files and folders."""

from __future__ import annotations

import re
from collections.abc import Iterable

from raysid.data.listing import File

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLITS)})(?=[-_.\d]|$)", re.IGNORECASE)  # train-00000-of-00001.parquet


def is_split(folder: str) -> bool:
    """True if a folder has the name of a split."""
    return folder.lower() in SPLITS


def splits_note(files: Iterable[File]) -> tuple[str, ...]:
    """Return the note on several splits that are read together; none if the names are of one split, or of none."""
    found = sorted({split for file in files if (split := _split(file)) is not None})
    if len(found) < 2:
        return ()
    return (f"the splits {', '.join(found)} are read together: to read one, give its files as data.source",)


def _split(file: File) -> str | None:
    *folders, name = file.parts
    for folder in folders:
        if is_split(value := folder.removeprefix("split=")):
            return value.lower()
    match = _SPLIT_FILE.match(name)
    return match[1].lower() if match else None
