"""Finding the files of a source of rows: paths, globs or a list; and the kind of those of real images."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from raysid.data.listing import LINKED, File, absolute_path, in_threads, list_path
from raysid.data.patterns import expanded
from raysid.data.pictures import COMMON, SUFFIXES
from raysid.errors import NotHere, RaysidError, StorageError, UserError, printable
from raysid.storage import exists, is_local, listed_path, open_file, storage_errors
from raysid.storage.failures import explain

CONTAINERS = {".zip": "zip", ".parquet": "parquet", ".tar": "webdataset"}
KINDS = CONTAINERS | dict.fromkeys(SUFFIXES, "folder")
KIND_NAMES = {"zip": "a .zip", "parquet": ".parquet files", "webdataset": ".tar files", "folder": "pictures"}
TEXTS = (".csv", ".html", ".json", ".jsonl", ".md", ".py", ".txt", ".xml", ".yaml", ".yml")  # beside images
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
COMPRESSED_TAR = (
    "is a compressed tar, whose members cannot be read one by one: unpack it to a .tar with gunzip, bunzip2, unxz or "
    "zstd -d"
)
HEAD = 512  # bytes of a file that show its kind


@dataclass(frozen=True)
class Found:
    """The files of a source, sorted by path, and their kind.

    Attributes:
        others: the other files, sorted by path.
        left_out: the number of files and folders that are not looked at, by the reason.
        linked: the number of linked folders that are followed, but not by release 0.1.0.
    """

    name: str
    kind: str
    files: list[File]
    others: list[File]
    left_out: Counter[str]
    linked: int = 0

    def not_read(self, read: Sequence[File] = ()) -> Counter[str]:
        """Count all files that are left out, by the reason: `left_out` and the others; not texts beside containers.

        Args:
            read: files among the others that are read.
        """
        texts = () if self.kind == "folder" else TEXTS
        others = [file for file in self.others if file not in read and suffix(file) not in texts]
        return self.left_out + Counter(described(suffix(file)) for file in others)


def find_files(source: str | Sequence[str], kind: str | None = None) -> Found:
    """Find the files that `source` names.

    Args:
        kind: the kind of the files, if it cannot be inferred from their names; other files are left out.

    Raises:
        NotHere: there are no such files.
        UserError: they cannot be read, are of no known kind, or of several kinds.
    """
    name, listed, left_out = list_files(source)
    if len({"://" in file.path for file in listed}) > 1:
        raise UserError(
            f"data.source {name} is partly on this machine and partly in a bucket: give one of them"
        )
    found = _kind(name, listed) if kind is None else kind
    chosen = [file for file in listed if KINDS.get(suffix(file)) == found]
    if kind is not None and not chosen:
        chosen = _of_unusual_names(name, listed, kind)
    if found != "folder":  # pictures are checked when they are read
        check_regular(chosen)
    paths = {file.path for file in chosen}
    others = [file for file in listed if file.path not in paths]
    linked = left_out.pop(LINKED, 0)
    return Found(name, found, chosen, others, left_out, linked)


def list_files(
    source: str | Sequence[str], setting: str = "data.source"
) -> tuple[str, list[File], Counter[str]]:
    """List the files that the value of a setting names: a path, a glob, or several of them.

    Returns:
        The source's name in messages, its files sorted by path, and the number of what is left out, by the reason.

    Raises:
        NotHere: there are no such files.
        UserError: they cannot be listed.
    """
    given = [source] if isinstance(source, str) else list(source)
    name = printable(", ".join(given))
    if not given:
        raise UserError(f"{setting} is an empty list: give files, or null for none")
    files: dict[str, File] = {}
    left_out: Counter[str] = Counter()
    with reading_source(name, setting):
        for path in given:
            for each in _brace_paths(path, setting):
                root = absolute_path(each)
                with storage_errors(root, "read"):
                    files |= {file.path: file for file in list_path(each, root, left_out)}
    return name, [file for _, file in sorted(files.items())], left_out


def _brace_paths(given: str, setting: str) -> list[str]:
    """Return the paths that braces in a path stand for. Folders and files that exist under these names keep theirs."""
    parts = given.split("/")
    kept = 0
    while kept < len(parts) and (
        "{" not in parts[kept] or exists(absolute_path("/".join(parts[: kept + 1])))
    ):
        kept += 1
    rests = expanded("/".join(parts[kept:]), setting)
    return ["/".join([*parts[:kept], *rest]) for rest in map(_split, rests)]


def _split(path: str) -> list[str]:
    return path.split("/") if path else []


def _kind(name: str, files: Sequence[File]) -> str:
    """Infer the kind of files from their names. Raises UserError if there are none of a known kind, or of several."""
    suffixes = [suffix(file) for file in files]
    kinds = list(dict.fromkeys(KINDS[found] for found in suffixes if found in (*COMMON, *CONTAINERS)))
    if len(kinds) > 1:
        held = " and ".join(KIND_NAMES[kind] for kind in kinds)
        raise UserError(f"data.source {name} holds {held}: give data.format")
    if kinds or any(found in SUFFIXES for found in suffixes):
        return kinds[0] if kinds else "folder"
    _refuse_compressed(files)
    if arrow := next((file for file in files if suffix(file) == ".arrow"), None):
        folder = printable(arrow.path.rpartition("/")[0])
        raise UserError(
            f"data.source {name} holds Arrow files, as Hugging Face's save_to_disk writes them; write them as Parquet: "
            f"datasets.load_from_disk({folder!r}).to_parquet('images.parquet')"
        )
    raise UserError(
        f"data.source {name} holds no images: pictures ({', '.join(SUFFIXES)}), .parquet, .tar or a .zip are needed; "
        "for files of other names give data.format"
    )


def _of_unusual_names(name: str, files: Sequence[File], kind: str) -> list[File]:
    """Return the files of a kind that was given, none of which has its usual name.

    Raises:
        UserError: there are none.
    """
    candidates = [file for file in files if suffix(file) not in (*KINDS, *TEXTS)] or list(files)
    _refuse_compressed(candidates)
    if kind == "folder":  # each is a picture, or counts as a bad one
        chosen = [file for file in candidates if suffix(file) not in (*CONTAINERS, *TEXTS)]
    elif len(candidates) == 1:  # reading it shows what it is
        chosen = candidates
    else:
        with reading_source(name):
            heads = in_threads(_head, candidates)
            chosen = [file for file, head in zip(candidates, heads, strict=True) if _begins_as(kind, head)]
    if not chosen:
        raise UserError(
            f"data.source {name} holds no {KIND_NAMES[kind].removeprefix('a ')}, which data.format {kind} needs"
        )
    return chosen


def _head(file: File) -> bytes:
    """The first bytes of a file; none if it is not a regular file."""
    path = listed_path(file.path)
    if is_local(path) and not stat.S_ISREG(os.stat(path.path).st_mode):
        return b""
    with open_file(path) as opened:
        return opened.read(HEAD)


def _begins_as(kind: str, head: bytes) -> bool:
    return {
        "parquet": head.startswith(b"PAR1"),
        "zip": head.startswith(b"PK"),
        "webdataset": head[257:262] == b"ustar",
    }[kind]


def _refuse_compressed(files: Sequence[File]) -> None:
    """Refuse compressed tars by their names, with the remedy."""
    for file in files:
        if file.parts[-1].lower().endswith(COMPRESSED):
            raise UserError(f"data.source: {printable(file.path)} {COMPRESSED_TAR}")


def suffix(file: File) -> str:
    """The suffix of a file's name, in small letters, with its dot; empty if it has none."""
    return PurePosixPath(file.parts[-1]).suffix.lower()


