"""Zips of EDM's dataset tool: every image with its label, read in place; faults are reported in one line."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from raysid.data import ImageStream, open_source, ray_blocks
from raysid.data.edm_zip import EDMZipSource
from raysid.errors import NotHere, UserError
from tests.support.bucket_server import BUCKET, Connection, bucket_server, in_bucket
from tests.support.edm_zips import colour, png, write_zip


def rows(source: EDMZipSource) -> list[tuple[int, int]]:
    """Each image's number and label, in the canonical order."""
    blocks = list(source.blocks())
    for block in blocks:
        assert block["image"].dtype == np.uint8
        for image in block["image"]:
            np.testing.assert_array_equal(image, colour(int(image[0, 0, 0])))
    return [
        (int(image[0, 0, 0]), int(label))
        for block in blocks
        for image, label in zip(block["image"], block["label"], strict=True)
    ]


def test_every_image_comes_once_with_its_label(tmp_path: Path) -> None:
    source = open_source(write_zip(tmp_path / "c.zip"))
    assert isinstance(source, EDMZipSource)
    assert (source.num_images, source.num_classes, source.image_shape) == (40, 3, (3, 4, 4))
    assert source.label_counts.tolist() == [14, 13, 13]
    read = rows(source)
    assert sorted(read) == [(i, i % 3) for i in range(40)]
    assert read != sorted(read)  # such zips are sorted by class
    other = open_source(str(tmp_path / "c.zip"))
    other.per_shard = 7  # type: ignore[attr-defined]
    assert other.shard_sizes.tolist() == [7] * 5 + [5] and read == rows(pickle.loads(pickle.dumps(other)))


@pytest.mark.parametrize("labels", [None, "no file"])
def test_without_labels(tmp_path: Path, labels: Any) -> None:
    source = open_source(write_zip(tmp_path / "c.zip", labels=labels))
    assert source.num_classes == 0
    assert {label for _, label in rows(source)} == {0}  # type: ignore[arg-type]


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    with zipfile.ZipFile(tmp_path / "g.zip", "w") as archive:
        archive.writestr("a.png", png(grey, "L"))
    source = open_source(str(tmp_path / "g.zip"))
    assert source.image_shape == (1, 4, 4)
    np.testing.assert_array_equal(next(source.blocks())["image"], grey[None, None])


def test_ray_data_reads_it_in_the_same_order(ray_cluster: None, tmp_path: Path) -> None:
    source = open_source(write_zip(tmp_path / "c.zip"))
    source.per_shard = 7  # type: ignore[attr-defined]
    streams = [
        ImageStream(blocks, source.shard_sizes, seed=3, window=16)
        for blocks in (source.blocks, ray_blocks(source))
    ]
    try:
        for start in range(0, 100, 20):  # across two ends of epochs
            (here, here_labels), (there, there_labels) = (stream.read(start, 20) for stream in streams)
            np.testing.assert_array_equal(here, there)
            np.testing.assert_array_equal(here_labels, there_labels)
    finally:
        for stream in streams:
            stream.close()
    assert ray.is_initialized()


def test_a_zip_in_a_bucket_is_read_in_place_and_only_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_zip(tmp_path / "c.zip")
    with zipfile.ZipFile(local, "a") as archive:
        archive.writestr("notes.bin", os.urandom(1 << 24))
    with bucket_server() as server:
        url = f"gs://{BUCKET}/data/c.zip"
        in_bucket(server, url).write_bytes(Path(local).read_bytes())
        connection = Connection(server, bad=False)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", connection.address)
        source = open_source(url)
        assert rows(source) == rows(open_source(local))  # type: ignore[arg-type]
        assert 0 < connection.sent < 1 << 20
        connection.close()


def refused(path: Any) -> str:
    """The one-line error for a zip, which names it."""
    with pytest.raises(UserError) as caught:
        open_source(str(path))
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


def test_an_unreadable_source_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="there is no file"):
        open_source(str(tmp_path / "none.zip"))
    (tmp_path / "text.zip").write_text("no zip")
    assert "cannot be read as a zip" in refused(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert "holds no images" in refused(tmp_path / "empty.zip")
    assert "classes are whole numbers" in refused(
        write_zip(tmp_path / "v.zip", 1, labels=[["00000/img00000000.png", [0, 1]]])
    )
    assert "classes are whole numbers" in refused(
        write_zip(tmp_path / "n.zip", 1, labels=[["00000/img00000000.png", -1]])
    )
    assert "dataset.json" in refused(write_zip(tmp_path / "d.zip", 1, labels=7))
    large = write_zip(tmp_path / "s.zip", 1, labels=None, zz__large=png(np.zeros((3, 8, 8), np.uint8)))
    assert "several sizes (" in refused(large) and "give data.resolution" in refused(large)


def faults(path: str) -> list[str]:
    return [fault for block in open_source(path).blocks() for fault in block["fault"] if fault]


def test_a_picture_that_is_damaged_is_named(tmp_path: Path) -> None:
    (cut,) = faults(write_zip(tmp_path / "c.zip", labels=None, zz__cut=png(colour(1))[:-26]))
    assert cut.startswith(f"zz/cut.png in {tmp_path / 'c.zip'} cannot be read as an image: ")
    labels = [[f"{i // 5:05d}/img{i:08d}.png", 1] for i in range(39)]
    (unlabelled,) = faults(write_zip(tmp_path / "l.zip", labels=labels))
    assert unlabelled == f"00007/img00000039.png in {tmp_path / 'l.zip'} has no label"
    damaged = tmp_path / "z.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png(colour(1)) + bytes(1000))
        archive.writestr("b.png", png(colour(2)))
    content = bytearray(damaged.read_bytes())
    content[45:80] = bytes(35)
    damaged.write_bytes(content)
    (broken,) = faults(str(damaged))
    assert broken.startswith("a.png in") and "cannot be read" in broken


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unpacking_without_a_limit_is_refused(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "c.zip", 2, labels="no file")
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("zz.png", png(colour(1)))
    (fault,) = faults(path)
    assert fault.startswith(f"zz.png in {path} cannot be read: it is packed by method {method}: ")
    other = write_zip(tmp_path / "l.zip", 2, labels="no file")
    with zipfile.ZipFile(other, "a", method) as archive:
        archive.writestr("dataset.json", "{}")
    assert "it is packed by method" in refused(other)


def test_a_file_of_a_zip_is_not_unpacked_beyond_its_claimed_size(tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png(colour(1)))
        archive.writestr("b.png", png(colour(1)) + bytes(64 << 20))
    content = path.read_bytes()
    said = (len(png(colour(1))) + (64 << 20)).to_bytes(4, "little")
    path.write_bytes(content.replace(said, (1000).to_bytes(4, "little")))
    tracemalloc.start()
    faults(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
