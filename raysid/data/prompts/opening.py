"""Opening the source of prompts that a config names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from raysid.config.prompts import PromptSettings
from raysid.data.files import Found, brace_paths, suffix
from raysid.data.listing import File, absolute_path, list_path
from raysid.data.prompts.source import PromptSource
from raysid.errors import NotHere, StorageError, UserError, printable
from raysid.storage import storage_errors

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
    found = find_prompts(settings)
    kinds: dict[str, Callable[[Found, PromptSettings], PromptSource]] = {
        "text": TextSource,
        "jsonl": JsonLinesSource,
        "parquet": ParquetPrompts,
        "webdataset": TarPrompts,
    }
    return kinds[found.kind](found, settings)


def find_prompts(settings: PromptSettings) -> Found:
    """Find the files of prompts. Raises as `open_prompts`."""
    given = [settings.source] if isinstance(settings.source, str) else list(settings.source or ())
    name = printable(", ".join(given))
    left_out: Counter[str] = Counter()
    files: dict[str, File] = {}
    try:
        for path in given:
            for each in brace_paths(path):
                root = absolute_path(each)
                with storage_errors(root, "read"):
                    files |= {file.path: file for file in list_path(each, root, left_out)}
    except FileNotFoundError:
        raise NotHere(f"there is no file or folder {name}") from None
    except StorageError as error:
        raise UserError(f"prompts.source {name} cannot be read: {error.reason}") from None
    listed = [file for _, file in sorted(files.items())]
    kinds = {FORMATS[suffix(file)]: None for file in listed if suffix(file) in FORMATS}
    if settings.format is not None:
        fits = [file for file in listed if FORMATS.get(suffix(file)) == settings.format] or listed
        return Found(name, settings.format, fits, [file for file in listed if file not in fits], left_out)
    if len(kinds) != 1:
        held = (
            f"holds {' and '.join(kinds)}" if kinds else "holds no prompts (.txt, .jsonl, .parquet or .tar)"
        )
        raise UserError(f"prompts.source {name} {held}: give prompts.format")
    kind = next(iter(kinds))
    chosen = [file for file in listed if FORMATS.get(suffix(file)) == kind]
    return Found(name, kind, chosen, [file for file in listed if file not in chosen], left_out)