def described(ending: str) -> str:
    """Describe the files that end so, as a reason why they are left out."""
    return f"{printable(ending)} files" if ending else "files without a suffix"


def check_regular(files: Sequence[File], setting: str = "data.source") -> None:
    """Check that files are regular: opening a pipe waits for a writer. Raises UserError, which names the setting."""
    for file in files:
        path = listed_path(file.path)
        with suppress(OSError):  # opening it raises a better message
            if is_local(path) and not stat.S_ISREG(os.stat(path.path).st_mode):
                raise UserError(
                    f"{setting}: {printable(file.path)} is not a file, but a pipe, a device or a folder"
                )


@contextmanager
def reading_source(name: str, setting: str = "data.source") -> Iterator[None]:
    """Turn a storage error of reading the source `name` into a UserError that names the setting."""
    try:
        yield
    except FileNotFoundError:
        raise NotHere(f"there is no file or folder {name}") from None
    except StorageError as error:
        file = "" if error.path == name else f": {error.path}"
        raise UserError(f"{setting} {name} cannot be read: {error.reason}{file}") from None


@contextmanager
def damaged_file(path: str, form: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a UserError that names the file.

    Which class of exception that is depends on the place of the damage: sizes that overflow, names that are no text,
    memory that is not there.

    Args:
        form: what the file is read as, for the message.
    """
    try:
        yield
    except (RaysidError, FileNotFoundError):
        raise
    except Exception as error:
        raise UserError(f"{printable(path)} cannot be read as {form}: {explain(error)}") from None
