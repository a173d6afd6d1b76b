"""The readers of raysid, with valid inputs of each."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gcsfs  # noqa: F401 - here once, not in each child
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs  # noqa: F401
from PIL import Image
from upath import UPath

from raysid.config import DataSettings, PromptSettings
from raysid.data import footers, open_source, page_reader, pages, parquet_check
from raysid.data.files import absolute_path, find_files
from raysid.data.pictures import BadPicture, Fit, as_stored, decoded
from raysid.data.prompts import PromptStream, open_prompts
from raysid.networks.files import load_card, load_network
from raysid.networks.published.network import read_published
from raysid.recipes import load_recipe
from raysid.roles.state_files import read_state
from raysid.run.checkpoint import read_manifest
from raysid.run.watch import state_of
from raysid.storage import is_local, location, read_json, storage_folder
from raysid.storage.download import local_copy
from tests.fuzz.mutate import png_repaired, tar_repaired
from tests.support.picture_files import add, digit_pictures, encoded, write_parquet

TESTS = Path(__file__).parents[1]
FORMATS = TESTS / "formats" / "0.1.0"
JSON_TOKENS = tuple(
    b'[ { ] } , : "a" 1e999 NaN -0 \\ud800 null true 99999999999999999999 "format" [[[['.split()
)
YAML_TOKENS = (
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/name:os.system ",
    b"? ",
    b"\n- ",
    b"|\n",
    b"1e9",
    b"{",
    b"[",
    b"\t",
)


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        samples: makes the valid inputs.
        read: reads an input that lies in a file of an empty folder.
        tokens: texts of the format.
        repaired: corrects the checksums of an input; applied to half of the inputs.
    """

    samples: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    tokens: tuple[bytes, ...] = ()
    repaired: Callable[[bytes], bytes] | None = None


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    made = [
        (Image.fromarray(pixels), "PNG", {}),
        (colour.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (colour, "JPEG", {"progressive": True}),
        (colour, "JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour.convert("L"), "JPEG", {}),
        (Image.fromarray(pixels), "WEBP", {"lossless": True}),
        (colour, "WEBP", {}),
        (colour.quantize(16), "GIF", {"transparency": 1}),
        (colour, "BMP", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(pixels), "TIFF", {}),
        (colour, "PPM", {}),
        (colour, "JPEG2000", {}),
        (colour, "AVIF", {}),
    ]
    contents = []
    for picture, kind, options in made:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        contents.append(file.getvalue())
    return contents


def _read_picture(path: Path) -> None:
    content = path.read_bytes()
    try:
        decoded(content, Fit(8, channels=3))
        as_stored(content)
    except BadPicture as error:
        assert str(error).isprintable() or "�" in str(error), error


def _read_source(path: Path, **data: Any) -> None:
    source = open_source(DataSettings(source=str(path), **data))
    for block in source.blocks():
        del block


def _zips() -> list[bytes]:
    pictures = digit_pictures(6)
    contents = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content, _ in pictures:
                archive.writestr(f"{name}.png", content)
            with archive.open("z64.png", "w", force_zip64=True) as member:
                member.write(pictures[0][1])
            archive.writestr(
                "dataset.json", json.dumps({"labels": [[f"{n}.png", c] for n, _, c in pictures]})
            )
        contents.append(file.getvalue())
    return contents


def _tars() -> list[bytes]:
    contents = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for name, content, number in digit_pictures(4):
                key = f"{name}{'é' * 60 if form != tarfile.USTAR_FORMAT else ''}"
                add(tar, f"{key}.png", content)
                add(tar, f"{key}.cls", str(number).encode())
                add(tar, f"{key}.json", json.dumps({"label": number, "meta": {"a": [1.5]}}).encode())
        contents.append(file.getvalue())
    return contents


def _parquets() -> list[bytes]:
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"raysid-fuzz-samples-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    pictures = digit_pictures(12)
    write_parquet(folder / "a.parquet", pictures, group=5)
    write_parquet(folder / "b.parquet", pictures, group=5, struct=False)
    table = pq.read_table(folder / "a.parquet")
    pq.write_table(table, folder / "c.parquet", row_group_size=5, compression="snappy", write_page_index=True)
    pq.write_table(table, folder / "d.parquet", row_group_size=5, compression="zstd", data_page_version="2.0")
    names = pa.table({"image": [p for _, p, _ in pictures], "label": [n[0] for n, _, _ in pictures]})
    pq.write_table(names, folder / "e.parquet", row_group_size=5)
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    shutil.rmtree(folder)
    return contents


def _read_in_forks() -> None:
    """Have forks of this process read Parquet: a process of its own, with the same program, takes half a second."""
    footers._deadly = _deadly_in_a_fork
    pages._start = _Fork


def _read_parquet(path: Path) -> None:
    _read_in_forks()
    _read_source(path, format="parquet")


class _Fork:
    """A fork that reads pages, in place of a `subprocess.Popen`."""

    def __init__(self) -> None:
        (asked, self._ask), (self._answer, answered) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.close(self._ask)  # so that the end of the other process is seen
            os.close(self._answer)
            with suppress(OSError):
                page_reader.main(os.fdopen(asked, "rb"), os.fdopen(answered, "wb"))
            os._exit(0)
        os.close(asked)
        os.close(answered)
        self.stdin, self.stdout = os.fdopen(self._ask, "wb"), os.fdopen(self._answer, "rb")

    def wait(self, timeout: float | None = None) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _deadly_in_a_fork(paths: Any, contents: Any) -> Any:
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        parts = [part for content in contents for part in (len(content).to_bytes(8), content)]
        with os.fdopen(theirs, "wb") as target:
            parquet_check.main(io.BytesIO(b"".join(parts)), target)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        survived = len(answer.read())
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return paths[survived : survived + killed]


def _prompt_parquets() -> list[bytes]:
    rows = {"text": ["a fox", None] * 6, "caption": ["x", ""] * 6, "s": [n / 12 for n in range(12)]}
    contents = []
    for options in ({}, {"compression": "zstd", "data_page_version": "2.0"}, {"use_dictionary": False}):
        file = io.BytesIO()
        pq.write_table(pa.table(rows), file, row_group_size=5, **options)  # type: ignore[arg-type]
        contents.append(file.getvalue())
    return contents


def _prompt_tars() -> list[bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(4):
            add(tar, f"{number}.txt", f"a fox {number}".encode())
            add(tar, f"{number}.jpg", b"not read")
    return [file.getvalue()]


def _read_prompts(path: Path, **given: Any) -> None:
    _read_in_forks()
    settings = PromptSettings(source=str(path), max_bad_fraction=1.0, **given)
    source = open_prompts(settings)
    with PromptStream(source, settings, 0, 4) as stream:
        for text in stream.read(0, source.num_prompts):
            assert isinstance(text, str) and text


def _network(path: Path, name: str) -> Path:
    """The folder of a network in which one file is the input."""
    folder = path.parent / "network"
    shutil.copytree(FORMATS / "teacher", folder)
    shutil.copy(path, folder / name)
    return folder


def _read_card(path: Path) -> None:
    load_card(_network(path, "config.json"))
    load_network(path.parent / "network", "teacher")


def _read_state(path: Path) -> None:
    shutil.copy(path, path.parent / "generator.pt")
    read_state(path.parent, "generator")


def _read_run(path: Path, name: str) -> None:
    folder = path.parent / "run"
    folder.mkdir()
    for kept in ("config.yaml", "metrics.jsonl", "run.json"):
        shutil.copy(FORMATS / "run" / kept, folder / kept)
    shutil.copy(path, folder / name)
    state_of(str(folder))


def _read_manifest(path: Path) -> None:
    shutil.copy(path, path.parent / "manifest.json")
    read_manifest(UPath(path.parent))
    read_json(UPath(path))


def _labels(path: Path) -> None:
    """A zip's `dataset.json` is the input."""
    with zipfile.ZipFile(path.parent / "z.zip", "w") as archive:
        archive.writestr("0/a.png", encoded(np.zeros((4, 4), np.uint8)))
        archive.writestr("dataset.json", path.read_bytes())
    _read_source(path.parent / "z.zip")


def _read_path(path: Path) -> None:
    """A path or a URL is the input; none is fetched."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    os.chdir(path.parent)
    calls: list[Callable[[], object]] = [lambda: location(text), lambda: storage_folder(text)]
    found = absolute_path(text)
    if is_local(found) and not os.path.isdir(found.path):  # not all of this machine
        calls += [lambda: find_files(text), lambda: local_copy(text) if "://" not in text else None]
    for call in calls:
        call()


def _files(*paths: str) -> Callable[[], list[bytes]]:
    return lambda: [(TESTS / path).read_bytes() for path in paths]


_JSON = [b'{"labels": [["0/a.png", 6], ["b.png", 1.0]]}', b'{"labels": {"a.png": "x"}}', b'{"labels": null}']
_PATHS = (
    b"~/x,${HOME}/y,s3://b/k,S3://b//k,gs:/b/x,gs://b/a::b,file:///tmp/x,/tmp/{0..9}.tar,a/*?[b].png,zip::/x"
)

READERS: dict[str, Reader] = {
    "picture": Reader(_pictures, _read_picture),
    "png": Reader(lambda: _pictures()[:3], _read_picture, repaired=png_repaired),
    "zip": Reader(_zips, _read_source, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06")),
    "tar": Reader(
        _tars,
        lambda path: _read_source(path, format="webdataset"),
        (b"ustar\0", b"25 path=a.png\n"),
        tar_repaired,
    ),
    "parquet": Reader(_parquets, _read_parquet, (b"PAR1",)),
    "prompts": Reader(
        lambda: [b"a fox\r\n\na caf\xc3\xa9\n"], partial(_read_prompts, format="text"), (b"\n", b"\xff")
    ),
    "prompt-lines": Reader(
        lambda: [b'{"text": "a fox", "s": 0.5}\n{"text": null, "s": 1}\n'],
        partial(_read_prompts, format="jsonl", column="text", min={"s": 0.1}),
        JSON_TOKENS,
    ),
    "prompt-parquet": Reader(
        _prompt_parquets,
        partial(_read_prompts, format="parquet", column={"text": 1.0, "caption": 2.0}, min={"s": 0.1}),
        (b"PAR1",),
    ),
    "prompt-tar": Reader(
        _prompt_tars, partial(_read_prompts, format="webdataset"), (b"ustar\0",), tar_repaired
    ),
    "labels": Reader(lambda: _JSON, _labels, JSON_TOKENS),
    "recipe": Reader(
        _files("formats/0.1.0/run/config.yaml", "../raysid/recipes/cifar10-cond-sida.yaml"),
        lambda path: load_recipe(str(path)),
        YAML_TOKENS,
    ),
    "card": Reader(
        _files("formats/0.1.0/teacher/config.json"),
        _read_card,
        JSON_TOKENS,
    ),
    "safetensors": Reader(
        _files("formats/0.1.0/teacher/model.safetensors"),
        lambda path: load_network(_network(path, "model.safetensors"), "teacher"),
        JSON_TOKENS,
    ),
    "pkl": Reader(
        _files("reference/edm_adm.pkl", "reference/edm_ddpmpp.pkl"),
        lambda path: read_published(path, path.name),
        (b"cos\nsystem\n", b"R.", b"0", b"(", b"\x94", b"h\0", b"t", b"]", b"}", b"u"),
    ),
    "state": Reader(
        _files("formats/0.1.0/run/checkpoints/step-00000002/generator.pt"), _read_state, (b"cos\nsystem\n",)
    ),
    "manifest": Reader(
        _files("formats/0.1.0/run/checkpoints/step-00000002/manifest.json"), _read_manifest, JSON_TOKENS
    ),
    "metrics": Reader(
        _files("formats/0.1.0/run/metrics.jsonl"), lambda path: _read_run(path, "metrics.jsonl"), JSON_TOKENS
    ),
    "run-json": Reader(
        _files("formats/0.1.0/run/run.json"), lambda path: _read_run(path, "run.json"), JSON_TOKENS
    ),
    "run-config": Reader(
        _files("formats/0.1.0/run/config.yaml"), lambda path: _read_run(path, "config.yaml"), YAML_TOKENS
    ),
    "path": Reader(lambda: _PATHS.split(b","), _read_path, (b"://", b"::", b"${", b"}", b"~", b"\0", b"//")),
}


def suffix(name: str) -> str:
    """The suffix of an input's file, for readers that look at it."""
    return {"zip": ".zip", "tar": ".tar", "parquet": ".parquet", "recipe": ".yaml", "pkl": ".pkl"}.get(
        name, ".bin"
    )
