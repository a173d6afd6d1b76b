"""Damaged and hostile files of images: a bad picture is skipped, a bad file is named, and the work stays small."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysid.data import open_source
from raysid.data.folder import FolderSource
from raysid.data.pictures import MAX_PIXELS, BadPicture, Fit, decoded
from raysid.data.source import NAMED
from raysid.data.webdataset import WebDatasetSource
from raysid.errors import StorageError, UserError
from tests.support.picture_files import (
    add,
    digit_pictures,
    encoded,
    write_folder,
    write_parquet,
    write_tars,
    write_zip,
)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


# Pillow raises AssertionError for it.
WITHOUT_PALETTE = png(
    (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0)),
    (b"IDAT", zlib.compress(bytes(72))),
    (b"IEND", b""),
)


def faults(source: Any) -> list[str]:
    """The faults of all images; there must be as many images as the source lists."""
    blocks = list(source.blocks())
    assert sum(len(block["label"]) for block in blocks) == source.num_images
    return [fault for block in blocks for fault in block["fault"] if fault]


def refused(path: Any) -> str:
    with pytest.raises(UserError) as caught:
        faults(open_source(str(path)))
    line = str(caught.value)
    assert str(path) in line and line.isprintable()
    return line


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "parquet"])
def test_a_picture_that_raises_anything_is_a_bad_picture(tmp_path: Path, form: str) -> None:
    pictures = [*digit_pictures(20), ("9/bad", WITHOUT_PALETTE, 9)]
    write = {
        "folder": lambda: write_folder(tmp_path / "f", pictures),
        "zip": lambda: write_zip(tmp_path / "z.zip", pictures),
        "tar": lambda: write_tars(tmp_path / "t", pictures, 50),
        "parquet": lambda: write_parquet(tmp_path / "p.parquet", pictures),
    }
    source = open_source(write[form]())
    (fault,) = faults(source)
    assert source.num_images == 21
    assert fault.endswith("cannot be read as an image: AssertionError")
    assert ("bad" in fault) or "row 20" in fault


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), ZeroDivisionError("0")])
def test_a_decoder_that_raises_anything_finds_a_bad_picture(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    content = encoded(np.zeros((8, 8), np.uint8))

    def failing(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(BadPicture, match=f"cannot be read as an image: {error or 'MemoryError'}"):
        decoded(content, Fit())


def test_a_reader_that_raises_anything_loses_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(write_tars(tmp_path / "t", digit_pictures(20), 50))
    read = WebDatasetSource._read

    def failing(self: Any, file: Any, entry: int) -> Any:
        if entry == 7:
            raise OverflowError("a size\nof many bits")
        return read(self, file, entry)

    monkeypatch.setattr(WebDatasetSource, "_read", failing)
    (fault,) = faults(source)
    assert source.name_of(7) in fault and fault.endswith("cannot be read: a size of many bits")


def test_an_outage_while_reading_is_no_bad_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "f", digit_pictures(20))
    source = open_source(folder)

    def failing(self: Any, entries: Any) -> Any:
        yield b""
        raise StorageError(folder, "read", "the disk is gone")

    monkeypatch.setattr(FolderSource, "fetched", failing)
    with pytest.raises(StorageError, match="the disk is gone"):
        faults(source)


def test_a_jpeg_of_endless_scans_is_not_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last_scan = content[content.rindex(b"\xff\xc4", 0, content.rindex(b"\xff\xda")) : -2]
    assert decoded(content, Fit(8)).shape == (3, 8, 8)
    bomb = content[:-2] + last_scan * 100 + content[-2:]
    with pytest.raises(BadPicture, match="is a JPEG of 110 scans, each of 4000x4000"):
        decoded(bomb, Fit(8))
    assert decoded(content + last_scan * 100, Fit(8)).shape == (3, 8, 8)  # after the end of the picture


@pytest.mark.parametrize(("kind", "limit"), [("WEBP", "33,554,432"), ("JPEG2000", "16,777,216")])
def test_decoders_that_hold_several_copies_have_lower_limits(kind: str, limit: str) -> None:
    file = io.BytesIO()
    height = MAX_PIXELS[kind] // 8192 + 1
    Image.new("L", (8192, height)).save(file, kind, **({"method": 0, "quality": 1} if kind == "WEBP" else {}))
    with pytest.raises(BadPicture, match=f"is 8192x{height}: more than {limit} pixels"):
        decoded(file.getvalue(), Fit(8))


def test_transparent_pictures_are_blended_in_parts_of_rows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 9, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    np.testing.assert_array_equal(decoded(encoded(pixels), Fit()), np.asarray(whole).transpose(2, 0, 1))


# Parquet.


def deadly_parquet(path: Path) -> Path:
    """Write a Parquet file whose footer aborts a process that reads it with pyarrow: a column is no longer nullable."""
    _, content, _ = digit_pictures(1)[0]
    pq.write_table(pa.table({"image": [{"bytes": content}] * 3, "label": [0, 1, 2]}), path)
    whole = path.read_bytes()
    changed = whole.replace(b"\x25\x02\x18\x05label", b"\x25\x00\x18\x05label")
    assert changed != whole
    path.write_bytes(changed)
    return path


def test_a_footer_that_aborts_pyarrow_is_named_and_this_process_survives(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"{number}.parquet", digit_pictures(5))
    deadly = deadly_parquet(tmp_path / "1.parquet")
    assert f"{deadly} cannot be read as Parquet: its footer is damaged" in refused(tmp_path)


def test_conversion_into_a_folder_with_a_deadly_footer_is_refused(tmp_path: Path) -> None:
    from upath import UPath

    from raysid.data.convert import check_target

    source = open_source(write_folder(tmp_path / "f", digit_pictures(5)))
    (tmp_path / "out").mkdir()
    deadly_parquet(tmp_path / "out" / "part-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"part-00000-of-00001.parquet .*kills a process.*: remove it"):
        check_target(UPath(tmp_path / "out"), source, 1)


@pytest.mark.parametrize("length", [0, 7, 1 << 31])
def test_a_footer_of_a_false_length_is_named(tmp_path: Path, length: int) -> None:
    path = Path(write_parquet(tmp_path / "p.parquet", digit_pictures(5)))
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", length) + b"PAR1")
    assert "cannot be read as Parquet: " in refused(path)


# Zips.


def test_a_dataset_json_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", digit_pictures(1)[0][1])
        archive.writestr("dataset.json", '{"labels": [' + "[]," * 8_000_000 + "0]}")
    tracemalloc.start()
    assert "MB of memory: more than 768" in refused(path)
    assert tracemalloc.get_traced_memory()[1] < 150 << 20
    tracemalloc.stop()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", digit_pictures(1)[0][1])
        archive.writestr("dataset.json", '{"labels": ' + "[" * 100_000)
    assert "nested too deeply" in refused(path)


def with_directory(path: Path, **fields: int) -> Path:
    """Change fields of the first entry in a zip's directory (PKWARE's APPNOTE, section 4.3.12)."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    for name, value in fields.items():
        struct.pack_into("<I", content, entry + {"packed": 20, "size": 24, "offset": 42}[name], value)
    path.write_bytes(content)
    return path


