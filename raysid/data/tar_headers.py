"""The members of a tar, read in a time and a memory that the bytes of its headers limit."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator

from raysid.data.files import COMPRESSED_TAR, damaged_file
from raysid.errors import UserError
from raysid.storage import open_file

FORM = "a tar (uncompressed)"
MAX_HEADER = 1 << 16  # bytes of a header that extends another
MAX_CHAIN = 16  # headers that extend one member; tar writes at most three
MAX_GLOBAL = 256  # fields of global headers, which tarfile copies to each member
MAX_DIGITS = 255  # of a number in a header: tarfile's time grows with their square
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # first bytes of gzip, bzip2, xz, zstd
_EXTENDING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def tar_members(path: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Iterate over the members of an uncompressed tar, each with the tar, which can read it.

    Raises:
        UserError: it is not a tar, or is compressed or damaged.
    """
    with damaged_file(path, FORM), open_file(path) as file:
        if file.read(6).startswith(_COMPRESSED):
            raise UserError(f"{path} {COMPRESSED_TAR}")
        file.seek(0)
        archive = _Tar.open(fileobj=file, mode="r:", tarinfo=_Header)  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps them all
            yield member, archive
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):  # tarfile ends at a damaged header as at the last one
            raise UserError(f"{path} is damaged at byte {archive.offset:,}: what follows cannot be read")


class _Tar(tarfile.TarFile):
    """A tar whose headers are read in a time that their bytes limit. `chain`: headers that extend the next member."""

    chain = 0


class _Header(tarfile.TarInfo):
    """A member's header. Raises tarfile.ReadError where tarfile would read everything, or never end."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError(f"a member has {count} bytes")
        return super()._block(count)  # type: ignore[misc]

    def _proc_member(self, archive: _Tar) -> tarfile.TarInfo:
        if self.type not in _EXTENDING:
            return super()._proc_member(archive)  # type: ignore[misc]
        if self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes")
        if archive.chain >= MAX_CHAIN or len(archive.pax_headers) > MAX_GLOBAL:
            raise tarfile.ReadError(
                f"more than {MAX_CHAIN} headers, or {MAX_GLOBAL} fields, extend one member"
            )
        content = archive.fileobj.read(self.size)  # type: ignore[union-attr]
        archive.fileobj.seek(archive.fileobj.tell() - len(content))  # type: ignore[union-attr]
        if re.search(rb"\d{%d}" % (MAX_DIGITS + 1), content):
            raise tarfile.ReadError(f"a header has a number of more than {MAX_DIGITS} digits")
        archive.chain += 1  # the header that follows is read inside this call
        try:
            return super()._proc_member(archive)  # type: ignore[misc]
        finally:
            archive.chain -= 1

    def _proc_gnusparse_00(self, following: tarfile.TarInfo, *parts: object) -> None:
        """Mark a member as sparse. Its map is not needed: the bytes of such a member do not lie at its offset."""
        following.sparse = b""

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00
