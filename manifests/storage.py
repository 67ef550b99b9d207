"""The one door to storage: local folders, s3://, gs://, az://, and whatever else fsspec knows.

Two ways to publish, both atomic: `put` (last writer wins, used for data whose name carries its digest) and
`put_exclusive` (first writer wins, used for commit records). Nothing is ever visible half-written. Whatever a library
raises becomes a StorageError of one line; what the door adds costs under 10 % of a bare client (benchmarks/storage.py).
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from tokenmill.errors import OutageError, StorageError, TokenmillError
from tokenmill.manifests.storage_entries import Backend, Stored, Traffic, Unfinished, traffic
from tokenmill.manifests.storage_errors import ForkedProcessError, fault_of
from tokenmill.manifests.storage_local import LocalFiles
from tokenmill.manifests.storage_options import StorageOptions, parse_options

__all__ = ["Store", "Stored", "Traffic", "Unfinished", "open_store", "traffic"]
_NATIVE = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl")


class Store:
    """A root URL; every path given to it is relative to that root and uses `/`.

    What only reads also takes a whole URL for a path: archives and indexes of others are read where they lie. They are
    reached with the same options.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.options = dict(options or {})
        protocol = url.split("://", 1)[0] if "://" in url else "file"
        self.is_local = protocol in ("file", "local")
        self._backend = _backend(self.url, protocol, parse_options(self.options))
        self._elsewhere: dict[str, Backend] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.url, self.options))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def local_path(self, path: str) -> Path | None:
        """Return the path on the local disk, or None where the store is remote."""
        backend, place = self._at(path)
        return backend.place(place) if isinstance(backend, LocalFiles) else None

    def read_bytes(self, path: str) -> bytes:
        """Return a whole object; raises StorageError if it isn't there."""
        with self._explained("read", path):
            backend, place = self._at(path)
            return backend.read(place)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`; raises StorageError if the object is missing or shorter than that."""
        if length == 0:
            return b""
        with self._explained("read", path):
            backend, place = self._at(path)
            data = backend.read_range(place, start, length)
        self._check(path, start, length, data)
        return data

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several (start, length), neighbours in one request; raises as `read_range`."""
        wanted = [(start, length) for start, length in ranges if length]
        with self._explained("read", path):
            backend, place = self._at(path)
            found = iter(backend.read_ranges(place, wanted))
        pieces = [next(found) if length else b"" for _, length in ranges]
        for (start, length), data in zip(ranges, pieces, strict=True):
            self._check(path, start, length, data)
        return pieces

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open an object for seeking and reading; remote objects are read ahead in growing blocks."""
        with contextlib.ExitStack() as stack:
            with self._explained("open", path):
                backend, place = self._at(path)
                file = stack.enter_context(backend.open(place, partial(self.read_range, path)))
            yield file  # what the caller raises meanwhile is the caller's: remote reads explain their own faults

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
                backend, place = self._at(path)
                backend.download(place, target)
            yield target

    def files(self, prefix: str = "") -> list[Stored]:
        """Return every object below a folder, sorted by path; an absent folder is empty."""
        with self._explained("list", prefix):
            backend, place = self._at(prefix)
            found = sorted(backend.files(place), key=lambda entry: entry.path)
        if backend is self._backend:
            return found
        root = _with_slash(prefix.removesuffix(place))
        return [replace(entry, path=f"{root}{entry.path}") for entry in found]

    def names(self, prefix: str = "", after: str = "") -> Iterator[str]:
        """Yield the paths below a folder in their order, from behind the path `after` on, without their sizes."""
        with self._explained("list", prefix):
            backend, place = self._at(prefix)
            if backend is self._backend:
                yield from backend.names(place, after)
            else:
                root = _with_slash(prefix.removesuffix(place))
                yield from (f"{root}{name}" for name in backend.names(place, after.removeprefix(root)))

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below a folder, sorted."""
        with self._explained("list", prefix):
            return self._backend.folders(prefix)

    def exists(self, path: str) -> bool:
        """Say whether an object is there."""
        with self._explained("look for", path):
            backend, place = self._at(path)
            return backend.size(place) is not None

    def size(self, path: str) -> int:
        """Return an object's size in bytes; raises StorageError if it isn't there."""
        with self._explained("look at", path):
            backend, place = self._at(path)
            size = backend.size(place)
        if size is None:
            raise StorageError(f"{self._name(path)}: not there (cannot look at it)")
        return size

    def delete(self, path: str) -> None:
        """Remove one object."""
        with self._explained("delete", path):
            self._backend.delete([path], missing_ok=False)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Remove objects, many a request where the store can; those that are gone already are no fault."""
        with self._explained("delete", ""):
            self._backend.delete(list(paths), missing_ok=True)

    def put(self, path: str, data: bytes) -> None:
        """Publish an object in one step, replacing what was there."""
        with self._explained("write", path):
            self._backend.put(path, data)

    def put_exclusive(self, path: str, data: bytes) -> bool:
        """Publish an object unless one is there already; says whether this call did it."""
        with self._explained("write", path):
            return self._backend.create(path, data)

    def put_file(self, path: str, staged: Path) -> None:
        """Publish a file written at `staged` (see `staging`), consuming it."""
        with self._explained("write", path):
            self._backend.upload(path, staged)

    @contextlib.contextmanager
    def staging(self, folder: str) -> Iterator[Path]:
        """Give a path to write a large file at before `put_file`: in the target folder locally, else temporary."""
        with contextlib.ExitStack() as stack:
            with self._explained("write", folder):
                staged = stack.enter_context(self._backend.staging(folder))
            yield staged

    def unfinished(self) -> list[Unfinished]:
        """Return what was begun below the root and never published: temporary files, multipart uploads (S3)."""
        with self._explained("list", ""):
            return self._backend.unfinished()

    def abandon(self, unfinished: Unfinished) -> None:
        """Remove one of those for good; whoever still writes it fails."""
        with self._explained("delete", unfinished.path):
            self._backend.abandon(unfinished)

    def _check(self, path: str, start: int, length: int, data: bytes) -> None:
        if len(data) != length:
            raise StorageError(f"{self._name(path)}: wanted bytes {start}..{start + length}, got {len(data)} bytes")

    def _at(self, path: str) -> tuple[Backend, str]:
        """Return what a path is reached through, and its name there: a whole URL has a backend of its own."""
        if "://" not in path:
            return self._backend, path
        protocol, _, rest = path.partition("://")
        host, _, name = rest.partition("/")
        key = f"{protocol}://{host}"
        if key not in self._elsewhere:
            self._elsewhere[key] = _backend(key, protocol, parse_options(self.options))
        return self._elsewhere[key], name

    def _name(self, path: str) -> str:
        """Return a path as people know it."""
        return path if "://" in path else f"{self.url}/{path}".rstrip("/")

    def _explained(self, verb: str, path: str) -> _Explained:
        return _Explained(self, verb, path)

    def _fault(self, verb: str, path: str, error: Exception, spent_s: float) -> StorageError:
        fault = fault_of(error, verb)
        place = self._name(path)
        if fault.missing:
            return StorageError(f"{place}: not there (cannot {verb} it)")
        if fault.mends:
            tried = f"given up after {spent_s:.0f} s" if spent_s >= 1 else "it did not answer before either"
            again = f"{tried}; run it again when the store is back, it resumes"
            return OutageError(f"{place}: cannot {verb} it: {fault.why}; {again}")
        kind = OutageError if fault.everywhere else StorageError
        return kind(f"{place}: cannot {verb} it: {fault.why}")


class _Explained:
    """Turns what a library raises into a StorageError; a class, since a generator would take 3 µs a request."""

    __slots__ = ("_path", "_started", "_store", "_verb")

    def __init__(self, store: Store, verb: str, path: str) -> None:
        self._store, self._verb, self._path = store, verb, path

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, TokenmillError | MemoryError):
            return
        # Text of remote libraries may carry signed URLs: the chain ends here except for files on disk.
        fault = self._store._fault(self._verb, self._path, error, time.monotonic() - self._started)
        raise fault from (error if self._store.is_local else None)


def _with_slash(url: str) -> str:
    return url if url.endswith("/") else f"{url}/"


def open_store(url: str, options: Mapping[str, Any] | None = None) -> Store:
    """Open the store at a URL or local path; nothing is created until something is written.

    Raises:
        RecipeError: an option is unknown or has a wrong value. StorageError: there is no library for the protocol.
    """
    if "://" not in url:
        url = str(Path(url).expanduser().absolute())
    try:
        return Store(url, options)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{url}: no file system for it: {error}") from error
    except ForkedProcessError as error:
        raise StorageError(f"{url}: {fault_of(error, 'open').why}") from None


def _backend(url: str, protocol: str, options: StorageOptions) -> Backend:
    """Choose what talks to a URL: local disks are our own matter, object stores obstore's, all the rest fsspec's."""
    if protocol in ("file", "local"):
        return LocalFiles(url.partition("://")[2] if "://" in url else url)
    if options.backend == "obstore" and protocol not in _NATIVE:
        raise StorageError(f"{url}: obstore is for {', '.join(_NATIVE)}; leave storage.backend out")
    if protocol in _NATIVE and options.backend != "fsspec":
        from tokenmill.manifests.storage_objects import Objects

        return Objects(url, options)
    from tokenmill.manifests.storage_fsspec import FsspecFiles

    return FsspecFiles(url, options)
