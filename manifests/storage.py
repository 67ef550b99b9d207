"""The one door to storage: local folders, s3://, gs://, az://, memory://, through fsspec.

Two ways to publish, both atomic: `put` (last writer wins, used for data whose name carries its digest) and
`put_exclusive` (first writer wins, used for commit records). Locally that is a temporary file in the same folder,
fsync, then rename or link; on an object store one PUT (`If-None-Match: *` for the exclusive one) or a completed
multipart upload. Nothing is ever visible half-written. The cost is one fsync a file, a millisecond on a local disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from tokenmill.errors import StorageError
from tokenmill.faults import fault_point

_TEMPORARY = ".part-"


@dataclass(frozen=True, slots=True)
class Stored:
    """One object under a store's root: its path relative to the root, its size in bytes, when it was written."""

    path: str
    size: int
    modified_s: float | None = None  # seconds since 1970, where the store tells


class Store:
    """A root URL; every path given to it is relative to that root and uses `/`."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.options = dict(options or {})
        protocol = url.split("://", 1)[0] if "://" in url else "file"
        self.is_local = protocol in ("file", "local")
        self._upload: dict[str, Any] = {"chunksize": _PART_BYTES} if protocol == "s3" else {}
        extra = {} if self.is_local or protocol == "memory" else {"use_listings_cache": False, **self.options}
        self._fs, root = fsspec.core.url_to_fs(self.url, **extra)
        self._root = str(root).rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.url, self.options))

    def local_path(self, path: str) -> Path | None:
        """Return the path on the local disk, or None where the store is remote."""
        return Path(self._full(path)) if self.is_local else None

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def read_bytes(self, path: str) -> bytes:
        """Return a whole object; raises StorageError if it isn't there."""
        with self._explained("read", path):
            return cast(bytes, self._fs.cat_file(self._full(path)))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`; raises StorageError if the object is missing or shorter than that."""
        if length == 0:
            return b""
        with self._explained("read", path):
            data = cast(bytes, self._fs.cat_file(self._full(path), start=start, end=start + length))
        if len(data) != length:
            raise StorageError(f"{self.url}/{path}: wanted bytes {start}..{start + length}, got {len(data)} bytes")
        return data

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open an object for seeking and reading; remote objects are read ahead in blocks."""
        with self._explained("open", path), self._fs.open(self._full(path), "rb") as file:
            # fsspec's own remote files know no limit for readline, and read lines byte by byte.
            yield file if self.is_local else cast(IO[bytes], io.BufferedReader(file, _BUFFER_BYTES))

    @contextlib.contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """Give a path on the local disk that holds the object: itself, or a copy that is removed afterwards."""
        here = self.local_path(path)
        if here is not None:
            yield here
            return
        with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
            target = Path(folder) / path.rsplit("/", 1)[-1]
            with self._explained("copy", path):
                self._fs.get_file(self._full(path), str(target))
            yield target

    def files(self, prefix: str = "") -> list[Stored]:
        """Return every object below a folder, sorted by path; an absent folder is empty."""
        with self._explained("list", prefix):
            try:
                found = self._fs.find(self._full(prefix), detail=True)
            except FileNotFoundError:
                return []
        offset = len(self._root) + 1
        entries = [
            Stored(str(name)[offset:], int(info.get("size") or 0), _modified(info)) for name, info in found.items()
        ]
        return sorted(
            (e for e in entries if not e.path.rsplit("/", 1)[-1].startswith(_TEMPORARY)), key=lambda entry: entry.path
        )

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below a folder, sorted."""
        with self._explained("list", prefix):
            try:
                found = self._fs.ls(self._full(prefix), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(str(i["name"]).rstrip("/").rsplit("/", 1)[-1] for i in found if i["type"] == "directory")

    def exists(self, path: str) -> bool:
        """Say whether an object is there."""
        with self._explained("look for", path):
            return bool(self._fs.isfile(self._full(path)))

    def size(self, path: str) -> int:
        """Return an object's size in bytes; raises StorageError if it isn't there."""
        with self._explained("look at", path):
            return int(self._fs.size(self._full(path)))

    def delete(self, path: str) -> None:
        """Remove one object."""
        with self._explained("delete", path):
            self._fs.rm_file(self._full(path))

    def put(self, path: str, data: bytes) -> None:
        """Publish an object in one step, replacing what was there."""
        with self._explained("write", path):
            if self.is_local:
                self._publish_local(path, self._write_temporary(path, data), exclusive=False)
            else:
                self._fs.pipe_file(self._full(path), data)

    def put_exclusive(self, path: str, data: bytes) -> bool:
        """Publish an object unless one is there already; says whether this call did it."""
        with self._explained("write", path):
            if self.is_local:
                return self._publish_local(path, self._write_temporary(path, data), exclusive=True)
            try:
                self._fs.pipe_file(self._full(path), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put_file(self, path: str, staged: Path) -> None:
        """Publish a file written at `staged` (see `staging`), consuming it."""
        with self._explained("write", path):
            if self.is_local:
                _sync(staged)
                fault_point("storage:half-written")
                self._publish_local(path, staged, exclusive=False)
            else:
                self._fs.put_file(str(staged), self._full(path), callback=_UploadProgress(), **self._upload)
                staged.unlink()

    @contextlib.contextmanager
    def staging(self, folder: str) -> Iterator[Path]:
        """Give a path to write a large file at before `put_file`: in the target folder locally, else temporary."""
        if self.is_local:
            target = Path(self._full(folder)) / f"{_TEMPORARY}{uuid.uuid4().hex}"
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield target
            finally:
                target.unlink(missing_ok=True)
            return
        scratch = Path(tempfile.mkdtemp(prefix="tokenmill-"))
        try:
            yield scratch / "staged"
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write_temporary(self, path: str, data: bytes) -> Path:
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with temporary.open("wb") as file:
            file.write(data[: len(data) // 2])
            fault_point("storage:half-written")
            file.write(data[len(data) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def _publish_local(self, path: str, temporary: Path, *, exclusive: bool) -> bool:
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not exclusive:
            temporary.replace(target)
            _sync(target.parent)
            return True
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync(target.parent)
        return True

    @contextlib.contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"{self.url}/{path}: not there (cannot {verb} it)") from error
        except OSError as error:
            raise StorageError(f"{self.url}/{path}: cannot {verb} it: {error.strerror or error}") from error


_BUFFER_BYTES = 2**20
_PART_BYTES = 5 * 2**20  # the smallest part S3 takes; larger objects than twice this go up in parts


class _UploadProgress(fsspec.callbacks.Callback):  # type: ignore[misc]
    """Passes a fault point with every part of a multipart upload."""

    def relative_update(self, inc: int = 1) -> None:
        fault_point("storage:half-multipart")
        super().relative_update(inc)


def open_store(url: str, options: Mapping[str, Any] | None = None) -> Store:
    """Open the store at a URL or local path; nothing is created until something is written."""
    if "://" not in url:
        url = str(Path(url).expanduser().absolute())
    try:
        return Store(url, options)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{url}: no file system for it: {error}") from error


def _modified(info: Mapping[str, Any]) -> float | None:
    """Return when an object was last written: each file system has its own name and type for it."""
    for name in ("mtime", "LastModified", "last_modified", "updated"):
        value = info.get(name)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
