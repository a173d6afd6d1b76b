"""Folders of pictures: one subfolder per class, or all in one folder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.fetching import contents_of
from raysid.data.files import Found, reading_source
from raysid.data.picture_source import ListedSource, class_labels
from raysid.data.pictures import MAX_PICTURE, BadPicture, printable
from raysid.data.source import Texts, shuffled_once


class FolderSource(ListedSource):
    """Pictures in files, on this machine or in a bucket.

    The list is sorted by path and read in an order that is shuffled once: folders are sorted by class, and the stream
    shuffles only within its window. Classes are the subfolders, numbered in sorted order as in torchvision's
    ImageFolder; pictures beside class folders have no label.
    """

    def __init__(self, found: Found, data: DataSettings) -> None:
        self.name = found.name
        self.paths = Texts(file.path for file in found.files)
        sizes = np.array([file.size for file in found.files], np.int64)
        self.sizes = None if (sizes < 0).any() else sizes
        classes = [file.parts[0] if len(file.parts) > 1 else None for file in found.files]
        self.labels = class_labels(classes, found.name)
        self.order = shuffled_once(len(classes))

    def name_of(self, entry: int) -> str:
        return printable(self.paths[entry])

    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        names = [self.paths[entry] for entry in entries]
        sizes = None if self.sizes is None else self.sizes[entries]
        with reading_source(self.name):
            for data in contents_of(names, sizes, MAX_PICTURE):
                yield BadPicture(f"cannot be read: {data}") if isinstance(data, Exception) else data
