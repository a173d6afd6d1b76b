"""Data sets in the forms of Hugging Face's datasets: types of columns, paths, metadata.csv, splits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysid.config import DataSettings
from raysid.data import open_source
from raysid.data.picture_source import PictureSource
from raysid.errors import UserError
from tests.support.bucket_server import BUCKET, bucket_environment, bucket_server, in_bucket
from tests.support.picture_files import digit_pictures, write_folder, write_parquet, write_tars

PICTURES = digit_pictures(24)
CONTENTS = [content for _, content, _ in PICTURES]
CLASSES = [number for _, _, number in PICTURES]


def opened(path: Any, **data: Any) -> PictureSource:
    source = open_source(DataSettings(source=str(path), **data))
    assert isinstance(source, PictureSource)
    return source


def refused(path: Any, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_reads_all(source: PictureSource, labels: list[int] = CLASSES) -> None:
    blocks = list(source.blocks())
    assert not any(block["fault"].any() for block in blocks), [b["fault"] for b in blocks]
    by_index = {int(i): int(n) for b in blocks for i, n in zip(b["index"], b["label"], strict=True)}
    assert [by_index[index] for index in sorted(by_index)] == labels


def typed(kind: pa.DataType, values: Any) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


@pytest.mark.parametrize(
    "kind",
    [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())],
    ids=["large", "view", "dictionary"],
)
@pytest.mark.parametrize("in_struct", [False, True])
def test_pictures_of_all_types_of_bytes_are_read(tmp_path: Path, kind: pa.DataType, in_struct: bool) -> None:
    column = typed(kind, CONTENTS)
    if in_struct:
        column = pa.StructArray.from_arrays([column, pa.array([None] * 24, pa.string())], ["bytes", "path"])
    pq.write_table(pa.table({"image": column, "label": CLASSES}), tmp_path / "d.parquet")
    assert pq.read_schema(tmp_path / "d.parquet").field("image").type != pa.binary()
    assert_reads_all(opened(tmp_path / "d.parquet"))


WORDS = ["c" + str(number) for number in CLASSES]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.bool_(), [number > 4 for number in CLASSES]),
        (pa.string_view(), WORDS),
        (pa.large_string(), WORDS),
        (pa.dictionary(pa.int8(), pa.string()), WORDS),
        (pa.dictionary(pa.int8(), pa.int64()), CLASSES),
        (pa.uint8(), CLASSES),
        (pa.float32(), [float(number) for number in CLASSES]),
    ],
    ids=str,
)
def test_labels_of_all_types_are_read(tmp_path: Path, kind: pa.DataType, values: list[Any]) -> None:
    pq.write_table(pa.table({"image": CONTENTS, "label": typed(kind, values)}), tmp_path / "d.parquet")
    expected = [int(value) for value in values] if kind == pa.bool_() else CLASSES
    assert_reads_all(opened(tmp_path / "d.parquet"), expected)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_pictures_that_are_files_beside_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    write_folder(tmp_path / "data" / "images", PICTURES)
    names = [f"images/{name}.png" for name, _, _ in PICTURES]
    path = tmp_path / "data" / "d.parquet"
    pq.write_table(pa.table({"file": typed(kind, names), "label": CLASSES}), path)
    assert_reads_all(opened(path, image_column="file"))
    assert "give the column of their paths as data.image_column (file)" in refused(path)


def test_structs_without_bytes_name_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", PICTURES)
    structs = [
        {"bytes": content, "path": "x.png"}
        if i % 2
        else {"bytes": None, "path": f"{tmp_path if i % 4 else '.'}/images/{name}.png"}
        for i, (name, content, _) in enumerate(PICTURES)
    ]
    pq.write_table(pa.table({"image": structs, "label": CLASSES}), tmp_path / "d.parquet")
    assert_reads_all(opened(tmp_path / "d.parquet"))


def test_a_path_that_cannot_be_read_is_a_bad_picture(tmp_path: Path) -> None:
    (tmp_path / "ok.png").write_bytes(CONTENTS[0])
    names = ["ok.png", "gone.png", "http://host/a.png", None, "/dev/zero"]
    pq.write_table(pa.table({"path": names}), tmp_path / "d.parquet")
    faults = [
        f for block in opened(tmp_path / "d.parquet", image_column="path").blocks() for f in block["fault"]
    ]
    assert [bool(fault) for fault in faults] == [False, True, True, True, True]
    for fault, words in zip(
        faults[1:], ["No such file", "an address", "is null", "is not a file"], strict=True
    ):
        assert words in fault


def test_pictures_beside_a_parquet_file_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"images/{i}.png" for i in range(24)]
    pq.write_table(pa.table({"file": names, "label": CLASSES}), tmp_path / "d.parquet")
    outside = ["/x.png", "../x.png", "gone.png"]
    pq.write_table(pa.table({"file": ["images/0.png", *outside]}), tmp_path / "bad.parquet")
    with bucket_server() as server:
        for name, value in bucket_environment(server).items():
            monkeypatch.setenv(name, value)
        url = f"gs://{BUCKET}/data"
        fs = in_bucket(server, url).fs
        for name, content in zip(names, CONTENTS, strict=True):
            fs.pipe_file(f"{BUCKET}/data/{name}", content)
        for name in ("d.parquet", "bad.parquet"):
            fs.pipe_file(f"{BUCKET}/data/{name}", (tmp_path / name).read_bytes())
        assert_reads_all(opened(f"{url}/d.parquet", image_column="file"))
        bad = opened(f"{url}/bad.parquet", image_column="file")
        assert [bool(fault) for block in bad.blocks() for fault in block["fault"]] == [
            False,
            True,
            True,
            True,
        ]


def test_a_column_without_pictures_is_described(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [[1, 2]], "label": [1]}), tmp_path / "d.parquet")
    line = refused(tmp_path / "d.parquet")
    assert "no column of bytes, but image (list<element: int64>), label (int64)" in line
    assert "store the pictures as bytes of PNG or JPEG files" in line


def test_a_folder_of_save_to_disk_is_refused_with_the_remedy(tmp_path: Path) -> None:
    table = pa.table({"image": CONTENTS})
    with pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "state.json").write_text("{}")
    line = refused(tmp_path)
    assert f"datasets.load_from_disk({str(tmp_path)!r}).to_parquet('images.parquet')" in line


# metadata.csv.


def write_metadata(folder: Path, rows: list[dict[str, Any]], kind: str = "csv") -> None:
    with open(folder / f"metadata.{kind}", "w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("label", [lambda n: n, lambda n: f"c{n}"], ids=["number", "name"])
def test_labels_of_metadata_are_read(tmp_path: Path, kind: str, label: Any) -> None:
    folder = Path(write_folder(tmp_path, [(f"{i:04d}", c, 0) for i, (_, c, _) in enumerate(PICTURES)]))
    rows = [{"file_name": f"{i:04d}.png", "label": label(n), "fine": n} for i, n in enumerate(CLASSES)]
    write_metadata(folder, rows, kind)
    assert_reads_all(opened(folder))
    assert opened(folder).notes == (f"labels are the column label of {folder}/metadata.{kind}",)
    assert_reads_all(opened(folder, label_column="fine"))
    line = refused(folder, label_column="coarse")
    assert "no metadata.csv with a column coarse; columns: file_name, label, fine" in line


def test_metadata_of_each_split_holds_its_labels(tmp_path: Path) -> None:
    for split, part in (("train", PICTURES[:12]), ("test", PICTURES[12:])):
        folder = Path(write_folder(tmp_path / split, [(f"x/{i}", c, 0) for i, (_, c, _) in enumerate(part)]))
        write_metadata(folder, [{"file_name": f"x/{i}.png", "label": n} for i, (_, _, n) in enumerate(part)])
    assert opened(tmp_path).label_counts.tolist() == [CLASSES.count(number) for number in range(10)]


def test_metadata_without_labels_leaves_the_classes_as_they_are(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path, PICTURES))
    write_metadata(folder, [{"file_name": f"{name}.png", "text": "a digit"} for name, _, _ in PICTURES])
    assert_reads_all(opened(folder))
    flat = Path(write_folder(tmp_path / "flat", [("a", CONTENTS[0], 0)]))
    write_metadata(flat, [{"file_name": "a.png", "text": "a digit"}])
    (note, _) = opened(flat).notes
    assert note == "no labels: there is no metadata.csv with a column label; columns: file_name, text"
    assert "no metadata.csv with a column fine; columns: none" in refused(
        write_folder(tmp_path / "plain", [("a", CONTENTS[0], 0)]), label_column="fine"
    )


def test_damaged_metadata_is_refused(tmp_path: Path) -> None:
    folder = Path(write_folder(tmp_path, PICTURES))
    for content in ("a,b\n1,2\n", "file_name,label\nnothing.png,1\n"):
        (folder / "metadata.csv").write_text(content)
        assert f"{folder}/metadata.csv" in refused(folder)


# Splits.


def test_splits_of_folders_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "Test"):
        write_folder(tmp_path / "d" / split, [p for p in PICTURES if p[2] < 3 or split == "train"])
    source = opened(tmp_path / "d")
    assert source.labels.names == [str(number) for number in range(10)]
    assert source.notes == (
        "the splits test, train are read together: to read one, give its files as data.source",
    )
    assert opened(tmp_path / "d" / "train").notes == ()
    write_folder(tmp_path / "one" / "train", PICTURES)
    assert_reads_all(opened(tmp_path / "one"))


def test_splits_of_other_files_are_named(tmp_path: Path) -> None:
    names = ("train-00000-of-00001", "test-00000-of-00001", "validation/0000", "split=dev/0", "trainer-1")
    for name in names:
        write_parquet(tmp_path / "data" / f"{name}.parquet", PICTURES)
    source = opened(tmp_path)
    assert source.num_images == 24 * 5
    assert source.notes[0].startswith("the splits dev, test, train, validation are read together: ")
    assert opened(tmp_path / "data" / "train-*.parquet").notes == ()
    tars = Path(write_tars(tmp_path / "tars", PICTURES, 12)).parent
    (tars / "digits-0000.tar").rename(tars / "train_0.tar")
    (tars / "digits-0001.tar").rename(tars / "val_0.tar")
    assert opened(tars).notes[0].startswith("the splits train, val are read together")
