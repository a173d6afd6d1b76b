"""Files of runs and teachers, in a folder of this machine (or one that all nodes share) or in a bucket, by fsspec.

An object in a bucket is there whole or not at all, and can only be replaced. Files that grow (metrics, TensorBoard's
events) are therefore written on this machine and copied to the bucket by `mirror.py`.

    files.py, folders.py    single files, read and written whole; folders
    buckets.py, s3.py       which paths are buckets, and the settings of their clients; add a kind of bucket here
    failures.py             conversion of other libraries' errors: every function raises StorageError
    lease.py                ownership of a folder by one process
    download.py             files of the web and of buckets, cached on this machine; web.py: one request
"""

from raysid.storage.buckets import (
    BUCKETS,
    LOCAL,
    expand,
    for_ray,
    is_local,
    listed_path,
    location,
    storage_folder,
)
from raysid.storage.failures import storage_errors
from raysid.storage.files import (
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
    write_whole,
    writing_whole,
)

__all__ = [
    "BUCKETS",
    "LOCAL",
    "append_whole",
    "children",
    "copy_file",
    "empty_folder",
    "exists",
    "expand",
    "file_size",
    "for_ray",
    "holds",
    "is_local",
    "listed_path",
    "location",
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
    "write_whole",
    "writing_whole",
]
