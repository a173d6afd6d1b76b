"""Folders of pictures: in a subfolder for each class, or all in one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.fetching import contents_of
from raysid.data.files import Found, reading_source
from raysid.data.labels import class_labels
from raysid.data.picture_source import ListedSource
from raysid.data.pictures import MAX_PICTURE, BadPicture, shown
from raysid.data.source import Texts, shuffled_once


class FolderSource(ListedSource):
    """Pictures as files, on this machine or in a bucket.

    The list is sorted by path. It is read in an order that is shuffled once, since folders lie sorted by class and the
    stream mixes only what is in its window. Classes are the subfolders, sorted by name, as torchvision's ImageFolder
    numbers them; pictures beside class folders have no label.
    """

    def __init__(self, found: Found, data: DataSettings) -> None:
        self.name = found.name
        self.paths = Texts(file.path for file in found.files)
        sizes = np.array([file.size for file in found.files], np.int64)
        self.sizes = None if (sizes < 0).any() else sizes
        classes = [file.parts[0] if len(file.parts) > 1 else None for file in found.files]
        self.labels = class_labels(classes, found.name)
        self.order = shuffled_once(len(classes))

    def name_of(self, place: int) -> str:
        return shown(self.paths[place])

    def fetched(self, places: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        names = [self.paths[place] for place in places]
        sizes = None if self.sizes is None else self.sizes[places]
        with reading_source(self.name):
            for data in contents_of(names, sizes, MAX_PICTURE):
                yield BadPicture(f"cannot be read: {data}") if isinstance(data, Exception) else data