def test_members_beyond_the_zip_and_inside_others_are_bad_pictures(tmp_path: Path) -> None:
    pictures = digit_pictures(4)
    misplaced = "its place lies outside the zip or in another file of it"
    for number, fields in enumerate(
        [{"offset": 1 << 30}, {"packed": 1 << 24, "size": 1 << 24}, {"offset": 0xFFFFFFFE}, {"packed": 5000}]
    ):
        path = with_directory(Path(write_zip(tmp_path / f"{number}.zip", pictures)), **fields)
        (fault,) = faults(open_source(str(path)))
        assert fault == f"0/00000.png in {path} cannot be read: {misplaced}"
    # Each entry of the directory leads to the same bytes, which would be unpacked once for each.
    path = tmp_path / "same.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in "abcd":
            archive.writestr(f"{name}.png", pictures[0][1])
        first = archive.getinfo("a.png")
        for name in "bcd":
            archive.getinfo(f"{name}.png").header_offset = first.header_offset
    assert len(faults(open_source(str(path)))) == 3


def test_numbers_of_64_bits_in_a_zip_are_too_large(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    write_zip(path, digit_pictures(3))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    (name,) = struct.unpack_from("<H", content, entry + 28)
    extra = struct.pack("<HHQQ", 1, 16, (1 << 64) - 1, (1 << 64) - 1)
    struct.pack_into("<II", content, entry + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", content, entry + 30, len(extra))
    content[entry + 46 + name : entry + 46 + name] = extra
    end = content.index(b"PK\x05\x06")
    struct.pack_into("<I", content, end + 12, struct.unpack_from("<I", content, end + 12)[0] + len(extra))
    path.write_bytes(content)
    (fault,) = faults(open_source(str(path)))
    assert "0/00000.png" in fault and "cannot be read: " in fault


# Tars.


def header(kind: bytes, content: bytes) -> bytes:
    """A tar header of a type, with its content."""
    member = tarfile.TarInfo("h")
    member.type, member.size = kind, len(content)
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def pax(**fields: str) -> bytes:
    records = b""
    for name, value in fields.items():
        rest = f" {name}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        records += str(length).encode() + rest
    return records


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (header(tarfile.GNUTYPE_LONGNAME, b"a.png") * 3000, "more than 16 headers"),
        (header(tarfile.XHDTYPE, pax(path="a.png")) * 3000, "more than 16 headers"),
        (header(tarfile.XGLTYPE, pax(comment="a")) * 3000, "more than 16 headers"),
        (header(tarfile.XHDTYPE, b"9" * 60_000 + b" path=a"), "a number of more than 255 digits"),
        (header(tarfile.XHDTYPE, b"9" * 600_000 + b" path=a"), "a header has 600,007 bytes"),
        (header(tarfile.XHDTYPE, b"99999999999999999999 path=a"), "too large"),
        (
            header(tarfile.XGLTYPE, b"".join(b"12 a%03d=aaa\n" % i for i in range(500)))
            + header(tarfile.XHDTYPE, pax(path="a.png")),
            "256 fields",
        ),
        (header(tarfile.XHDTYPE, b"0 path=a"), "invalid header"),
    ],
    ids=["long names", "pax", "global", "digits", "large", "overflow", "fields", "zero"],
)
def test_headers_of_tars_that_take_for_ever_are_refused(tmp_path: Path, headers: bytes, words: str) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.png", digit_pictures(1)[0][1])
    path.write_bytes(headers + path.read_bytes())
    assert words in refused(path)


