"""Real images from files of every format: equal images give equal streams; sources by folder, glob and list."""

from __future__ import annotations

import errno
import io
import os
import pickle
import subprocess
import sys
import tarfile
import textwrap
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.config import conf
from fsspec.exceptions import FSTimeoutError

from raysid.config import DataSettings
from raysid.data import ImageSource, ImageStream, open_source, ray_blocks
from raysid.data.pictures import MAX_PICTURE, Fit, decoded
from raysid.errors import NotHere, UserError
from tests.support.bucket_server import BUCKET, Connection, bucket_server, in_bucket
from tests.support.picture_files import (
    add,
    digit_pictures,
    encoded,
    write_folder,
    write_parquet,
    write_tars,
    write_zip,
)

COUNT = 120


def stream_of(source: ImageSource, window: int = 1000, **options: Any) -> ImageStream:
    return ImageStream(source.blocks, source.shard_sizes, 0, window, **options)


def assert_same_stream(one: ImageSource, other: ImageSource) -> None:
    assert (one.image_shape, one.num_classes) == (other.image_shape, other.num_classes)
    assert one.label_counts.tolist() == other.label_counts.tolist()
    for ours, theirs in zip(stream_of(one).read(0, 300), stream_of(other).read(0, 300), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def refused(*source: Any, **data: Any) -> str:
    """The one-line error for a source."""
    with pytest.raises(UserError) as caught:
        open_source(DataSettings(source=source[0] if len(source) == 1 else list(source), **data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def pictures() -> list[tuple[str, bytes, int]]:
    return digit_pictures(COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: Any) -> str:
    return write_folder(tmp_path_factory.mktemp("pictures") / "digits", pictures)


# The same pictures.


@pytest.mark.parametrize("kind", ["zip", "parquet", "plain parquet", "tar", "tar with json", "partitions"])
def test_the_same_pictures_in_other_files_are_the_same_stream(
    tmp_path: Path, folder: str, pictures: Any, kind: str
) -> None:
    if kind == "zip":
        other = write_zip(tmp_path / "d.zip", pictures)
    elif kind == "partitions":
        for label in range(10):
            of_class = [picture for picture in pictures if picture[2] == label]
            path = write_parquet(tmp_path / f"label={label}" / "part-0.parquet", of_class)
            pq.write_table(pq.read_table(path).drop(["label"]), path)
        other = str(tmp_path)
    elif "parquet" in kind:
        other = write_parquet(tmp_path / "d.parquet", pictures, group=50, struct=kind == "parquet")
    else:
        other = write_tars(tmp_path / "tars", pictures, 50, "cls" if kind == "tar" else "label")
    assert_same_stream(open_source(folder), open_source(other))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_pngs_jpegs_and_webps_are_read(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    files = {
        "a.png": encoded(pixels),
        "b.webp": encoded(pixels, "WEBP", lossless=True),
        "c.jpg": encoded(pixels, "JPEG"),
        "d.JPEG": encoded(pixels, "JPEG"),
    }
    place = tmp_path / f"files.{kind}"
    if kind == "folder":
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(place, "w") as tar:
            for name, content in files.items():
                add(tar, name, content)
    images = {image.tobytes() for block in open_source(str(place)).blocks() for image in block["image"]}
    lossy = decoded(files["c.jpg"], Fit())
    assert images == {pixels.transpose(2, 0, 1).tobytes(), lossy.tobytes()}
    assert open_source(str(place)).num_images == 4


def test_pictures_are_fitted_as_configured(folder: str, pictures: Any) -> None:
    data = DataSettings(source=folder, resolution=5, crop="none", filter="box", channels=3)
    source = open_source(data)
    assert source.image_shape == (3, 5, 5)
    fit = Fit(5, "none", "box", 3)
    assert fit != Fit(5, channels=3)
    expected = sorted(decoded(content, fit).tobytes() for _, content, _ in pictures)
    assert sorted(image.tobytes() for block in source.blocks() for image in block["image"]) == expected


def test_grey_pictures_among_coloured_ones_are_made_coloured(tmp_path: Path) -> None:
    grey, colour = np.zeros((8, 8), np.uint8), np.ones((8, 8, 3), np.uint8)
    both = write_folder(tmp_path / "both", [("a", encoded(grey), 0), ("b", encoded(colour), 0)])
    source = open_source(both)
    assert source.image_shape == (3, 8, 8) and source.num_images == 2
    assert not any(block["fault"].any() for block in source.blocks())


def test_coloured_pictures_found_late_among_grey_ones_are_bad_unless_the_config_allows_them(
    tmp_path: Path,
) -> None:
    tars = [(f"{i:03d}", encoded(np.zeros((8, 8), np.uint8)), 0) for i in range(20)]
    tars.append(("zzz", encoded(np.ones((8, 8, 3), np.uint8)), 0))  # after those that are looked at first
    pattern = write_tars(tmp_path / "tars", tars, 100)
    source = open_source(pattern)
    assert source.image_shape == (1, 8, 8)
    (fault,) = (fault for block in source.blocks() for fault in block["fault"] if fault)
    assert fault.startswith("zzz.png ") and fault.endswith(
        " is in colour, the others in grey (data.channels makes them of one kind)"
    )
    for channels in (1, 3):
        source = open_source(DataSettings(source=pattern, channels=channels))
        assert not any(block["fault"].any() for block in source.blocks())


@pytest.mark.parametrize("kind", ["partitions", "tar"])
def test_labels_of_another_name(tmp_path: Path, folder: str, pictures: Any, kind: str) -> None:
    if kind == "tar":
        other = write_tars(tmp_path / "tars", pictures, 50, "fine")
    else:
        other = str(tmp_path)
        for label in range(10):
            of_class = [picture for picture in pictures if picture[2] == label]
            path = write_parquet(tmp_path / f"fine={label}" / "part-0.parquet", of_class)
            pq.write_table(pq.read_table(path).drop(["label"]), path)
    assert_same_stream(open_source(folder), open_source(DataSettings(source=other, label_column="fine")))


def test_classes_are_the_subfolders_by_name(folder: str, pictures: Any) -> None:
    source = open_source(folder)
    counts = np.bincount([label for _, _, label in pictures])
    assert source.num_classes == 10 and source.label_counts.tolist() == counts.tolist()
    assert (source.image_shape, source.pixel_max, source.num_images) == ((1, 8, 8), 255, COUNT)


def test_a_flat_folder_has_no_labels(tmp_path: Path, pictures: Any) -> None:
    flat = write_folder(tmp_path, [(name.replace("/", "-"), content, 0) for name, content, _ in pictures])
    (tmp_path / "readme.txt").write_text("not a picture")
    (tmp_path / "._00.png").write_bytes(b"what macOS leaves")
    source = open_source(flat)
    assert (source.num_classes, source.num_images, source.label_counts.tolist()) == (0, COUNT, [])
    assert not stream_of(source).read(0, COUNT)[1].any()


def test_names_and_labels_that_are_words_are_sorted(tmp_path: Path, pictures: Any) -> None:
    words = ["zero", "one", "two"]
    some = [
        (f"{words[label]}/{name[2:]}", content, words[label])
        for name, content, label in pictures
        if label < 3
    ]
    folder = open_source(write_folder(tmp_path / "f", some))
    parquet = open_source(write_parquet(tmp_path / "p.parquet", sorted(some)))
    assert folder.num_classes == 3
    assert folder.label_counts.tolist()[2] == sum(label == "zero" for _, _, label in some)
    assert_same_stream(folder, parquet)


def test_ray_data_reads_all_kinds_the_same(ray_cluster: None, tmp_path: Path, pictures: Any) -> None:
    """Each file holds one bad image."""
    some = [*pictures[:-1], ("9/zz", b"no picture", 9)]
    paths = [write_folder(tmp_path / "f", some), write_parquet(tmp_path / "d.parquet", some)]
    for path in (*paths, write_tars(tmp_path, some, 50)):
        source = open_source(path)
        if hasattr(source, "per_shard"):
            source.per_shard = 30
        remote = ImageStream(ray_blocks(source), source.shard_sizes, 0, 50, max_bad_fraction=0.01)
        local = stream_of(source, 50, max_bad_fraction=0.01)
        for ours, theirs in zip(remote.read(40, 200), local.read(40, 200), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert remote.faults == local.faults and len(remote.faults) == 1
        remote.close()


def test_large_images_are_shared_out_to_short_read_tasks(ray_cluster: None, tmp_path: Path) -> None:
    """A shard may be a gigabyte: with one task per shard the other cores would wait."""
    picture = encoded(np.zeros((8, 8, 3), np.uint8))
    folder = write_folder(tmp_path / "large", [(f"{i:04d}", picture, 0) for i in range(1100)])
    source: Any = open_source(DataSettings(source=folder, resolution=160))
    blocks = source.blocks

    def noted(pieces: Any) -> Any:
        (tmp_path / str(pieces[0])).write_text(str(sum(piece.size for piece in pieces)))
        return blocks(pieces)

    source.blocks = noted
    read = [block for block in ray_blocks(source)(source.pieces())]
    assert np.concatenate([block["index"] for block in read]).tolist() == source.order.tolist()
    tasks = [int(path.read_text()) for path in tmp_path.iterdir() if path.is_file()]
    assert sum(tasks) == 1100 and max(tasks) * 160 * 160 * 3 < 1 << 26


def test_a_large_list_travels_without_a_copy(folder: str) -> None:
    buffers: list[Any] = []
    source = open_source(folder)
    stayed = pickle.dumps(source, protocol=5, buffer_callback=buffers.append)
    assert len(stayed) < 2000 and len(buffers) >= 3
    assert pickle.loads(stayed, buffers=buffers).paths[7] == source.paths[7]  # type: ignore[attr-defined]


# Order and cost.


def bytes_read(source: Any, window: int, start: int, count: int = 4, **options: Any) -> int:
    """The bytes of image files that a stream reads for one batch."""
    fetched = source.fetched
    seen = []

    def counting(places: Any) -> Any:
        for data in fetched(places):
            seen.append(len(data))
            yield data

    source.fetched = counting
    stream_of(source, window, **options).read(start, count)
    return sum(seen)


def test_a_resume_late_in_an_epoch_reads_one_window(folder: str, pictures: Any) -> None:
    source: Any = open_source(folder)
    source.per_shard = 10
    largest = max(len(content) for _, content, _ in pictures)
    assert 0 < bytes_read(source, 20, start=108) <= 20 * largest
    two = {"batch_size": 4, "lanes": 2}
    assert 0 < bytes_read(source, 20, start=108, **two) <= 30 * largest
    assert 0 < bytes_read(source, 20, start=108, count=2, parts=[(0, 2)], **two) <= 15 * largest
    whole = open_source(folder)
    assert bytes_read(whole, 120, start=108) == sum(len(content) for _, content, _ in pictures)


def test_an_epoch_of_small_windows_has_every_image_once_and_the_next_is_another(folder: str) -> None:
    source: Any = open_source(folder)
    source.per_shard = 10
    images, labels = stream_of(source, 25).read(0, 2 * COUNT)
    first, second = ([image.tobytes() for image in part] for part in np.split(images, 2))
    assert sorted(first) == sorted(second) and len(set(first)) == COUNT and first != second
    assert np.mean(labels[1:] == labels[:-1]) < 0.3  # folders are sorted by class


@pytest.mark.parametrize("group", [7, 50, 1000])
def test_part_of_a_parquet_shard_is_that_part(tmp_path: Path, pictures: Any, group: int) -> None:
    source = open_source(write_parquet(tmp_path / "d.parquet", pictures, group))
    whole = np.concatenate([block["image"] for block in source.blocks()])
    assert len(whole) == COUNT
    piece = source.pieces()[0]._replace(first=33, last=81)
    part = np.concatenate([block["image"] for block in source.blocks([piece])])
    np.testing.assert_array_equal(part, whole[33:81])


# Which files.


def test_globs_and_lists(tmp_path: Path, pictures: Any) -> None:
    thirds = [pictures[start::3] for start in range(3)]
    paths = [write_parquet(tmp_path / f"part-{i}.parquet", third) for i, third in enumerate(thirds)]
    assert open_source(str(tmp_path / "part-[01].parquet")).num_images == 80
    listed = DataSettings(source=[paths[2], paths[0]])
    source = open_source(listed)
    assert source.num_images == 80 and source.name == f"{paths[2]}, {paths[0]}"
    assert_same_stream(source, open_source(str(tmp_path / "part-[02].parquet")))
    folder = write_folder(tmp_path / "folder", pictures)
    assert_same_stream(open_source(folder), open_source(f"{folder}/*/*.png"))
    assert_same_stream(open_source(folder), open_source(f"{folder}/*"))


def test_a_folders_format_is_that_of_its_files(tmp_path: Path, pictures: Any) -> None:
    write_tars(tmp_path / "both", pictures, 50)
    assert open_source(str(tmp_path / "both")).num_images == COUNT
    (tmp_path / "both" / "preview.png").write_bytes(pictures[0][1])
    line = refused(str(tmp_path / "both"))
    assert "holds .tar files and pictures" in line and "data.format" in line
    data = DataSettings(source=str(tmp_path / "both"), format="webdataset")
    assert open_source(data).num_images == COUNT


def test_a_relative_path_and_a_link(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linked").mkdir()
    for name in os.listdir(folder):
        (tmp_path / "linked" / name).symlink_to(Path(folder) / name)
    monkeypatch.chdir(tmp_path)
    relative = open_source("linked")
    monkeypatch.chdir("/")
    assert_same_stream(relative, open_source(folder))


def test_an_unreadable_source_is_one_line(tmp_path: Path, pictures: Any) -> None:
    with pytest.raises(NotHere, match="there is no file or folder /no/such/folder"):
        open_source("/no/such/folder")
    with pytest.raises(NotHere, match="nothing matches"):
        open_source(str(tmp_path / "*.parquet"))
    assert "holds no images" in refused(str(tmp_path))
    assert "http:// is not read" in refused("http://host/images.zip")
    (tmp_path / "t.parquet").write_bytes(b"nothing of the kind")
    assert "t.parquet cannot be read as Parquet" in refused(str(tmp_path / "t.parquet"))
    (tmp_path / "t.tar").write_bytes(b"nothing of the kind" * 100)
    assert "t.tar cannot be read as a tar" in refused(str(tmp_path / "t.tar"))
    with tarfile.open(tmp_path / "e.tar", "w") as tar:
        add(tar, "a.cls", b"1")
    assert "holds no samples with a picture" in refused(str(tmp_path / "e.tar"))
    write_folder(tmp_path / "sizes", [("a", encoded(np.zeros((8, 8), np.uint8)), 0)])
    write_folder(tmp_path / "sizes", [("b", encoded(np.zeros((8, 9), np.uint8)), 0)])
    assert "b.png: 9x8" in (line := refused(str(tmp_path / "sizes"))) and "give data.resolution" in line
    write_folder(tmp_path / "bad", [("a", b"", 0), ("b", b"?", 0)])
    assert "of the first 2 pictures" in (line := refused(str(tmp_path / "bad"))) and "is empty" in line
    assert "data.resolution is for files" in refused("digits", resolution=16)


def test_rows_of_a_damaged_part_of_a_parquet_file_are_bad(tmp_path: Path, pictures: Any) -> None:
    path = Path(write_parquet(tmp_path / "d.parquet", pictures, group=40))
    content = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[begin : begin + 40] = bytes(40)
    path.write_bytes(content)
    faults = [fault for block in open_source(str(path)).blocks() for fault in block["fault"]]
    assert [bool(fault) for fault in faults] == [40 <= row < 80 for row in range(COUNT)]
    assert faults[40].startswith(f"row 40 of {path} cannot be read: ")


def test_a_pipe_among_pictures_is_a_bad_picture(tmp_path: Path, pictures: Any) -> None:
    folder = write_folder(tmp_path, pictures[:3])
    os.mkfifo(tmp_path / "0" / "pipe.png")
    (fault,) = (fault for block in open_source(folder).blocks() for fault in block["fault"] if fault)
    assert fault == f"{folder}/0/pipe.png cannot be read: is not a file"


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.parquet"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for source in (tmp_path / name, tmp_path, tmp_path / "x.*"):
        assert f"{tmp_path / name} is not a file" in refused(str(source))


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), FSTimeoutError("too slow")])
def test_an_outage_is_no_bad_picture(
    tmp_path: Path, pictures: Any, kind: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Any = {"folder": write_folder, "zip": write_zip, "parquet": write_parquet}[kind]
    source = open_source(write(tmp_path / f"d.{kind}", pictures[:3]))

    def broken(*arguments: Any, **options: Any) -> bytes:
        raise error

    class BrokenFile(io.BytesIO):
        read = broken

    if kind == "parquet":  # Arrow re-raises the error of the read
        monkeypatch.setattr("io.open", lambda *_, **__: BrokenFile(b"PAR1" * 10))
    else:
        monkeypatch.setattr("builtins.open", broken)
    with pytest.raises(UserError, match=r"data.source .* cannot be read: (Input/output error|too slow)"):
        list(source.blocks())


def test_a_class_that_cannot_be_listed_is_not_left_out(
    tmp_path: Path, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path, pictures)
    scandir = os.scandir

    def closed(path: str) -> Any:
        if path == f"{folder}/3":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert refused(folder).endswith(f"cannot be read: Permission denied: {folder}/3")


def sized(size: int) -> tarfile.TarInfo:
    """The header of an image file that claims a size in bytes."""
    member = tarfile.TarInfo("zz.png")
    member.size = size
    return member


def extended(**said: str) -> tarfile.TarInfo:
    member = sized(0)
    member.pax_headers = said
    return member


def long_header() -> tarfile.TarInfo:
    member = sized(6 << 30)
    member.type = tarfile.XHDTYPE
    return member


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (sized(-512), "a member has -512 bytes"),
        (sized(-1), "a member has -1 bytes"),
        (extended(size="-5"), "a member has -5 bytes"),
        (long_header(), "a header has 6,442,450,944 bytes"),
    ],
)
def test_tars_whose_sizes_lie_are_refused(
    tmp_path: Path, pictures: Any, member: tarfile.TarInfo, words: str
) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        add(tar, "a.png", pictures[0][1])
        tar.fileobj.write(member.tobuf(tarfile.PAX_FORMAT if member.pax_headers else tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    assert refused(str(tmp_path / "d.tar")).endswith(f"d.tar cannot be read as a tar (uncompressed): {words}")


def test_sparse_members_and_endless_numbers_in_tars_are_passed_over(tmp_path: Path, pictures: Any) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        add(tar, "a.png", pictures[0][1])
        add(tar, "a.cls", b"7" * 5000)
        sparse = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "-7", "GNU.sparse.realsize": "-7"}
        tar.fileobj.write(extended(**sparse).tobuf(tarfile.PAX_FORMAT))  # type: ignore[union-attr]
    source = open_source(str(tmp_path / "d.tar"))
    assert (source.num_images, source.num_classes) == (1, 1)


def test_ambiguous_columns_of_parquet_must_be_named(tmp_path: Path, pictures: Any) -> None:
    path = str(tmp_path / "d.parquet")
    contents = [content for _, content, _ in pictures]
    numbers = [number for _, _, number in pictures]
    columns = {
        "img": contents,
        "thumbnail": contents[::-1],
        "fine": numbers,
        "coarse": [n // 5 for n in numbers],
    }
    pq.write_table(pa.table(columns), path)
    assert "several columns of bytes (img, thumbnail): give data.image_column" in refused(path)
    assert "has no column image; columns: img, thumbnail, fine, coarse" in refused(path, image_column="image")
    assert "has no column of bytes fine" in refused(path, image_column="fine")
    assert open_source(DataSettings(source=path, image_column="img")).num_classes == 0
    for image, label in (("img", "fine"), ("thumbnail", "coarse")):
        source = open_source(DataSettings(source=path, image_column=image, label_column=label))
        blocks = list(source.blocks())
        for pixels, content in zip(blocks[0]["image"], columns[image], strict=False):
            np.testing.assert_array_equal(pixels, decoded(content, Fit()))
        assert np.concatenate([block["label"] for block in blocks]).tolist() == columns[label]
    pq.write_table(pa.table({"image": contents, "label": [0.5] * COUNT}), path)
    assert "has the label 0.5: classes are whole numbers" in refused(path)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"image": [7]}, "two.parquet has no bytes in its column image, which "),
        ({"image": [b""], "raysid_index": [1]}, "has a column raysid_index: they are from different"),
        ({"image": [b""], "label": [[1, 2]]}, "in its column label: labels are whole numbers or names"),
    ],
    ids=["no bytes", "index", "labels"],
)
def test_files_that_are_not_alike_are_named(tmp_path: Path, pictures: Any, other: Any, words: str) -> None:
    write_parquet(tmp_path / "one.parquet", pictures[:3])
    pq.write_table(pa.table(other), tmp_path / "two.parquet")
    line = refused(str(tmp_path))
    assert f"{tmp_path}/two.parquet" in line and words in line


