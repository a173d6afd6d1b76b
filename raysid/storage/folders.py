"""Folders of a storage: list, make, empty and remove them."""

from __future__ import annotations

import shutil
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

from upath import UPath

from raysid.storage.buckets import is_local
from raysid.storage.failures import storage_errors
from raysid.storage.files import PARTIAL, remove_file


def children(folder: UPath) -> list[UPath]:
    """List a folder, in a bucket by one request; an empty list where there is no such folder."""
    try:
        with storage_errors(folder, "read"):
            if is_local(folder):
                return list(folder.iterdir())
            # A folder made in a bucket's console is an object of its own name in it.
            itself = folder.path.rstrip("/")
            entries = (entry.rstrip("/") for entry in folder.fs.ls(folder.path, detail=False))
            return [folder / entry.rpartition("/")[2] for entry in entries if entry != itself]
    except FileNotFoundError:
        return []


def make_folder(folder: UPath) -> None:
    """Make a folder and its parents if they are not there. A bucket has no folders to make."""
    if is_local(folder):
        with storage_errors(folder, "written"):
            folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: UPath) -> None:
    """Remove a folder and all in it, if it is there."""
    with storage_errors(folder, "written"):
        if is_local(folder):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder.path)
            return
        for name in folder.fs.find(
            folder.path
        ):  # one by one: `rm` would take brackets in a name for a pattern
            with suppress(FileNotFoundError):
                folder.fs.rm_file(name)


def remove_partial(*folders: UPath) -> None:
    """Remove the files that a kill left half written in folders. A bucket never has such files."""
    for folder in folders:
        if is_local(folder):
            with storage_errors(folder, "written"):
                for path in Path(folder.path).glob(f"*{PARTIAL}"):
                    path.unlink(missing_ok=True)


def empty_folder(folder: UPath, keep: Set[str]) -> None:
    """Remove everything in a folder except the names in `keep`."""
    for path in children(folder):
        if path.name in keep:
            continue
        with storage_errors(path, "written"):
            is_folder = path.is_dir() and not (is_local(path) and Path(path.path).is_symlink())
        remove_folder(path) if is_folder else remove_file(path)
