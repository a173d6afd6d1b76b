"""Captions of images in files: each image with its own, in every format; those that cannot be used are bad images."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysid.config import DataSettings
from raysid.data import ImageSource, ImageStream, open_source
from raysid.data.captions import digit_captions
from raysid.errors import RunFailed, UserError
from tests.support.command_line import raysid
from tests.support.picture_files import add, digit_pictures, write_folder, write_zip

COUNT = 40
PICTURES = digit_pictures(COUNT)


def caption_of(name: str) -> str:
    """A caption that no other picture has."""
    return f"{digit_captions()[int(name[2:])][0]}, number {name[2:]}"


CAPTIONS: dict[str, Any] = {name: caption_of(name) for name, _, _ in PICTURES}


def write_parquet(path: Path, captions: dict[str, Any], column: str = "caption") -> str:
    values = [captions.get(name) for name, _, _ in PICTURES]
    table = pa.table({"image": [content for _, content, _ in PICTURES], column: values})
    pq.write_table(table, path, row_group_size=15)
    return str(path)


def write_tar(path: Path, captions: dict[str, Any], kind: str = "txt") -> str:
    with tarfile.open(path, "w") as tar:
        for name, content, _ in PICTURES:
            key = name.replace("/", "_")
            add(tar, f"{key}.png", content)
            if (text := captions.get(name)) is not None:
                add(tar, f"{key}.{kind}", text if isinstance(text, bytes) else text.encode())
    return str(path)


def write_captioned_folder(root: Path, captions: dict[str, Any], lines: bool = False) -> str:
    write_folder(root, PICTURES)
    rows = [{"file_name": f"{name}.png", "caption": text} for name, text in captions.items()]
    if lines:
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        with (root / "metadata.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["file_name", "caption"])
            table.writeheader()
            table.writerows(rows)
    return str(root)


def written(form: str, folder: Path, captions: dict[str, Any]) -> str:
    match form:
        case "parquet":
            return write_parquet(folder / "digits.parquet", captions)
        case "tar":
            return write_tar(folder / "digits.tar", captions)
        case _:
            return write_captioned_folder(folder / "digits", captions, lines=form == "jsonl")


def opened(source: str, **data: Any) -> ImageSource:
    return open_source(DataSettings(source=source, **data), captioned=True)


def found(source: ImageSource) -> dict[bytes, list[str]]:
    """The captions of each image, by its pixels, read by position in two epochs."""
    stream = ImageStream(source.blocks, source.shard_sizes, seed=0, window=100, max_bad_fraction=1.0)
    own: dict[bytes, list[str]] = {}
    for start in (0, 13, COUNT):
        images, _, captions = stream.read_captioned(start, COUNT)
        for image, texts in zip(images, captions, strict=True):
            assert own.setdefault(image.tobytes(), texts) == texts
    return own


FORMS = ["parquet", "tar", "csv", "jsonl"]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The pixels of each picture, by its name."""
    source = open_source(write_folder(tmp_path_factory.mktemp("plain"), PICTURES))
    index = {
        entry: image
        for block in source.blocks()
        for entry, image in zip(block["index"], block["image"], strict=True)
    }
    return {name: index[number].tobytes() for number, (name, _, _) in enumerate(PICTURES)}


@pytest.mark.parametrize("form", FORMS)
def test_each_image_has_its_own_caption(form: str, tmp_path: Path, pixels: dict[str, bytes]) -> None:
    own = found(opened(written(form, tmp_path, CAPTIONS)))
    assert own == {pixels[name]: [caption] for name, caption in CAPTIONS.items()}


def test_an_image_may_have_several_captions(tmp_path: Path, pixels: dict[str, bytes]) -> None:
    """Empty ones among them are left out."""
    several = {name: [caption, "", f"again {caption}"] for name, caption in CAPTIONS.items()}
    own = found(opened(write_parquet(tmp_path / "digits.parquet", several)))
    assert own == {pixels[name]: [caption, f"again {caption}"] for name, caption in CAPTIONS.items()}


@pytest.mark.parametrize("form", FORMS)
def test_captions_that_cannot_be_used_are_bad_images_and_named(form: str, tmp_path: Path) -> None:
    """As pictures are; above the limit the run stops."""
    empty, none = PICTURES[3][0], PICTURES[5][0]
    captions = {name: caption for name, caption in CAPTIONS.items() if name != none} | {empty: " \n"}
    source = opened(written(form, tmp_path, captions))
    stream = ImageStream(source.blocks, source.shard_sizes, seed=0, window=100, max_bad_fraction=0.05)
    _, _, texts = stream.read_captioned(0, COUNT)
    assert all(text.strip() for own in texts for text in own)
    faults = sorted(fault.rpartition(" has ")[2] for fault in stream.faults.values())
    assert faults == ["an empty caption", "no caption"]
    strict = ImageStream(source.blocks, source.shard_sizes, seed=0, window=100, max_bad_fraction=0.01)
    with pytest.raises(RunFailed, match="2 of 40 real images cannot be used.* has (no|an empty) caption"):
        strict.read(0, 1)


