"""s3:// on a real S3 server: the differences of its client from that of gs://, and its errors."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from botocore.exceptions import ClientError
from fsspec.registry import _registry
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from raysid.config import DataSettings
from raysid.data import ImageSource, open_source
from raysid.errors import NotHere, StorageError, UserError
from raysid.storage import lease, read_whole, storage_folder, write_whole
from raysid.storage.files import write_new
from raysid.storage.lease import Lease
from raysid.storage.s3 import already_exists
from tests.support.bucket_server import BUCKET, Connection, in_bucket, s3_environment, s3_server
from tests.support.picture_files import digit_pictures, write_folder, write_parquet, write_tars, write_zip

URL = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make s3:// this server in this process; its address."""
    for name, value in s3_environment(server).items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # one that was made before has its server and keys
    yield server
    S3FileSystem.clear_instance_cache()


def uploaded(server: str, local: Path, name: str) -> str:
    """Upload the files of a folder; their URL."""
    for path in local.rglob("*.*"):
        in_bucket(server, f"{URL}/{name}/{path.relative_to(local)}").write_bytes(path.read_bytes())
    return f"{URL}/{name}"


def images_of(source: ImageSource) -> list[np.ndarray]:
    return [block["image"] for block in source.blocks()]


# Real images.


def test_images_of_every_kind_are_read_there(s3: str, tmp_path: Path) -> None:
    pictures = [*digit_pictures(20), ("9/[9]*", digit_pictures(1)[0][1], 9)]  # a name, no pattern
    write_folder(tmp_path / "folder", pictures)
    write_parquet(tmp_path / "parquet" / "d.parquet", pictures)
    write_tars(tmp_path / "tars", pictures, 8)
    (tmp_path / "zip").mkdir()
    write_zip(tmp_path / "zip" / "d.zip", pictures)
    for kind in ("folder", "parquet", "tars", "zip"):
        local, url = tmp_path / kind, uploaded(s3, tmp_path / kind, kind)
        here, there = open_source(str(local)), open_source(url)
        assert there.num_images == len(pictures)
        np.testing.assert_array_equal(here.label_counts, there.label_counts)
        np.testing.assert_array_equal(np.concatenate(images_of(here)), np.concatenate(images_of(there)))
    assert open_source(f"{URL}/tars/digits-000[01].tar").num_images == 16
    assert open_source(f"{URL}/folder/*/*.png").num_images == len(pictures)
    tars = [f"{URL}/tars/digits-000{number}.tar" for number in (0, 2)]
    assert open_source(DataSettings(source=tars)).num_images == 8 + 5
    with pytest.raises(NotHere, match="there is no file or folder s3://"):
        open_source(f"{URL}/nothing")


def test_a_picture_takes_one_request(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, digit_pictures(10))
    url = uploaded(s3, tmp_path, "requests")
    connection = Connection(s3, bad=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", connection.address)
    source = open_source(url)
    opened = connection.met["served"]
    assert len(np.concatenate(images_of(source))) == 10
    assert connection.met["served"] == opened + 10
    connection.close()


# Runs.


def test_one_of_several_writers_creates_an_object(s3: str) -> None:
    remote = in_bucket(s3, f"{URL}/new")
    write_new(remote, b"first")
    with pytest.raises(FileExistsError):
        write_new(remote, b"second")
    assert read_whole(remote) == b"first"


@pytest.mark.parametrize("code", ["PreconditionFailed", "ConditionalRequestConflict"])
def test_servers_have_several_codes_for_an_existing_object(code: str) -> None:
    """Servers other than AWS do not name the condition that failed; the second code is of concurrent writes."""
    error = translate_boto_error(ClientError({"Error": {"Code": code}}, "PutObject"))
    assert type(error) is OSError and already_exists(error)
    assert not already_exists(
        translate_boto_error(ClientError({"Error": {"Code": "NoSuchBucket"}}, "PutObject"))
    )


def test_one_of_several_processes_gets_a_lease(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.3)
    leases = [Lease(in_bucket(s3, f"{URL}/at-once/.lock")) for _ in range(4)]
    together = threading.Barrier(len(leases))
    owners: list[Lease] = []

    def take(mine: Lease) -> None:
        together.wait()
        try:
            owners.append(mine.acquire(timeout=0))
        except filelock.Timeout:
            pass

    threads = [threading.Thread(target=take, args=[mine]) for mine in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(owners) == 1
    with pytest.raises(filelock.Timeout):
        Lease(leases[0].path).acquire_if_abandoned()
    owners[0].release()
    leases[0].acquire(timeout=0).release()


# Errors.


def refused(url: str) -> str:
    """The error of writing to a storage."""
    with pytest.raises(StorageError) as caught:
        write_whole(storage_folder(url) / "a.json", b"{}")
    line = str(caught.value)
    assert url in line and "\n" not in line and not caught.value.full
    return line


def test_a_missing_bucket_is_one_line(s3: str) -> None:
    assert "The specified bucket does not exist" in refused("s3://nobody-has-this/runs")


def test_missing_credentials_are_an_error_with_the_remedy(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for line in (refused(f"{URL}/runs"), not_read(f"{URL}/images")):
        assert "Unable to locate credentials. AWS's credentials come from AWS_ACCESS_KEY_ID" in line


def test_a_refusal_names_the_permissions(s3: str) -> None:
    forbidden = "s3://forbidden"
    denied: dict[str, Any] = {"Effect": "Deny", "Principal": "*", "Action": ["s3:GetObject", "s3:PutObject"]}
    policy = {"Version": "2012-10-17", "Statement": [denied | {"Resource": ["arn:aws:s3:::forbidden/*"]}]}
    put(f"{s3}/forbidden")
    put(f"{s3}/forbidden/a.parquet", b"PAR1 something PAR1")
    put(f"{s3}/forbidden?policy", json.dumps(policy).encode())
    for line in (refused(f"{forbidden}/runs"), not_read(f"{forbidden}/a.parquet")):
        assert "must be allowed s3:ListBucket and s3:GetObject there; to write, s3:PutObject" in line


def test_a_refusal_is_classified_by_the_servers_code(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(s3, bad=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", connection.address)
    line = f"{URL}/runs/a.json cannot be written: "
    for code, full, text in (
        ("QuotaExceeded", True, "the bucket's quota is used up (An error occurred (QuotaExceeded)"),
        ("ExpiredToken", False, "not now. AWS's credentials come from AWS_ACCESS_KEY_ID"),
    ):
        connection.refusal = (403, code)
        with pytest.raises(StorageError) as caught:
            write_whole(storage_folder(f"{URL}/runs") / "a.json", b"{}")
        assert str(caught.value).startswith(line + text) and caught.value.full is full
    connection.close()


def put(url: str, content: bytes = b"") -> None:
    """Make a bucket, an object or a policy."""
    plain = {"Content-Type": "application/octet-stream"}  # or it would be a form
    urllib.request.urlopen(urllib.request.Request(url, content, plain, method="PUT")).close()


def not_read(url: str) -> str:
    """The error of reading images."""
    with pytest.raises(UserError) as caught:
        open_source(url)
    line = str(caught.value)
    assert url in line and "\n" not in line
    return line


def test_an_error_without_s3fs_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as Python has a package that is not there
    monkeypatch.delitem(_registry, "s3", raising=False)
    for line in (refused(f"{URL}/runs"), not_read(f"{URL}/images.parquet")):
        assert "(pip install 'raysid[s3]')" in line
