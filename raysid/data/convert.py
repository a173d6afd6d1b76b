"""Conversion of pictures to Parquet files of a size for streaming, in parallel with Ray Data."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from raysid.data.footers import read_footers
from raysid.data.parquet import CLASSES, INDEX
from raysid.data.picture_captions import joined_captions
from raysid.data.picture_source import PictureSource
from raysid.data.pictures import BadPicture, as_stored
from raysid.data.source import SEPARATOR, Piece
from raysid.errors import RunFailed, StorageError, UserError
from raysid.storage import (
    children,
    exists,
    is_local,
    make_folder,
    open_file,
    remove_folder,
    storage_errors,
    upload,
)
from raysid.storage.failures import MAKE_ROOM

FILE_BYTES = 256 << 20  # approximately; at least one shard
GROUP_ROWS = 256  # four make a shard of a list that can be split anywhere
MEASURED = 64  # pictures that estimate the size of the others
MADE_FROM = b"raysid"  # key in the files' metadata
NAME = "part-{:05d}-of-{:05d}.parquet"
PARTS = ".part-"  # prefix of the folders of files that are being written


@dataclass(frozen=True)
class Written:
    """A file of the conversion that exists now.

    Attributes:
        images: pictures of the source that belong to it.
        written: pictures in it.
        bad: names of those left out, with the reasons; empty if the file existed before.
    """

    images: int
    written: int
    bad: list[str]


def plan_files(source: PictureSource) -> list[list[Piece]]:
    """Assign consecutive shards to each file, about 256 MB by the size of the first pictures."""
    first = source.pieces()[0]
    rows = list(_rows(source, [first._replace(last=min(first.last, MEASURED))], []))
    mean = sum(len(row["image"]["bytes"]) for row in rows) / max(len(rows), 1)
    files: list[list[Piece]] = [[]]
    images = 0
    for piece in source.pieces():
        size = piece.size
        if files[-1] and (images + size) * mean > FILE_BYTES:
            files.append([])
            images = 0
        files[-1].append(piece)
        images += size
    return files


def check_target(target: UPath, source: PictureSource, files: int) -> None:
    """Check that a folder holds only files of this conversion, which then resumes.

    Raises:
        UserError: it holds another file, which the message names.
    """
    ours = {NAME.format(number, files) for number in range(files)}
    # Leave out PARTS, and hidden files of the system.
    found = [path for path in children(target) if not path.name.startswith(".")]
    other = [path for path in found if path.name not in ours]
    parts = [path for path in found if path.name in ours]
    try:
        footers = read_footers([str(path) for path in parts])
    except UserError as error:
        raise UserError(f"{error}: remove it, then run the same command to write it again") from None
    made_from = _made_from(source)
    other += [
        path
        for path, footer in zip(parts, footers, strict=True)
        if (footer.metadata or {}).get(MADE_FROM) != made_from
    ]
    if other:
        raise UserError(
            f"{target} holds {other[0].name}, which is not of this conversion: give another folder"
        )


def _made_from(source: PictureSource) -> bytes:
    """Identify a conversion: its source, settings and labels."""
    digest = hashlib.sha256(source.labels.numbers.tobytes() + json.dumps(source.labels.names).encode())
    column = getattr(source, "image_column", "")
    images = f"{source.name}, {source.num_images} images, {source.fit}, {column}"
    captions = f", captions {source.caption_column}" if source.captioned else ""
    return f"{images}, labels {digest.hexdigest()}{captions}".encode()


def convert_files(source: PictureSource, target: UPath, files: list[list[Piece]]) -> Iterator[Written]:
    """Write the files that do not exist yet, and yield each file.

    A file is written completely or not at all. A picture that already is an image of this source is copied byte for
    byte; any other becomes a PNG of its decoded image.

    Raises:
        RunFailed: the target is full, or this machine's temporary folder; the files that exist are complete.
        UserError: the source can no longer be read, or the files cannot be written.
    """
    import ray
    import ray.data

    from raysid.data.ray_data import quieten_ray_data

    if is_local(target):
        for path in children(target):
            if path.name.startswith(PARTS):  # of a killed conversion
                remove_folder(path)
    quieten_ray_data()
    shared = ray.put((source, files))
    dataset = ray.data.range(len(files), override_num_blocks=len(files)).map(
        partial(_write_file, shared, str(target)), num_cpus=1
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    for row in dataset.iter_rows():
        if row["full"]:
            raise RunFailed(f"{row['failed']}; {MAKE_ROOM} to resume")
        if row["failed"]:
            raise UserError(row["failed"])
        yield Written(int(row["images"]), int(row["written"]), list(row["bad"]))


def _write_file(shared: Any, target: str, row: dict[str, Any]) -> dict[str, Any]:
    """A task: write the file of this number if it does not exist. User errors are returned as text."""
    import ray

    source, files = ray.get(shared)
    number = int(row["id"])
    bad: list[str] = []
    written, failed, full = 0, "", False
    try:
        written = _whole_file(UPath(target) / NAME.format(number, len(files)), source, files[number], bad)
    except (StorageError, UserError) as error:  # Ray Data would add a page to a raised error
        failed, full = str(error), isinstance(error, StorageError) and error.full
    images = sum(piece.size for piece in files[number])
    return {"images": images, "written": written, "bad": bad, "failed": failed, "full": full}


def _whole_file(path: UPath, source: PictureSource, pieces: list[Piece], bad: list[str]) -> int:
    """Write a file if it does not exist; return the number of its images."""
    if not exists(path):
        make_folder(path.parent)
        beside = path.parent.path if is_local(path) else None
        with (
            storage_errors(path.parent, "written"),
            tempfile.TemporaryDirectory(dir=beside, prefix=PARTS) as folder,
        ):
            made = os.path.join(folder, path.name)
            with storage_errors(made, "written"):
                _write(made, source, _rows(source, pieces, bad))
                with open(made, "rb") as file:
                    os.fsync(file.fileno())  # some disks report only now that they are full
            upload(made, path)
    with open_file(path) as file:
        return pq.ParquetFile(file).metadata.num_rows


def _write(path: str, source: PictureSource, rows: Iterator[dict[str, Any]]) -> None:
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", picture)]
    fields += [("label", pa.int64())] if source.num_classes else []
    fields += [(INDEX, pa.int64())]
    fields += [("caption", pa.list_(pa.string()))] if source.captioned else []
    metadata = {MADE_FROM: _made_from(source), CLASSES: json.dumps(source.labels.names).encode()}
    schema = pa.schema(fields, metadata=metadata)
    # Pictures are already compressed.
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        while group := list(islice(rows, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _rows(source: PictureSource, pieces: list[Piece], bad: list[str]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        for content in source.contents(piece):
            try:
                image, data = source.image_of(content), content.picture()
                captions = joined_captions(content.caption).split(SEPARATOR) if source.captioned else None
                (width, height), mode = as_stored(data)
                # A picture that decodes to this image with any settings stays as it is.
                if ({"L": 1, "RGB": 3}.get(mode), height, width) != image.shape:
                    data = _png(image)
            except BadPicture as error:
                bad.append(f"{source.name_of(content.entry)} {error}")
                continue
            yield {
                "image": {"bytes": data, "path": source.name_of(content.entry)},
                "label": content.label,
                "caption": captions,
                INDEX: content.index,
            }


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()
