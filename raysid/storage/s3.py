"""Settings of the client of s3://, and the meaning of its errors."""

from __future__ import annotations

from typing import Any

from fsspec.config import conf

INSTALL = "pip install 'raysid[s3]'"
CREDENTIALS = (
    "AWS's credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from `aws configure` or `aws sso login`, "
    "or from the machine's role"
)
BAD_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
PERMISSIONS = (
    "The credentials in use (`aws sts get-caller-identity` shows whose) must be allowed s3:ListBucket and s3:GetObject "
    "there; to write, s3:PutObject and s3:DeleteObject too"
)

_settings: dict[str, Any] = conf.setdefault("s3", {})
# By default s3fs reads 50 MB ahead in every open file; sixteen are open while tars are listed.
_settings.setdefault("default_block_size", 5 << 20)
# A bucket answers with 503 while it scales out, for longer than the client's default retries of six seconds.
_settings.setdefault("config_kwargs", {"retries": {"mode": "standard", "total_max_attempts": 8}})


def advice(error: BaseException) -> str | None:
    """The remedy for an error of s3fs or botocore, if the user has one."""
    if _code(error) in BAD_CREDENTIALS or "credentials" in str(error).lower():
        return CREDENTIALS
    return PERMISSIONS if isinstance(error, PermissionError) else None


def already_exists(error: OSError) -> bool:
    """True if a write was refused because the object exists or another client is writing it.

    s3fs raises FileExistsError only where the server says which condition failed, as AWS does and others do not.
    """
    return _code(error) in ("PreconditionFailed", "ConditionalRequestConflict")


def in_one_request(protocol: str | tuple[str, ...]) -> dict[str, Any]:
    """Options of `cat_file` and `cat_ranges` that fetch a file in one request, in any bucket.

    By default s3fs first asks for the size and fetches a large file in parts, and does not repeat a part that breaks
    off.
    """
    return {"max_concurrency": 1} if "s3" in protocol else {}


def _code(error: BaseException) -> str | None:
    """The server's error code, from an error that s3fs has translated to one of Python's."""
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
