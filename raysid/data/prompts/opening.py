"""Opening the source of prompts that a config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysid.config.prompts import PromptSettings
from raysid.data.files import Found, check_regular, list_files, suffix
from raysid.data.prompts.source import SETTING, PromptSource
from raysid.errors import UserError

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tar": "webdataset"}
DIGITS = "digits"


def open_prompts(settings: PromptSettings) -> PromptSource:
    """Open the prompts of these settings.

    Raises:
        NotHere: there is no such file.
        UserError: the source is unknown or cannot be used.
    """
    assert settings.source is not None  # callers check that there is one
    from raysid.data.prompts.digits import DigitPrompts
    from raysid.data.prompts.jsonl import JsonLinesSource
    from raysid.data.prompts.parquet import ParquetPrompts
    from raysid.data.prompts.text import TextSource
    from raysid.data.prompts.webdataset import TarPrompts

    if settings.source == DIGITS:
        return DigitPrompts()
    found = find_prompts(settings.source, settings.format)
    kinds: dict[str, Callable[[Found, PromptSettings], PromptSource]] = {
        "text": TextSource,
        "jsonl": JsonLinesSource,
        "parquet": ParquetPrompts,
        "webdataset": TarPrompts,
    }
    return kinds[found.kind](found, settings)


def find_prompts(source: str | Sequence[str], kind: str | None = None) -> Found:
    """Find the files of prompts that `source` names.

    Args:
        kind: their format, if it cannot be inferred from their names.

    Raises:
        As `open_prompts`.
    """
    name, listed, left_out = list_files(source, SETTING)
    kinds = {file.path: FORMATS.get(suffix(file)) for file in listed}
    if kind is None:
        known = [*dict.fromkeys(each for each in kinds.values() if each is not None)]
        if len(known) != 1:
            held = (
                f"holds {' and '.join(known)}"
                if known
                else "holds no prompts (.txt, .jsonl, .parquet or .tar)"
            )
            raise UserError(f"{SETTING} {name} {held}: give prompts.format")
        kind = known[0]
    chosen = [file for file in listed if kinds[file.path] == kind] or listed
    if not chosen:
        raise UserError(f"{SETTING} {name} holds no files")
    check_regular(chosen, SETTING)
    paths = {file.path for file in chosen}
    return Found(name, kind, chosen, [file for file in listed if file.path not in paths], left_out)
