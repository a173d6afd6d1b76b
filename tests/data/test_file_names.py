"""Which files a source reads: paths and patterns as people write them, and names that do not say what a file is."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from raysid.config import DataSettings
from raysid.data import ImageSource, open_source
from raysid.data.patterns import expanded
from raysid.errors import NotHere, UserError
from tests.support.bucket_server import BUCKET, bucket_environment, bucket_server, in_bucket, s3_server
from tests.support.picture_files import digit_pictures, write_folder, write_parquet, write_tars, write_zip

PICTURES = digit_pictures(24)


def opened(source: Any, **data: Any) -> ImageSource:
    return open_source(DataSettings(source=source if isinstance(source, list) else str(source), **data))


def refused(source: Any, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(source, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# data.format.


@pytest.mark.parametrize("kind", ["parquet", "zip", "webdataset", "folder"])
@pytest.mark.parametrize("name", ["d", "d.bak", "d.2026"])
def test_the_format_counts_whatever_the_names_are(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "f").mkdir()
    made = {
        "parquet": lambda: write_parquet(tmp_path / "x", PICTURES),
        "zip": lambda: write_zip(tmp_path / "x", PICTURES),
        "webdataset": lambda: write_tars(tmp_path / "t", PICTURES, 100).replace("*", "0000"),
        "folder": lambda: write_folder(tmp_path / "p", PICTURES[:1]) + f"/{PICTURES[0][0]}.png",
    }[kind]()
    os.rename(made, tmp_path / "f" / name)
    for source in (tmp_path / "f" / name, tmp_path / "f", tmp_path / "f" / "*"):
        assert opened(source, format=kind).num_images == (1 if kind == "folder" else 24)
    assert "for files of other names give data.format" in refused(tmp_path / "f")
    (tmp_path / "f" / "README.md").write_text("beside")
    (tmp_path / "f" / "LICENSE").write_text("beside")
    if kind != "folder":
        assert opened(tmp_path / "f", format=kind).num_images == 24
        assert opened(tmp_path / "f", format=kind).notes[-1] == "left out: files without a suffix (1)"


def test_pictures_without_suffixes_in_class_folders(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path, PICTURES))
    for path in folder.rglob("*.png"):
        path.rename(path.with_suffix(""))
    assert (opened(folder, format="folder").num_images, opened(folder, format="folder").num_classes) == (
        24,
        10,
    )


def test_a_format_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", PICTURES)
    assert "cannot be read as a zip of images" in refused(path, format="zip")
    assert "holds no pictures, which data.format folder needs" in refused(path, format="folder")
    write_parquet(tmp_path / "e.parquet", PICTURES)
    assert "holds no .tar files, which data.format webdataset needs" in refused(tmp_path, format="webdataset")


def test_files_of_unusual_names_beside_usual_ones_are_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", PICTURES)
    write_parquet(tmp_path / "b.pq", PICTURES)
    (tmp_path / "README.md").write_text("beside")
    source = opened(tmp_path, format="parquet")
    assert source.num_images == 24 and source.notes == ("left out: .pq files (1)",)


def test_pictures_of_less_common_formats_beside_parquet_files_need_no_format(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", PICTURES)
    (tmp_path / "preview.gif").write_bytes(b"")
    source = opened(tmp_path)
    assert source.num_images == 24 and source.notes == ("left out: .gif files (1)",)


# Compressed tars.


@pytest.mark.parametrize(("name", "pack"), [("d.tar.gz", gzip), ("d.tgz", gzip), ("d.tar.xz", lzma)])
@pytest.mark.parametrize("given", [None, "webdataset"])
def test_a_compressed_tar_is_refused_with_the_remedy(
    tmp_path: Path, name: str, pack: Any, given: str | None
) -> None:
    tar = write_tars(tmp_path / "t", PICTURES, 100).replace("*", "0000")
    (tmp_path / name).write_bytes(pack.compress(Path(tar).read_bytes()))
    assert "unpack it to a .tar with gunzip" in refused(tmp_path / name, format=given)
    (tmp_path / "d.tar").write_bytes(pack.compress(Path(tar).read_bytes()))
    assert f"{tmp_path}/d.tar is a compressed tar" in refused(tmp_path / "d.tar")


# Patterns.


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("a", ["a"]),
        ("a{x}b", ["a{x}b"]),
        ("${HOME}/{0..2}", ["${HOME}/0", "${HOME}/1", "${HOME}/2"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{000..010..5}", ["000", "005", "010"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{train-{0..1},test}", ["train-0", "test", "train-1", "test"]),
    ],
)
def test_braces_are_expanded_as_in_shells(path: str, paths: list[str]) -> None:
    assert expanded(path) == paths


@pytest.mark.parametrize("path", ["{0..9999999999}", "{1..999999}" * 3, "{0..1..0}"])
def test_endless_braces_are_refused(path: str) -> None:
    with pytest.raises(UserError, match="stands for more than 100,000 files"):
        expanded(path)


def test_shards_of_a_range_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    write_tars(tmp_path, PICTURES, 5)
    pattern = f"{tmp_path}/digits-{{0000..0004}}.tar"
    assert opened(pattern).num_images == 24
    assert opened([f"{tmp_path}/digits-{{0000,0003}}.tar"]).num_images == 10
    (tmp_path / "digits-0003.tar").unlink()
    with pytest.raises(NotHere, match=r"digits-0003\.tar"):
        opened(pattern)


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    for name in ("a[1]*", "b{0..1}", "c?", "d #1 %20::x"):
        folder = write_folder(tmp_path / name / "f[0]", PICTURES)
        assert (opened(folder).num_images, opened(folder).num_classes) == (24, 10)
        assert opened(f"{folder}/*/*.png").num_images == 24
        tars = write_tars(tmp_path / name / "t[0]", PICTURES, 5)
        assert opened(tars).num_images == 24
        assert opened(tars.replace("digits-*", "digits-000[0-1]")).num_images == 10
    (tmp_path / "a1x").mkdir()
    with pytest.raises(NotHere, match="nothing matches"):
        opened(tmp_path / "a[2]*" / "f" / "*.png")


# Keys of buckets.

KEYS = ["a#1", "a::b", "a%20b", "a b", "a[1]", "a*", "a?x", "y//z", "/slash", "ü+&="]


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> Any:
    with s3_server() if request.param == "s3" else bucket_server() as server:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in bucket_environment(server, request.param).items():
                patch.setenv(name, value)
            fs = in_bucket(server, f"{request.param}://{BUCKET}/x").fs
            for key in KEYS:
                for name, content, _ in PICTURES[:6]:
                    fs.pipe_file(f"{BUCKET}/{key}/{name}#.png", content)
            yield f"{request.param}://{BUCKET}"


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_buckets_are_read_as_they_are(bucket: str, key: str) -> None:
    source = opened(f"{bucket}/{key}")
    assert source.num_images == 6
    assert [*dict.fromkeys(name.split("/")[0] for name, _, _ in PICTURES[:6])] == source.labels.names  # type: ignore[attr-defined]
    assert not any(block["fault"].any() for block in source.blocks())
    name = f"{bucket}/{key}/{PICTURES[0][0]}#.png"
    assert [block["fault"].any() for block in opened(name).blocks()] == [False]


def test_an_object_with_the_name_of_its_folder_is_left_out(bucket: str) -> None:
    if bucket.startswith("gs"):
        pytest.skip("gcsfs takes both for the object")
    fs = in_bucket(os.environ["AWS_ENDPOINT_URL"], bucket).fs
    for name in ("both", "both/c/a.png"):
        fs.pipe_file(f"{BUCKET}/{name}", PICTURES[0][1])
    assert opened(f"{bucket}/both/").num_images == 1


def test_a_doubled_slash_is_one_unless_the_keys_have_it(bucket: str) -> None:
    source = opened(f"{bucket}//a b")
    assert source.labels.names == opened(f"{bucket}/a b").labels.names  # type: ignore[attr-defined]
    with pytest.raises(NotHere):
        opened(f"{bucket}//nothing")


def test_tars_and_zips_and_parquet_files_of_such_keys(bucket: str, tmp_path: Path) -> None:
    fs = in_bucket(os.environ.get("STORAGE_EMULATOR_HOST") or os.environ["AWS_ENDPOINT_URL"], bucket).fs
    for path in (
        write_tars(tmp_path / "t", PICTURES, 100).replace("*", "0000"),
        write_zip(tmp_path / "z.zip", PICTURES),
        write_parquet(tmp_path / "p.parquet", PICTURES),
    ):
        key = f"k::[#]//d{Path(path).suffix}"
        fs.pipe_file(f"{BUCKET}/{key}", Path(path).read_bytes())
        for source in (f"{bucket}/{key}", f"{bucket}/{key.rpartition('/')[0]}"):
            assert opened(source, format={".tar": "webdataset"}.get(Path(path).suffix)).num_images == 24
        fs.rm_file(f"{BUCKET}/{key}")