def test_captions_that_are_no_texts_are_named(tmp_path: Path) -> None:
    odd: dict[str, Any] = CAPTIONS | {PICTURES[1][0]: 5, PICTURES[2][0]: "a \ud800 b"}
    tar = opened(write_tar(tmp_path / "a.tar", CAPTIONS | {PICTURES[0][0]: b"\xff\xfe caf\xe9"}))
    faults = [fault for block in tar.blocks() for fault in block["fault"] if fault]
    assert [fault.rpartition(" has ")[2] for fault in faults] == ["a caption that is not UTF-8"]
    lines = write_captioned_folder(tmp_path / "folder", odd, lines=True)
    faults = sorted(fault for block in opened(lines).blocks() for fault in block["fault"] if fault)
    assert [fault.rpartition(" has ")[2] for fault in faults] == [
        "a caption of type int, not a text",
        "a caption that is not UTF-8",
    ]


def test_images_without_captions_are_as_they_were(tmp_path: Path) -> None:
    """Captions beside them change nothing for a network without text."""
    source = open_source(write_tar(tmp_path / "digits.tar", {PICTURES[0][0]: ""}))
    blocks = list(source.blocks())
    assert not any(block["fault"].any() for block in blocks) and "caption" not in blocks[0]


def test_sources_without_captions_are_refused_in_one_line(tmp_path: Path) -> None:
    folder, empty = write_folder(tmp_path / "plain", PICTURES), write_tar(tmp_path / "none.tar", {})
    parquet = write_parquet(tmp_path / "a.parquet", CAPTIONS, column="words")
    numbers = write_parquet(tmp_path / "b.parquet", dict.fromkeys(CAPTIONS, 1))
    for source, data, message in (
        (folder, {}, "has no captions: there is no metadata.csv or metadata.jsonl"),
        (empty, {}, "has no captions .txt beside its pictures: give data.caption_column"),
        (
            parquet,
            {},
            r"has none of the usual columns of captions \(text, caption, prompt\): give data.caption_column",
        ),
        (parquet, {"caption_column": "word"}, "has no column of captions word; columns: image, words"),
        (numbers, {}, "data.caption_column caption of .*b.parquet holds int64: captions are texts"),
        (write_zip(tmp_path / "a.zip", PICTURES), {}, "is a zip, which has no captions"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            opened(source, **data)
        assert "\n" not in str(refused.value)
    assert opened(parquet, caption_column="words").captioned
    assert opened(write_tar(tmp_path / "b.tar", CAPTIONS, "text"), caption_column="text").captioned


def test_the_check_shows_captions_and_names_the_bad_ones(tmp_path: Path) -> None:
    captions = CAPTIONS | {PICTURES[3][0]: ""}
    source = written("csv", tmp_path, captions)
    grid = tmp_path / "grid.png"
    arguments = ("data", "check", source, "--data.caption_column", "caption", "--grid", grid)
    shown = raysid(*arguments, "--data.max_bad_fraction", 0.1)
    assert shown.exit_code == 0
    lengths = [len(caption.split()) for caption in captions.values() if caption]
    expected = f"captions 39 in 39 images, {min(lengths)} to {max(lengths)} words"
    assert expected in shown.stdout
    examples = [
        line.removeprefix("caption: ") for line in shown.stdout.splitlines() if line.startswith("caption:")
    ]
    assert len(examples) == 3 and set(examples) < set(CAPTIONS.values())
    assert f"bad      {source}/{PICTURES[3][0]}.png has an empty caption" in shown.stdout
    assert "cannot be used" in raysid(*arguments).output


def test_a_conversion_keeps_captions(ray_cluster: None, tmp_path: Path, pixels: dict[str, bytes]) -> None:
    source = written("tar", tmp_path, CAPTIONS)
    done = raysid("data", "convert", source, tmp_path / "out", "--data.caption_column", "txt")
    assert done.exit_code == 0, done.output
    own = found(opened(str(tmp_path / "out")))
    assert own == {pixels[name]: [caption] for name, caption in CAPTIONS.items()}
