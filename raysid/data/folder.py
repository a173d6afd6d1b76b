"""Folders of pictures: one subfolder per class, or all in one folder."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from raysid.config import DataSettings
from raysid.data.files import REQUESTS, Found, described, reading_source, suffix
from raysid.data.folder_labels import folder_labels
from raysid.data.labels import class_labels
from raysid.data.picture_source import ListedSource, left_out_note
from raysid.data.pictures import MAX_PICTURE, TOO_LARGE, BadPicture
from raysid.data.source import ORDER_SEED, Texts, random_permutation
from raysid.errors import printable
from raysid.storage import storage_errors
from raysid.storage.failures import storage_error
from raysid.storage.s3 import in_one_request


class FolderSource(ListedSource):
    """Pictures in files, on this machine or in a bucket.

    The list is sorted by path and read in an order that is shuffled once: folders are sorted by class, and the stream
    shuffles only within its window. Labels are those of EDM's `dataset.json`. Without one, classes are the subfolders,
    numbered in sorted order as in torchvision's ImageFolder; pictures beside class folders have no label.

    Raises:
        UserError: `dataset.json` is damaged, or its labels are not the pictures' or not classes.
    """

    def __init__(self, found: Found, data: DataSettings) -> None:
        self.name = found.name
        self.paths = Texts(file.path for file in found.files)
        sizes = np.array([file.size for file in found.files], np.int64)
        self.sizes = None if (sizes < 0).any() else sizes
        with reading_source(found.name):
            labels = folder_labels(found)
        self.labels = class_labels(labels.labels, labels.where)
        left_out = Counter(described(suffix(file)) for file in found.others if file not in labels.read)
        self.notes = labels.notes + left_out_note(found.left_out + left_out)
        self.order = random_permutation(ORDER_SEED, len(found.files))

    def name_of(self, entry: int) -> str:
        return printable(self.paths[entry])

    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        paths = [self.paths[entry] for entry in entries]
        with reading_source(self.name):
            contents = _files(paths) if self.sizes is None else _objects(paths, self.sizes[entries])
            for data in contents:
                yield BadPicture(f"cannot be read: {data}") if isinstance(data, Exception) else data


def _files(paths: Sequence[str]) -> Iterator[bytes | Exception]:
    """Read local files; yield the content of each, or the error that is its own (missing, too large, no permission)."""
    for path in paths:
        try:
            yield _read(path)
        except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError) as error:
            yield error
        except OSError as error:
            raise storage_error(error, path, "read") from error


def _objects(paths: Sequence[str], sizes: NDArray[np.int64]) -> Iterator[bytes | Exception]:
    """Read objects of a bucket, several at a time; yield the content of each, or the error that is its own."""
    fs = UPath(paths[0]).fs
    for start in range(0, len(paths), REQUESTS):
        some = [UPath(path).path for path in paths[start : start + REQUESTS]]
        their_sizes = sizes[start : start + REQUESTS].tolist()
        wanted = [path for path, size in zip(some, their_sizes, strict=True) if 0 < size <= MAX_PICTURE]
        with storage_errors(paths[0], "read"):
            # Not `cat`, which treats brackets in a name as a pattern.
            answers = fs.cat_ranges(wanted, None, None, on_error="return", **in_one_request(fs.protocol))
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(
                    answer, FileNotFoundError | PermissionError
                ):
                    raise answer
        found = dict(zip(wanted, answers, strict=True))
        for path, size in zip(some, their_sizes, strict=True):
            yield found.get(path, ValueError(TOO_LARGE) if size else b"")


def _read(path: str) -> bytes:
    """Read a local file. Raises ValueError if it is too large or not a regular file: a pipe may never end."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("is not a file")
    if info.st_size > MAX_PICTURE:
        raise ValueError(TOO_LARGE)
    with open(path, "rb") as file:
        return file.read()
