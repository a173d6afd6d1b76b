"""Columns of Parquet files: which hold pictures or labels, and the pictures of a batch of rows."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from raysid.data.labels import names_listed
from raysid.data.picture_files import read_beside
from raysid.data.pictures import MAX_PICTURE, TOO_LARGE, BadPicture
from raysid.data.source import NOT_UTF8
from raysid.errors import UserError

BYTES, PATH = "bytes", "path"  # fields of a struct that holds a picture, as in Hugging Face's datasets


def image_column(schema: pa.Schema, given: str | None, where: str) -> str:
    """Return the column of the pictures.

    Args:
        given: `data.image_column`; it may be a column of paths, too.
        where: the source, for the message.

    Raises:
        UserError: there is no such column, or several.
    """
    able = [field.name for field in schema if holds_pictures(field.type)]
    paths = [field.name for field in schema if holds_paths(field.type)]
    if given is not None:
        if given not in able + paths:
            if given in schema.names:
                raise UserError(f"{where} has no column of bytes {given}; columns: {_described(schema)}")
            raise UserError(f"{where} has no column {given}; columns: {names_listed(schema.names)}")
        return given
    if len(able) == 1:
        return able[0]
    if able:
        raise UserError(f"{where} has several columns of bytes ({', '.join(able)}): give data.image_column")
    remedy = (
        f"if the pictures are files, give the column of their paths as data.image_column ({names_listed(paths)})"
        if paths
        else "store the pictures as bytes of PNG or JPEG files"
    )
    raise UserError(f"{where} has no column of bytes, but {_described(schema)}: {remedy}")


def _described(schema: pa.Schema) -> str:
    return names_listed([f"{field.name} ({field.type})" for field in schema])


def holds_pictures(kind: pa.DataType) -> bool:
    """True for bytes, and for a struct with `bytes`."""
    if pa.types.is_struct(kind):
        return kind.get_field_index(BYTES) >= 0 and holds_pictures(kind.field(BYTES).type)
    kind = _plain(kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def holds_paths(kind: pa.DataType) -> bool:
    """True for texts, which may be paths of pictures."""
    kind = _plain(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def holds_captions(kind: pa.DataType) -> bool:
    """True for texts, and for lists of texts."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return holds_paths(kind)


def cells(column: pa.Array) -> list[object]:
    """Return the values of a column, `NOT_UTF8` for those whose bytes are no text: pyarrow does not check them."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(value) for value in column]


def _cell(value: pa.Scalar) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return NOT_UTF8


def holds_labels(kind: pa.DataType) -> bool:
    """True for numbers, booleans and texts."""
    kind = _plain(kind)
    able = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null, holds_paths)
    return any(is_kind(kind) for is_kind in able)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def pictures(column: pa.Array, path: str) -> Iterable[bytes | BadPicture]:
    """Return the picture of each row, or the reason why it cannot be read.

    Args:
        path: the Parquet file, beside which the files that rows name lie.
    """
    names: pa.Array | None = None
    if pa.types.is_struct(column.type):
        if column.type.get_field_index(PATH) >= 0 and holds_paths(column.type.field(PATH).type):
            names = pc.struct_field(column, PATH)
        column = pc.struct_field(column, BYTES)  # null if the struct is
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if holds_paths(column.type):
        return (_named(name, path) for name in column)
    # Converting scalars one by one takes twice as long.
    if not column.null_count and column.nbytes <= MAX_PICTURE:
        return column.to_pylist()  # type: ignore[no-any-return]
    if names is None:
        return map(_picture, column)
    return (
        _picture(data) if data.is_valid else _named(name, path)
        for data, name in zip(column, names, strict=True)
    )


def _picture(value: pa.Scalar) -> bytes | BadPicture:
    if not value.is_valid:
        return BadPicture("is null")
    data = value.as_buffer()
    return data.to_pybytes() if data.size <= MAX_PICTURE else BadPicture(TOO_LARGE)


def _named(name: pa.Scalar, path: str) -> bytes | BadPicture:
    return read_beside(path, name.as_py()) if name.is_valid else BadPicture("is null")
