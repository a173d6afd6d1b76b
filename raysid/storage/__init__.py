"""Files of runs and teachers, in a folder of this machine (or one that all nodes share) or in a bucket, by fsspec.

An object in a bucket is there whole or not at all, and can only be replaced. Files that grow (metrics, TensorBoard's
events) are therefore written on this machine and copied to the bucket by `raysid.storage.mirror`.

Every function raises StorageError where the disk or the bucket fails.
"""

from raysid.storage.buckets import BUCKETS, LOCAL, for_ray, is_local, storage_folder
from raysid.storage.failures import storage_errors
from raysid.storage.files import (
    PARTIAL,
    append_whole,
    children,
    copy_file,
    empty_folder,
    exists,
    file_size,
    holds,
    make_folder,
    open_file,
    read_json,
    read_whole,
    remove_file,
    remove_folder,
    remove_partial,
    upload,
    write_new,
    write_whole,
)

__all__ = [
    "BUCKETS",
    "LOCAL",
    "PARTIAL",
    "append_whole",
    "children",
    "copy_file",
    "empty_folder",
    "exists",
    "file_size",
    "for_ray",
    "holds",
    "is_local",
    "make_folder",
    "open_file",
    "read_json",
    "read_whole",
    "remove_file",
    "remove_folder",
    "remove_partial",
    "storage_errors",
    "storage_folder",
    "upload",
    "write_new",
    "write_whole",
]
