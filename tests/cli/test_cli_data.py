"""`raysid data`: its reports on real images, its refusals, and the files that it writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from PIL import Image

from raysid.config import DataSettings
from raysid.data import ImageStream, open_source
from tests.support.command_line import raysid
from tests.support.picture_files import digit_pictures, encoded, write_folder, write_tars


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def data(*arguments: Any) -> Result:
    return raysid("data", *arguments)


def refused(*arguments: Any) -> str:
    """The last line of a command that must be refused."""
    result = data(*arguments)
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("raysid: error: ")
    return last


def test_check_describes_the_images_and_shows_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "digits", digit_pictures(100))
    result = data("check", folder, "--recipe", "digits-teacher")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("100%") == 1  # of its progress
    lines = result.stdout.splitlines()
    assert lines[:3] == [f"{folder}: 100 images", "sizes    8x8 (100)", "modes    L (100)"]
    assert lines[3].startswith("classes  10: 0 (11), 1 (12), 2 (10)") and lines[4:] == [
        "grid     data-check.png"
    ]
    with Image.open("data-check.png") as grid:
        assert grid.size == (8 * 33 + 1, 8 * 33 + 1)
    assert data("check", "patches", "--grid", "p.png").stdout.splitlines() == [
        "patches: 1,950 images",
        "classes  2: 0 (975), 1 (975)",
        "grid     p.png",
    ]


def test_check_and_convert_count_what_is_left_out_and_keep_names_of_classes(
    ray_cluster: None, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "digits", digit_pictures(20))
    (tmp_path / "digits" / "3" / "a.heic").write_bytes(b"")
    assert "\nnote     left out: .heic files (1)\n" in data("check", folder).stdout
    (tmp_path / "digits" / "2").rename(tmp_path / "digits" / "two")
    assert "note     left out: .heic files (1)\n" in data("convert", folder, "out").stdout
    before, after = data("check", folder).stdout, data("check", "out").stdout
    assert "two (2)" in after and before.splitlines()[3] == after.splitlines()[3]


def test_check_names_bad_pictures_and_refuses_too_many(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "digits", digit_pictures(50))
    (tmp_path / "digits" / "3" / "empty.png").write_bytes(b"")
    (tmp_path / "digits" / "4" / "cut.png").write_bytes(digit_pictures(1)[0][1][:-30])
    result = data("check", folder)
    assert result.exit_code == 2 and not Path("data-check.png").exists()
    assert f"bad      {folder}/3/empty.png is empty (0 bytes)\n" in result.stdout
    assert f"bad      {folder}/4/cut.png cannot be read as an image: " in result.stdout
    assert "2 of 52 pictures cannot be used" in result.stderr
    assert data("check", folder, "--data.max_bad_fraction", "0.05").exit_code == 0


def test_check_refuses_images_that_cannot_be_trained_on(tmp_path: Path) -> None:
    pictures = digit_pictures(60)
    assert "there is no file or folder" in refused("check", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused("check", tmp_path / "empty")
    flat = write_folder(tmp_path / "flat", [(n.replace("/", "-"), c, 0) for n, c, _ in pictures])
    assert data("check", flat).exit_code == 0
    assert "no labels" in refused("check", flat, "--recipe", "digits-teacher")
    large = write_folder(tmp_path / "large", [("a", encoded(np.zeros((16, 16), np.uint8)), 0)])
    assert refused("check", large, "--recipe", "digits-teacher").endswith(", or data.resolution 8")
    few = write_folder(tmp_path / "few", [picture for picture in pictures if picture[2] < 7])
    assert "knows 10 classes" in refused("check", few, "--recipe", "digits-teacher")
    (tmp_path / "few" / "0" / "large.png").write_bytes(encoded(np.zeros((16, 16), np.uint8)))
    result = data("check", few)
    assert result.exit_code == 2 and ", 16x16 (1)" in result.stdout
    assert "have 2 sizes: give data.resolution" in result.stderr
    assert data("check", few, "--data.resolution", "8").exit_code == 0
    (tmp_path / "flat" / "colour.png").write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    result = data("check", flat, "--data.max_bad_fraction", "1")
    assert "L (60), RGB (1)" in result.stdout
    assert "data.filter is 'sharp'; allowed: lanczos or box" in refused(
        "check", flat, "--data.filter", "sharp"
    )


def test_convert_resizes_and_omits_bad_images(ray_cluster: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [
        (f"{i % 2}/{i:03d}", encoded(rng.integers(0, 256, (20 + i % 5, 30, 3), dtype=np.uint8)), i % 2)
        for i in range(30)
    ]
    folder = write_folder(tmp_path / "photographs", pictures)
    (tmp_path / "photographs" / "0" / "cut.png").write_bytes(pictures[0][1][:500])
    result = data("convert", folder, "small", "--data.resolution", "16")
    assert result.exit_code == 0, result.stderr
    assert f"left out {folder}/0/cut.png cannot be read as an image: " in result.stdout
    assert result.stdout.endswith(f"30 images in 1 file: {tmp_path / 'small'}\n")
    ours = open_source("small")
    assert (ours.image_shape, ours.num_images, ours.label_counts.tolist()) == ((3, 16, 16), 30, [15, 15])
    (tmp_path / "photographs" / "0" / "cut.png").unlink()
    theirs = open_source(DataSettings(source=folder, resolution=16))
    streams = [ImageStream(source.blocks, source.shard_sizes, 0, 99) for source in (ours, theirs)]
    for one, other in zip(*(stream.read(0, 90) for stream in streams), strict=True):
        np.testing.assert_array_equal(one, other)
    assert data("convert", folder, "large").exit_code == 2  # several sizes
    assert "is not of this conversion" in refused("convert", "small", "small")
    assert "/proc/raysid cannot be written: " in refused("convert", "small", "/proc/raysid")


def test_names_that_are_not_utf8_are_shown_escaped(ray_cluster: None, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "caf\udce9", digit_pictures(20))
    os.rename(f"{folder}/3", os.fsencode(f"{folder}/3\udce9"))
    Path(folder, "4", "\udcff.png").write_bytes(b"")
    result = data("check", folder, "--data.max_bad_fraction", "0.1")
    assert result.exit_code == 0, result.stderr
    assert f"bad      {tmp_path}/caf\\xe9/4/\\xff.png is empty (0 bytes)\n" in result.stdout
    assert "3\\xe9" in result.stdout
    result = data("convert", folder, "out", "--data.max_bad_fraction", "0.1")
    assert "20 images in 1 file" in result.stdout
    assert open_source("out").num_images == 20


def test_convert_does_not_resume_with_other_labels(ray_cluster: None, tmp_path: Path) -> None:
    contents = [content for _, content, _ in digit_pictures(20)]
    pq.write_table(pa.table({"image": contents, "fine": range(20), "coarse": [0] * 20}), "d.parquet")
    assert data("convert", "d.parquet", "out", "--data.label_column", "fine").exit_code == 0
    assert "is not of this conversion" in refused(
        "convert", "d.parquet", "out", "--data.label_column", "coarse"
    )


def test_convert_resumes_with_missing_files(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysid.data.convert.FILE_BYTES", 1)
    tars = write_tars(tmp_path / "tars", digit_pictures(1797), 500)
    result = data("convert", tars, "out")
    assert result.exit_code == 0 and "1,797 images in 2 files" in result.stdout
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert list(sorted(made)) == [f"part-0000{i}-of-00002.parquet" for i in range(2)]
    (tmp_path / "out" / "part-00001-of-00002.parquet").unlink()
    assert "1 of 2 files are there; run the same `raysid data convert` to write the others" in refused(
        "check", "out"
    )
    assert "1,797 images in 2 files" in data("convert", tars, "out").stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == made
    (tmp_path / "out" / "part-00001-of-00002.parquet").write_bytes(b"PAR1")
    line = refused("convert", tars, "out")
    assert "part-00001-of-00002.parquet cannot be read as Parquet: " in line and ": remove it, then" in line
    (tmp_path / "out" / "part-00001-of-00002.parquet").write_bytes(made["part-00001-of-00002.parquet"])
    names = pq.read_table("out").column_names
    assert names == ["image", "label", "raysid_index"]


def test_optional_models_of_a_package_are_not_converted() -> None:
    assert "there is nothing to convert" in refused("convert", "digits", "out")