def test_an_index_of_parquet_is_a_number(tmp_path: Path, pictures: Any) -> None:
    path = str(tmp_path / "d.parquet")
    pq.write_table(pa.table({"image": [pictures[0][1]], "raysid_index": ["one"]}), path)
    assert refused(path) == f"{path} has a column raysid_index of string: int64 is needed"


def test_the_file_whose_footer_is_damaged_is_named(tmp_path: Path, pictures: Any) -> None:
    path = Path(write_parquet(tmp_path / "d.parquet", pictures))
    content = bytearray(path.read_bytes())
    content[-300:-8] = bytes([255] * 292)
    path.write_bytes(content)
    assert refused(str(tmp_path)).startswith(f"{path} cannot be read as Parquet: ")


@pytest.mark.parametrize("kind", ["folder", "parquet", "tars"])
def test_files_in_a_bucket_are_read_there(
    tmp_path: Path, pictures: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [*pictures[::6], ("9/[9]*", pictures[-1][1], 9)]  # a name, not a pattern
    folder = write_folder(tmp_path / "folder", some)
    write_parquet(tmp_path / "parquet" / "d.parquet", some)
    write_tars(tmp_path / "tars", some, 8)
    local = tmp_path / kind
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
        url = f"gs://{BUCKET}/data"
        for path in local.rglob("*.*"):
            in_bucket(server, f"{url}/{path.relative_to(local)}").write_bytes(path.read_bytes())
        assert_same_stream(open_source(folder), open_source(url))
        if kind == "tars":
            assert open_source(f"{url}/digits-000[01].tar").num_images == 16
        if kind == "folder":
            assert_same_stream(open_source(folder), open_source(f"{url}/*/*.png"))
            assert "partly in a bucket" in refused(folder, url)
        with pytest.raises(NotHere, match="there is no file or folder gs://"):
            open_source(f"gs://{BUCKET}/nothing")


def test_an_unanswered_request_to_a_bucket_is_retried(
    tmp_path: Path, folder: str, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf["gs"], "requests_timeout", aiohttp.ClientTimeout(total=None, sock_read=0.5))
    local = write_parquet(tmp_path / "d.parquet", pictures, group=20)
    with bucket_server() as server:
        in_bucket(server, f"gs://{BUCKET}/d.parquet").write_bytes(Path(local).read_bytes())
        connection = Connection(server, bad=False)
        asked: list[str] = []

        def silent(address: str, body: bytes) -> None:
            asked.append(address)
            if len(asked) % 10 == 5:
                time.sleep(3)

        connection.before = silent
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", connection.address)
        assert_same_stream(open_source(folder), open_source(f"gs://{BUCKET}/d.parquet"))
        assert len(asked) > 10
        connection.close()


STREAM = """
    import resource, sys
    import numpy as np
    from raysid.data import ImageStream, open_source

    source = open_source(sys.argv[1])
    stream = ImageStream(source.blocks, source.shard_sizes, 0, 200)
    stream.read(0, 100)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    allowed = used + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    total = sum(int(stream.read(start, 100)[0].sum()) for start in range(0, source.num_images, 100))
    print(source.num_images, total)
"""


def test_a_set_larger_than_the_memory_is_streamed(tmp_path: Path) -> None:
    """Two row groups of one file, each larger than the memory allowed."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    some = [encoded(image, compress_level=1) for image in pixels]
    pictures = [(str(i), some[i % 20], i % 2) for i in range(6000)]
    path = write_parquet(tmp_path / "large.parquet", pictures, group=3000)
    allowed = 120 << 20
    assert Path(path).stat().st_size > 2 * allowed
    command = [sys.executable, "-c", textwrap.dedent(STREAM), path, str(allowed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6000", str(300 * int(pixels.astype(int).sum()))]


def test_large_files_of_small_images_are_not_held(tmp_path: Path, pictures: Any) -> None:
    folder = write_folder(tmp_path, pictures[:20])
    for path in tmp_path.rglob("*.png"):
        os.truncate(path, 1 << 20)  # a decoder ignores bytes after the image
    source = open_source(folder)
    tracemalloc.start()
    assert not any(block["fault"].any() for block in source.blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("struct", [False, True])
def test_a_large_cell_that_many_rows_share_is_not_held_for_each(
    tmp_path: Path, pictures: Any, struct: bool
) -> None:
    large = pictures[0][1] + bytes(4 << 20)
    column = [{"bytes": large} if struct else large] * 64
    pq.write_table(pa.table({"image": column}), tmp_path / "d.parquet")
    del column
    source: Any = open_source(str(tmp_path / "d.parquet"))
    before = pa.total_allocated_bytes()
    assert max(pa.total_allocated_bytes() for _ in source.contents(source.pieces()[0])) < before + (160 << 20)


@pytest.mark.parametrize("struct", [False, True])
def test_a_row_group_of_giant_cells_is_refused_unread(tmp_path: Path, pictures: Any, struct: bool) -> None:
    """The other images are read."""
    giants = [pictures[0][1] + bytes(MAX_PICTURE + (1 << 20))]
    column = [*giants, *(content for _, content, _ in pictures[:9])]
    table = pa.table({"image": [{"bytes": cell} for cell in column] if struct else column})
    with pq.ParquetWriter(tmp_path / "d.parquet", table.schema, compression="zstd") as writer:
        writer.write_table(table.slice(1))
        writer.write_table(table.slice(0, 1))
    del giants, column, table
    source: Any = open_source(str(tmp_path / "d.parquet"))
    before = pa.total_allocated_bytes()
    held, faults = [], []
    for block in source.blocks():
        held.append(pa.total_allocated_bytes())
        faults += block["fault"].tolist()
    assert max(held) < before + MAX_PICTURE // 2
    assert [bool(fault) for fault in faults] == [False] * 9 + [True]
    assert faults[-1].startswith(f"row 9 of {tmp_path}/d.parquet is in a row group of 68,")


def with_counts(path: Path, rows: int, of_file: int, of_groups: int) -> str:
    """A file of one row group whose footer claims other numbers of rows."""

    def field(value: int) -> bytes:
        """An integer of two bytes in the footer, in Thrift's compact encoding."""
        return bytes([0x16, (2 * value & 0x7F) | 0x80, 2 * value >> 7])

    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - size :]
    # The first occurrence is the file's number of rows, the last its row group's.
    first, last = footer.index(field(rows)), footer.rindex(field(rows))
    footer = footer[:last] + field(of_groups) + footer[last + 3 :]
    footer = footer[:first] + field(of_file) + footer[first + 3 :]
    path.write_bytes(content[: -8 - size] + footer)
    found = pq.ParquetFile(path).metadata
    assert (found.num_rows, found.row_group(0).num_rows) == (of_file, of_groups)
    return str(path)


