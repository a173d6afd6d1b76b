"""Opening the source of real images that a config names."""

from __future__ import annotations

from collections.abc import Callable

from raysid.config import DataSettings
from raysid.data.picture_source import PictureSource
from raysid.data.source import ImageSource
from raysid.errors import NotHere, UserError

BUILT_IN = ("digits", "patches")  # sources that come with a package; all others are files


def open_source(data: DataSettings | str, captioned: bool = False) -> ImageSource:
    """Open the real images of these settings, or of the source of this name.

    Args:
        captioned: with the captions of the images.

    Raises:
        NotHere: there is no such file.
        UserError: the source is unknown, cannot be used, or has no captions.
    """
    data = DataSettings(source=data) if isinstance(data, str) else data
    source = find_source(data, captioned)
    if isinstance(source, PictureSource):
        source.settle(data)
    return source


def find_source(data: DataSettings, captioned: bool = False) -> ImageSource:
    """Open a source as `open_source` does, but read no picture: files can be listed even if none can be used."""
    assert data.source is not None  # callers check that there is one
    if data.source in BUILT_IN:
        from raysid.data.captioned_digits import CaptionedDigits
        from raysid.data.scikit_learn import DigitsSource, PatchesSource

        if captioned and data.source != CaptionedDigits.name:
            raise UserError(f"data.source {data.source} has no captions, from which a U-Net with text learns")
        for setting in ("resolution", "channels", "format", "caption_column"):
            if getattr(data, setting) is not None:
                raise UserError(f"data.{setting} is for files, not for data.source {data.source}")
        if data.source == DigitsSource.name:
            return CaptionedDigits() if captioned else DigitsSource()
        return PatchesSource()

    # Imported here because each needs the library of its format.
    from raysid.data.edm_zip import EDMZipSource
    from raysid.data.files import Found, find_files
    from raysid.data.folder import FolderSource
    from raysid.data.parquet import ParquetSource
    from raysid.data.webdataset import WebDatasetSource

    try:
        found = find_files(data.source, data.format)
    except NotHere:
        if isinstance(data.source, str) and not set(data.source) & set("/.*?["):
            raise UserError(
                f"data.source: unknown source of real images {data.source!r}; known: {', '.join(BUILT_IN)}, or the "
                "path of a folder of pictures, a .zip, .parquet or .tar"
            ) from None
        raise
    if found.kind == "zip":
        if captioned:
            raise UserError(f"data.source {found.name} is a zip, which has no captions: give other files")
        return EDMZipSource(found, data)
    kinds: dict[str, Callable[[Found, DataSettings, bool], ImageSource]] = {
        "folder": FolderSource,
        "parquet": ParquetSource,
        "webdataset": WebDatasetSource,
    }
    return kinds[found.kind](found, data, captioned)
