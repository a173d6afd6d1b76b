"""Labels of pictures: those that are given are matched, or what does not match is named."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysid.config import DataSettings
from raysid.data import ImageSource, open_source
from raysid.data.labels import match_labels
from raysid.errors import UserError
from tests.support.picture_files import add, digit_pictures, encoded

PICTURES = digit_pictures(24)


def refused(source: Any, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_source(DataSettings(source=str(source), **data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_of(source: Any, **data: Any) -> list[int]:
    """The labels of all images, in the order of `PICTURES`."""
    opened = open_source(DataSettings(source=str(source), **data))
    found = {}
    for block in opened.blocks():
        found |= dict(zip(block["index"].tolist(), block["label"].tolist(), strict=True))
    return [found[index] for index in range(len(found))]


def notes_of(source: Any, **data: Any) -> str:
    opened: ImageSource = open_source(DataSettings(source=str(source), **data))
    assert opened.num_classes == 0
    return "; ".join(opened.notes)


def write_jsons(path: Path, fields: Any) -> Path:
    """A tar whose samples have a .json each: `fields` of the class."""
    with tarfile.open(path, "w") as tar:
        for i, (_, content, number) in enumerate(PICTURES):
            add(tar, f"{i:04d}.png", content)
            add(tar, f"{i:04d}.json", json.dumps(fields(number)).encode())
    return path


CLASSES = [number for _, _, number in PICTURES]


@pytest.mark.parametrize(
    "fields",
    [
        lambda n: {"label": n},
        lambda n: {"label": float(n)},
        lambda n: {"label": str(n)},
        lambda n: {"label": str(n) if n % 2 else n},
        lambda n: {"meta": {"label": n}, "url": "http://host/label"},
        lambda n: {"a": {"b": {"label": n}}},
    ],
    ids=["number", "float", "text", "mixed", "nested", "deeper"],
)
def test_labels_in_json_members_are_numbers_in_any_form(tmp_path: Path, fields: Any) -> None:
    assert labels_of(write_jsons(tmp_path / "d.tar", fields)) == CLASSES


def test_texts_of_digits_are_numbers_only_if_all_are(tmp_path: Path) -> None:
    source = write_jsons(tmp_path / "d.tar", lambda n: {"label": str(n + 5)})
    assert labels_of(source) == [number + 5 for number in CLASSES]
    words = write_jsons(tmp_path / "w.tar", lambda n: {"label": "odd" if n % 2 else str(10)})
    assert labels_of(words) == [number % 2 for number in CLASSES]


def test_a_nested_field_can_be_named(tmp_path: Path) -> None:
    both = write_jsons(tmp_path / "d.tar", lambda n: {"a": {"label": n}, "b": {"label": 0}})
    assert labels_of(both, label_column="a.label") == CLASSES
    line = refused(both)
    assert f"0000.json in {both} has several fields label (a.label, b.label): give data.label_column" in line
    mapping = write_jsons(tmp_path / "m.tar", lambda n: {"label": {"id": n, "name": "x"}})
    assert "a mapping in the field label: give data.label_column, one of label.id, label.name" in refused(
        mapping
    )
    assert labels_of(mapping, label_column="label.id") == CLASSES
    halves = write_jsons(tmp_path / "h.tar", lambda n: {"a" if n % 2 else "b": {"label": n}})
    assert "has several fields label (a.label, b.label): give data.label_column" in refused(halves)


def test_a_label_of_another_type_is_refused(tmp_path: Path) -> None:
    one_hot = write_jsons(tmp_path / "d.tar", lambda n: {"label": [0, n]})
    assert "has the label [0, 0]: classes are whole numbers from 0" in refused(one_hot)


def test_a_field_that_no_sample_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    source = write_jsons(tmp_path / "d.tar", lambda n: {"fine": n, "meta": {"url": "x"}})
    assert "has no .json with the field klass; fields: fine, meta, meta.url" in refused(
        source, label_column="klass"
    )
    note = "no labels: there is no .json with the field label; fields: fine, meta, meta.url"
    assert notes_of(source).startswith(note)
    assert labels_of(source, label_column="fine") == CLASSES
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        add(tar, "a.png", PICTURES[0][1])
        add(tar, "a.cls", b"3")
    assert "has no .json with the field klass; fields: none" in refused(
        tmp_path / "c.tar", label_column="klass"
    )


def test_a_column_that_no_file_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "split=a" / "d.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"img": [c for _, c, _ in PICTURES], "fine_label": CLASSES}), path)
    line = refused(tmp_path, label_column="fine_lable")
    assert "has no column fine_lable; columns: img, fine_label, split: correct data.label_column" in line
    assert notes_of(path).startswith("no labels: there is no column label; columns: img, fine_label, split")
    assert labels_of(path, label_column="fine_label") == CLASSES
    pq.write_table(pa.table({"img": [c for _, c, _ in PICTURES], "label": pa.nulls(24)}), path)
    assert notes_of(path) == "no labels: the column label is empty"


def write_zip(path: Path, labels: Any, folder: str = "", beside: str = "", slash: str = "/") -> Path:
    """A zip as EDM's dataset tool writes it, in a folder; `labels` is called with each name and class."""
    names = [f"{i // 10:05d}/img{i:08d}.png" for i in range(len(PICTURES))]
    with zipfile.ZipFile(path, "w") as archive:
        for name, (_, content, _) in zip(names, PICTURES, strict=True):
            archive.writestr(f"{folder}{name}".replace("/", slash), content)
        listed = labels([(name, number) for name, number in zip(names, CLASSES, strict=True)])
        archive.writestr(f"{beside}dataset.json", json.dumps({"labels": listed}))
    return path


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (lambda listed: listed, {}),
        (lambda listed: [[name, float(number)] for name, number in listed], {}),
        (lambda listed: dict(listed), {}),
        (lambda listed: [[name.replace("/", "\\"), number] for name, number in listed], {}),
        (lambda listed: listed, {"slash": "\\"}),
        (lambda listed: [[f"./{name}", number] for name, number in listed], {}),
        (lambda listed: [[f"/raw/data/{name}", number] for name, number in listed], {}),
        (lambda listed: listed, {"folder": "digits/", "beside": "digits/"}),
        (lambda listed: listed, {"folder": "a/digits/"}),
        (lambda listed: [[f"raw/{name}", number] for name, number in listed], {"folder": "digits/"}),
    ],
    ids=[
        "as it is",
        "floats",
        "mapping",
        "backslashes",
        "backslashes in the zip",
        "dot",
        "root in the names",
        "root with json",
        "root in the zip",
        "two roots",
    ],
)
def test_names_of_dataset_json_are_matched(tmp_path: Path, labels: Any, options: Any) -> None:
    assert labels_of(write_zip(tmp_path / "d.zip", labels, **options)) == CLASSES


