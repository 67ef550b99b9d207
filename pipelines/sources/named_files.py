"""Files that a table names: read where they lie below the source, and a sample's fault where they do not."""

from __future__ import annotations

import posixpath

from tokenmill.errors import SampleError
from tokenmill.manifests.storage import Store

_LONGEST_NAME_BYTES, _LONGEST_PART_BYTES = 1024, 255  # of object stores' keys, and of file systems' names


def named_file(store: Store, folder: str, name: str, missing: str = "missing_file") -> bytes:
    """Read the file of some name, as seen from a folder of the source.

    Raises:
        SampleError: `bad_path` where it leads out of the source or no file can have the name, `missing` where none has.
    """
    place = posixpath.normpath(posixpath.join(folder, name))
    parts = [part.encode("utf-8", "replace") for part in place.split("/")]
    if len(b"/".join(parts)) > _LONGEST_NAME_BYTES or max(map(len, parts)) > _LONGEST_PART_BYTES or "\0" in place:
        raise SampleError("bad_path", "no file has a name so long, or with a zero byte")
    if name.startswith("/") or "://" in name or "\\" in name or place.split("/")[0] == "..":
        raise SampleError("bad_path", "leads out of the source")
    if not store.exists(place):
        raise SampleError(missing, "the file that the table names is not there")
    return store.read_bytes(place)
