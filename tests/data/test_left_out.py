"""Pictures that a source leaves out are counted by the reason; no class vanishes without a note."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raysid.config import DataSettings
from raysid.data import open_source
from raysid.data.picture_source import PictureSource
from raysid.errors import UserError
from tests.support.bucket_server import BUCKET, bucket_server, in_bucket
from tests.support.picture_files import add, digit_pictures, encoded, write_folder

PICTURES = digit_pictures(24)


def opened(path: Any, **data: Any) -> PictureSource:
    source = open_source(DataSettings(source=str(path), **data))
    assert isinstance(source, PictureSource)
    return source


def names_of(source: PictureSource) -> list[str]:
    return [source.name_of(entry) for entry in range(source.num_images)]


@pytest.mark.parametrize(
    "kind", ["jpe", "jfif", "bmp", "dib", "gif", "tif", "TIFF", "ppm", "pgm", "pnm", "avif", "jp2", "j2k"]
)
def test_a_class_of_pictures_of_other_formats_is_read(tmp_path: Path, kind: str) -> None:
    folder = Path(write_folder(tmp_path / "f", [p for p in PICTURES if p[2] in (1, 2)]))
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (folder / "0").mkdir()
    form = {"jpe": "JPEG", "jfif": "JPEG"}.get(kind, Image.registered_extensions()[f".{kind.lower()}"])
    options = {"lossless": True} if kind == "avif" else {}
    (folder / "0" / f"a.{kind}").write_bytes(encoded(pixels, form, **options))
    source = opened(folder)
    assert source.labels.names == ["0", "1", "2"] and source.label_counts[0] == 1
    blocks = list(source.blocks())
    assert not any(block["fault"].any() for block in blocks)
    (image,) = [image for b in blocks for image, n in zip(b["image"], b["label"], strict=True) if n == 0]
    assert np.abs(image[0].astype(int) - pixels).max() <= 6  # JPEG
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(folder / "0" / f"a.{kind}", f"a.{kind}")
    assert opened(tmp_path / "z.zip").num_images == 1
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(folder / "0" / f"a.{kind}", f"a.{kind}")
    assert opened(tmp_path / "t.tar").num_images == 1


def test_a_class_whose_files_are_not_read_is_named(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path, [p for p in PICTURES if p[2] in (1, 2)]))
    (folder / "0").mkdir()
    for name in ("a.heic", "b.heic", "c"):
        (folder / "0" / name).write_bytes(b"not read")
    (folder / "3").mkdir()
    source = opened(folder)
    assert source.labels.names == ["1", "2"]
    assert source.notes == (
        "no pictures in the folders 0: they are no classes",
        "left out: .heic files (2), empty folders (1), files without a suffix (1)",
    )


def test_hidden_files_are_counted(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path / "f", PICTURES))
    plain = names_of(opened(folder))
    for name in ("._0.png", ".DS_Store", "1/._00001.png", "__MACOSX/1/0.png", "@eaDir/a/x.jpg", ".git/a.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(PICTURES[0][1])
    source = opened(folder)
    assert names_of(source) == plain
    assert source.notes == ("left out: hidden files (6)",)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in (
            "a/0.png",
            "./b.png",
            "__MACOSX/a/._0.png",
            "a/._0.png",
            ".x/0.png",
            "a/.DS_Store",
            "n.txt",
        ):
            archive.writestr(name, PICTURES[0][1])
    zipped = opened(tmp_path / "z.zip")
    assert zipped.num_images == 2
    assert zipped.notes[-1] == "left out: .txt files (1), hidden files (4)"


def test_linked_folders_are_followed_unless_they_lead_back(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", PICTURES[:5])
    folder = tmp_path / "f"
    (folder / "1" / "deep").mkdir(parents=True)
    (folder / "1" / "a.png").write_bytes(PICTURES[0][1])
    os.symlink(elsewhere, folder / "1" / "deep" / "linked")
    os.symlink(folder, folder / "1" / "deep" / "back")
    os.symlink(folder, folder / "self")
    (folder / "2").mkdir()
    os.symlink(folder / "1", folder / "2" / "one")  # 1 leads nowhere back but to the whole
    source = opened(folder)
    assert sum(name.startswith(f"{folder}/1/deep/linked/") for name in names_of(source)) == 5
    assert source.num_images == 12 and source.labels.names == ["1", "2"]
    assert source.notes == ("left out: linked folders that lead back (3)",)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write_folder(tmp_path, PICTURES[:5])
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        os.symlink(tmp_path / other, tmp_path / name / "next")
        (tmp_path / name / "x.png").write_bytes(PICTURES[0][1])
    assert opened(tmp_path).num_images == 5 + 4


def write_edm(root: Path, labels: Any, per_folder: int = 10) -> Path:
    """A folder as EDM's dataset tool writes it."""
    names = []
    for i, (_, content, number) in enumerate(PICTURES):
        path = root / f"{i // per_folder:05d}" / f"img{i:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        names.append((f"{path.parent.name}/{path.name}", number))
    if labels is not None:
        (root / "dataset.json").write_text(json.dumps({"labels": labels(names)}))
    return root