def test_a_dataset_json_that_names_none_of_the_pictures_is_refused(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "d.zip", lambda listed: [[f"x-{i}.png", 1] for i in range(3)])
    line = refused(source)
    assert f"dataset.json in {source} names none of the pictures: it has 'x-0.png'" in line
    assert "the first picture is '00000/img00000000.png'" in line
    several = write_zip(tmp_path / "s.zip", lambda listed: listed, beside="a/")
    with zipfile.ZipFile(several, "a") as archive:
        archive.writestr("b/dataset.json", "{}")
    assert "holds several dataset.json (a/dataset.json, b/dataset.json)" in refused(several)


def test_a_zip_without_dataset_json_has_a_note(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cats/a.png", encoded(np.zeros((4, 4), np.uint8)))
    (tmp_path / "d.zip").write_bytes(file.getvalue())
    assert notes_of(tmp_path / "d.zip").startswith("no labels: there is no dataset.json in ")


def test_names_match_as_they_are_before_any_other_way() -> None:
    listed = {"a/x.png": 1, "x.png": 2, "b\\y.png": 3}
    assert match_labels(listed, ["x.png", "b/y.png", "c/x.png"], "d") == [2, 3, None]
    assert match_labels({"x.png": None}, ["y.png"], "d") == [None]
    assert match_labels({}, ["y.png"], "d") == [None]
