"""Folders of pictures: one subfolder per class, or all in one folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from raysid.config import DataSettings
from raysid.data.files import Found, reading_source
from raysid.data.folder_labels import folder_captions, folder_labels
from raysid.data.labels import class_labels, no_labels
from raysid.data.picture_files import read_files, read_objects
from raysid.data.picture_source import ListedSource, left_out_note, new_pictures
from raysid.data.pictures import BadPicture
from raysid.data.source import ORDER_SEED, Texts, random_permutation
from raysid.errors import printable


class FolderSource(ListedSource):
    """Pictures in files, on this machine or in a bucket.

    The list is sorted by path and read in an order that is shuffled once: folders are sorted by class, and the stream
    shuffles only within its window. Labels are those of a `metadata.csv` or of EDM's `dataset.json`. Without them,
    classes are the subfolders, numbered in sorted order as in torchvision's ImageFolder; pictures beside class folders
    have no label.

    Args:
        captioned: read captions, the column `data.caption_column` of a `metadata.csv`, in place of labels.

    Raises:
        UserError: `dataset.json` is damaged, or its labels are not the pictures' or not classes.
    """

    def __init__(self, found: Found, data: DataSettings, captioned: bool = False) -> None:
        self.captioned = captioned
        self.name = found.name
        self.paths = Texts(file.path for file in found.files)
        sizes = np.array([file.size for file in found.files], np.int64)
        self.sizes = None if (sizes < 0).any() else sizes
        with reading_source(found.name):
            labels = (
                folder_captions(found, data.caption_column)
                if captioned
                else folder_labels(found, data.label_column)
            )
        if captioned:
            self.caption_column = data.caption_column or ""
            self.texts = [*labels.labels]
            self.labels = no_labels(len(self.texts))
        else:
            self.labels = class_labels(labels.labels, labels.where)
        self.notes = labels.notes + left_out_note(found.not_read(labels.read))
        self.new_since_first = new_pictures((file.parts[-1] for file in found.files), found.linked)
        self.order = random_permutation(ORDER_SEED, len(found.files))

    def name_of(self, entry: int) -> str:
        return printable(self.paths[entry])

    def captions(self, entries: NDArray[np.int64]) -> Iterable[object]:
        return [self.texts[entry] for entry in entries] if self.captioned else super().captions(entries)

    def fetched(self, entries: NDArray[np.int64]) -> Iterator[bytes | BadPicture]:
        paths = [self.paths[entry] for entry in entries]
        with reading_source(self.name):
            yield from read_files(paths) if self.sizes is None else read_objects(paths, self.sizes[entries])