def test_maps_of_sparse_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.png", digit_pictures(1)[0][1])
    sparse = header(tarfile.XHDTYPE, pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}))
    content = sparse + header(tarfile.REGTYPE, b"999999999\n" + b"0\n" * 1000)
    path.write_bytes(content + path.read_bytes())
    source = open_source(str(path))
    assert (source.num_images, faults(source)) == (1, [])


def test_a_tar_with_a_damaged_header_is_not_read_half(tmp_path: Path) -> None:
    path = Path(write_tars(tmp_path / "t", digit_pictures(9), 50)).parent / "digits-0000.tar"
    content = bytearray(path.read_bytes())
    content[6 * 1024 + 100] ^= 1  # of the seventh member's header: each has a kilobyte
    path.write_bytes(content)
    assert "is damaged at byte 6,144: what follows cannot be read" in refused(path)


def test_a_tar_that_ends_in_a_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.png", digit_pictures(1)[0][1])
        add(tar, "a.json", b'{"label": 1}' + b" " * 600)
    end = path.read_bytes().index(b'{"label"')
    path.write_bytes(path.read_bytes()[: end + 8])
    assert "cannot be read as a tar (uncompressed): unexpected end of data" in refused(path)


def test_a_tar_of_many_members_does_not_hold_their_headers(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.png", digit_pictures(1)[0][1])
    path.write_bytes(header(tarfile.DIRTYPE, b"") * 3000 + path.read_bytes())
    tracemalloc.start()
    assert open_source(str(path)).num_images == 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_faults_are_counted_and_named(tmp_path: Path) -> None:
    from raysid.data.source import check_faults
    from raysid.errors import RunFailed

    pictures = [(f"{i}/bad", WITHOUT_PALETTE, i) for i in range(NAMED + 1)]
    source = open_source(write_folder(tmp_path / "f", [*digit_pictures(20), *pictures]))
    found = dict(enumerate(faults(source)))
    with pytest.raises(RunFailed, match=r"6 of 26 real images cannot be used.*bad\.png.*and 1 more"):
        check_faults(found, 0.1, source.num_images)
    assert json.dumps(found)
