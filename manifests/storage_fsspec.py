"""Every other protocol (memory://, hf://, sftp://, https://, …), and any at all on demand, through fsspec.

What the file system behind it promises is what one gets: a write replaces in one step where it does, and `create` falls
back on looking first where it knows no exclusive mode. About ten times slower a small request than obstore on S3.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from tokenmill.faults import fault_point
from tokenmill.manifests.storage_entries import TEMPORARY, Fetch, Stored, Unfinished, count
from tokenmill.manifests.storage_errors import ShortReadError
from tokenmill.manifests.storage_options import S3_CREDENTIALS, StorageOptions
from tokenmill.manifests.storage_ranges import RangedFile
from tokenmill.manifests.storage_retry import Patience

_PART_BYTES = 5 * 2**20  # the smallest part S3 takes; larger objects than twice this go up in parts


class FsspecFiles:
    """The files below a folder of one of fsspec's file systems."""

    def __init__(self, url: str, options: StorageOptions) -> None:
        protocol = url.partition("://")[0]
        self._upload: dict[str, Any] = {"chunksize": _PART_BYTES} if protocol in ("s3", "s3a") else {}
        extra = {} if protocol == "memory" else {"use_listings_cache": False, **_arguments(protocol, options)}
        self._fs, root = fsspec.core.url_to_fs(url, **extra)
        self._root = str(root).rstrip("/")
        self._patience = Patience(retries=options.retries, total_s=options.retry_timeout_s)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _call(self, verb: str, method: str, *arguments: Any, **options: Any) -> Any:
        def attempt(_: int) -> Any:
            count()
            return getattr(self._fs, method)(*arguments, **options)

        return self._patience(verb, attempt)

    def read(self, path: str) -> bytes:
        data = cast(bytes, self._call("read", "cat_file", self._full(path)))
        count(0, read=len(data))
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        data = cast(bytes, self._call("read", "cat_file", self._full(path), start=start, end=start + length))
        count(0, read=len(data))
        return data

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read_range(path, start, length) for start, length in ranges]

    @contextlib.contextmanager
    def open(self, path: str, fetch: Fetch) -> Iterator[IO[bytes]]:
        size = self._call("open", "size", self._full(path))
        if size is None:  # a server that does not tell: only reading straight on is sure to work
            with self._fs.open(self._full(path), "rb") as file:
                yield cast(IO[bytes], io.BufferedReader(file, 2**20))
            return
        with RangedFile(fetch, int(size)) as raw:
            yield cast(IO[bytes], io.BufferedReader(raw, 2**18))

    def download(self, path: str, target: Path) -> None:
        self._call("copy", "get_file", self._full(path), str(target))
        size = self._call("look at", "size", self._full(path))
        if size is not None and target.stat().st_size != size:
            raise ShortReadError
        count(0, read=target.stat().st_size)

    def files(self, prefix: str) -> Iterator[Stored]:
        try:
            found = self._call("list", "find", self._full(prefix), detail=True)
        except FileNotFoundError:
            return
        offset = len(self._root) + 1
        for name, info in sorted(found.items()):
            if not str(name).rsplit("/", 1)[-1].startswith(TEMPORARY):
                yield Stored(str(name)[offset:], int(info.get("size") or 0), _modified(info))

    def names(self, prefix: str, after: str) -> Iterator[str]:
        return (entry.path for entry in self.files(prefix) if entry.path > after)

    def folders(self, prefix: str) -> list[str]:
        try:
            found = self._call("list", "ls", self._full(prefix), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(i["name"]).rstrip("/").rsplit("/", 1)[-1] for i in found if i["type"] == "directory")

    def size(self, path: str) -> int | None:
        if not self._call("look for", "isfile", self._full(path)):
            return None
        return int(self._call("look at", "size", self._full(path)))

    def delete(self, paths: Sequence[str], *, missing_ok: bool) -> None:
        for path in paths:
            with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])):
                self._call("delete", "rm_file", self._full(path))

    def put(self, path: str, data: bytes) -> None:
        self._call("write", "pipe_file", self._full(path), data)
        count(0, written=len(data))

    def create(self, path: str, data: bytes) -> bool:
        def attempt(number: int) -> bool:
            count()
            try:
                self._fs.pipe_file(self._full(path), data, mode="create")
            except FileExistsError:
                return number > 0 and self.read(path) == data
            return True

        created = self._patience("write", attempt)
        count(0, written=len(data))
        return created

    def upload(self, path: str, staged: Path) -> None:
        size = staged.stat().st_size
        self._call("write", "put_file", str(staged), self._full(path), callback=_UploadProgress(), **self._upload)
        count(0, written=size)
        staged.unlink()

    @contextlib.contextmanager
    def staging(self, folder: str) -> Iterator[Path]:
        scratch = Path(tempfile.mkdtemp(prefix="tokenmill-"))
        try:
            yield scratch / "staged"
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def unfinished(self) -> list[Unfinished]:
        return []

    def abandon(self, unfinished: Unfinished) -> None:
        raise NotImplementedError(f"no leftovers are known here: {unfinished.path}")


class _UploadProgress(fsspec.callbacks.Callback):  # type: ignore[misc]
    """Passes a fault point with every part of a multipart upload."""

    def relative_update(self, inc: int = 1) -> None:
        fault_point("storage:half-multipart")
        super().relative_update(inc)


def _arguments(protocol: str, options: StorageOptions) -> dict[str, Any]:
    """Return what the file system's constructor takes; only S3's names for the documented keys are known here."""
    if protocol not in ("s3", "s3a"):
        return dict(options.library)
    back = {ours: theirs for theirs, ours in S3_CREDENTIALS.items()}
    found = {back.get(key, key): value for key, value in options.library.items()}
    if options.endpoint:
        found["endpoint_url"] = options.endpoint
    if options.region:
        found["client_kwargs"] = {"region_name": options.region}
    if options.profile:
        found["profile"] = options.profile
    timeouts = {"connect_timeout": options.timeout_s, "read_timeout": options.timeout_s, "retries": {"max_attempts": 1}}
    return {"anon": options.anonymous, "config_kwargs": timeouts, **found}


def _modified(info: Mapping[str, Any]) -> float | None:
    """Return when an object was last written: each file system has its own name and type for it."""
    for name in ("mtime", "LastModified", "last_modified", "updated"):
        value = info.get(name)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
    return None