def test_numbers_of_rows_that_do_not_agree_are_refused(tmp_path: Path, pictures: Any) -> None:
    path = with_counts(Path(write_parquet(tmp_path / "d.parquet", pictures[:100])), 100, 110, 100)
    assert refused(path) == f"{path} is damaged: its footer has 110 rows, its groups 100"


def test_rows_without_a_label_are_refused(tmp_path: Path, pictures: Any) -> None:
    """The footer claims in both places more rows than are stored."""
    path = with_counts(Path(write_parquet(tmp_path / "d.parquet", pictures[:100])), 100, 120, 120)
    assert refused(path) == f"{path} is damaged: of 120 rows 100 have a label"


@pytest.mark.parametrize("said", [120, 80])
def test_a_row_group_has_the_rows_that_its_footer_claims(tmp_path: Path, pictures: Any, said: int) -> None:
    """Missing rows are bad images and surplus rows are ignored: every image keeps its position."""
    path = write_parquet(tmp_path / "d.parquet", pictures[:100])
    pq.write_table(pq.read_table(path).drop(["label"]), path, use_dictionary=False)
    source = open_source(with_counts(Path(path), 100, said, said))
    faults = [fault for block in source.blocks() for fault in block["fault"]]
    assert [bool(fault) for fault in faults] == [row >= 100 for row in range(said)]
    assert all(fault.endswith("is cut off: its row group ends before it") for fault in faults[100:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_failed_request_to_a_bucket_is_retried(
    tmp_path: Path, folder: str, pictures: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "parquet" / "d.parquet", pictures, group=20)
    local = Path(folder) if kind == "folder" else tmp_path / kind
    with bucket_server() as server:
        connection = Connection(server, bad=True)
        for path in local.rglob("*.*"):
            in_bucket(server, f"gs://{BUCKET}/bad/{path.relative_to(local)}").write_bytes(path.read_bytes())
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", connection.address)
        assert_same_stream(open_source(folder), open_source(f"gs://{BUCKET}/bad"))
        assert connection.met["503"] > 0
        connection.close()


def test_patches_of_photographs() -> None:
    source = open_source("patches")
    assert (source.image_shape, source.num_images, source.num_classes) == ((3, 32, 32), 1950, 2)
    assert source.label_counts.tolist() == [975, 975]
    images, labels = stream_of(source, 2000).read(0, 1950)
    assert len({image.tobytes() for image in images}) == 1950 and labels.sum() == 975
    from sklearn.datasets import load_sample_image

    flower = load_sample_image("flower.jpg")
    patch = next(iter(source.blocks([source.pieces()[1]._replace(first=40, last=41)])))["image"][0]
    np.testing.assert_array_equal(patch, flower[16:48, 16:48].transpose(2, 0, 1))
