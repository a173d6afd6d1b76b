"""What s3:// needs beyond what holds for every bucket: its client's settings, and what its refusals mean."""

from __future__ import annotations

from typing import Any

from fsspec.config import conf

INSTALL = "pip install 'raysid[s3]'"
CREDENTIALS = (
    "AWS's credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from `aws configure` or `aws sso login`, "
    "or from the machine's role"
)
NOT_KNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")  # of credentials
PERMISSIONS = (
    "The credentials in use (`aws sts get-caller-identity` shows whose) must be allowed s3:ListBucket and s3:GetObject "
    "there; to write, s3:PutObject and s3:DeleteObject too"
)

_settings: dict[str, Any] = conf.setdefault("s3", {})
# s3fs reads 50 MB ahead in every open file, of which there are sixteen while tars are listed.
_settings.setdefault("default_block_size", 5 << 20)
# A bucket that spreads over more machines answers with 503 for longer than the six seconds that are usual.
_settings.setdefault("config_kwargs", {"retries": {"mode": "standard", "total_max_attempts": 8}})


def advice(error: BaseException) -> str | None:
    """What to do about an error of s3fs or botocore, where something can be done here."""
    if _code(error) in NOT_KNOWN or "credentials" in str(error).lower():
        return CREDENTIALS
    return PERMISSIONS if isinstance(error, PermissionError) else None


def is_taken(error: OSError) -> bool:
    """Whether a write was refused because there is a file already, or another is being written at this moment.

    s3fs raises FileExistsError only where the server says which condition failed, as AWS does and others do not.
    """
    return _code(error) in ("PreconditionFailed", "ConditionalRequestConflict")


def in_one_request(protocol: str | tuple[str, ...]) -> dict[str, Any]:
    """Options of `cat_file` and `cat_ranges` by which a file comes in one request, in any bucket.

    s3fs would first ask for its size, then fetch a large one in parts, of which one that breaks off is not repeated.
    """
    return {"max_concurrency": 1} if "s3" in protocol else {}


def _code(error: BaseException) -> str | None:
    """What the server calls an error that s3fs has made Python's own."""
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