def test_the_classes_of_an_edm_folder_are_those_of_its_dataset_json(tmp_path: Path) -> None:
    source = opened(write_edm(tmp_path / "edm", lambda names: names))
    assert source.num_classes == 10 and source.notes == ()
    numbers = {name: number for name, number in zip(names_of(source), source.labels.numbers, strict=True)}
    assert [numbers[name] for name in sorted(numbers)] == [number for _, _, number in PICTURES]
    assert opened(tmp_path).num_classes == 10  # its parent
    assert opened(tmp_path / "edm" / "*").num_classes == 10
    with pytest.raises(UserError, match=r"edm/dataset.json names none of the pictures"):
        opened(write_edm(tmp_path / "edm", lambda names: [["x.png", 1]]))


@pytest.mark.parametrize(
    "labels", [lambda names: None, lambda names: [], None], ids=["null", "empty", "no file"]
)
def test_the_folders_of_an_edm_folder_are_never_classes(tmp_path: Path, labels: Any) -> None:
    source = opened(write_edm(tmp_path, labels))
    assert (source.num_images, source.num_classes) == (24, 0)
    if labels is None:
        assert source.notes[0].startswith("no labels: the folders are those of EDM's dataset tool")


def test_a_dataset_json_of_another_tool_changes_nothing(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path, PICTURES))
    (folder / "dataset.json").write_text('{"name": "digits"}')
    source = opened(folder)
    assert source.num_classes == 10 and source.notes == ("left out: .json files (1)",)
    (folder / "dataset.json").write_text('{"labels": ')
    with pytest.raises(UserError, match=r"dataset.json is damaged"):
        opened(folder)


def tar_of(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            add(tar, name, PICTURES[i][1] if not name.endswith(".cls") else b"3")
    return path


def test_members_of_tars_that_are_left_out_are_counted(tmp_path: Path) -> None:
    names = [
        "a.png",
        "a.cls",
        "b.heic",
        "b.cls",
        "._a.png",
        "__MACOSX/._c.png",
        ".cache/d.png",
        "a.png",
        "e.txt",
    ]
    path = tar_of(tmp_path / "d.tar", *names)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("f.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    source = opened(path)
    assert source.num_images == 1
    assert source.notes == (
        "left out: hidden files (3), links or sparse files (1), pictures with the name of an earlier one (1), "
        "samples without a picture, but with .heic (1), samples without a picture, but with .txt (1)",
    )


def test_of_several_pictures_of_a_sample_the_kind_is_asked_for(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "d.tar", "a.input.png", "a.target.png", "b.target.png", "b.input.png", "c.input.png"
    )
    with pytest.raises(UserError) as caught:
        opened(path)
    line = str(caught.value)
    assert f"a.input.png in {path} is one of 2 pictures of a sample (input.png, target.png)" in line
    assert "give data.image_column" in line and "\n" not in line
    for kind in ("input.png", ".INPUT.png"):
        source = opened(path, image_column=kind)
        assert [name.split()[0] for name in names_of(source)] == ["a.input.png", "b.input.png", "c.input.png"]
        assert source.notes == ("left out: pictures of another kind (2)",)
    with pytest.raises(
        UserError, match=r"holds no samples with a picture.*; left out: pictures of another kind \(5\)"
    ):
        opened(path, image_column="mask.png")


def test_samples_whose_names_share_what_is_before_a_dot_are_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "d.tar", *(f"scan.v2.{i:04d}.png" for i in range(20)))
    with pytest.raises(UserError, match=r"one of 20 pictures of a sample .* and 8 more\): .* a single dot"):
        opened(path)


def test_a_picture_of_a_common_format_is_the_one_of_its_sample(tmp_path: Path) -> None:
    source = opened(tar_of(tmp_path / "d.tar", "a.mask.tif", "a.png", "b.tif"))
    assert [name.split()[0] for name in names_of(source)] == ["a.png", "b.tif"]
    assert source.notes == ("left out: pictures of another kind (1)",)


def test_hidden_files_in_a_bucket_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
        for name in ("cat/a.png", "dog/b.png", "dog/._b.png", "dog/c.heic"):
            in_bucket(server, f"gs://{BUCKET}/x/{name}").write_bytes(PICTURES[0][1])
        source = opened(f"gs://{BUCKET}/x")
        assert source.num_images == 2
        assert source.notes == ("left out: .heic files (1), hidden files (1)",)


def test_what_the_first_release_left_out_is_known(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path / "f", PICTURES))
    assert opened(folder).new_since_first == ""
    (folder / "1" / "x.bmp").write_bytes(encoded(np.zeros((8, 8), np.uint8), "BMP"))
    assert opened(folder).new_since_first == "pictures .bmp"
    os.symlink(write_folder(tmp_path / "more", PICTURES[:2]), folder / "1" / "more")
    assert opened(folder).new_since_first == "pictures .bmp and linked folders"
    assert opened(folder / "1" / "x.bmp").new_since_first == ""  # it was refused
    assert opened(tar_of(tmp_path / "d.tar", "a.png", "b.tif")).new_since_first == "pictures .tif"
