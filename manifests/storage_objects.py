"""Object stores (s3://, gs://, az://) through obstore's own functions.

Small requests take a tenth of the time they take with s3fs, large ones half of it (benchmarks/storage.py), and are
tried again by our own loop; uploads in parts keep at most 32 MiB in memory and are aborted when anything raises.
Records are created by a conditional PUT, or, where a store has none, by looking, writing and reading back.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, cast

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

from tokenmill.faults import fault_point
from tokenmill.manifests.storage_clients import Client, client_of, split_url
from tokenmill.manifests.storage_entries import Fetch, Stored, Unfinished, count
from tokenmill.manifests.storage_errors import ConflictError, ForkedProcessError, ShortReadError, fault_of
from tokenmill.manifests.storage_options import StorageOptions
from tokenmill.manifests.storage_ranges import RangedFile
from tokenmill.manifests.storage_uploads import abort_upload, list_uploads

if TYPE_CHECKING:
    _Pages: TypeAlias = "obstore.ListStream[Sequence[obstore.ObjectMeta]]"

log = logging.getLogger(__name__)

PART_BYTES = 8 * 2**20
_PARTS_AT_ONCE = 4
_DELETES_AT_ONCE = 16
_MOST_PARTS = 9_000  # S3 takes 10,000
_PAGE = 1000
_SETTLE_S = 1.0


class Objects:
    """The objects below a prefix of one bucket."""

    def __init__(self, url: str, options: StorageOptions) -> None:
        self._options = options
        self._bucket, self._root = split_url(url)
        self._found = client_of(self._bucket, self._options)  # unknown options are refused here and now

    @property
    def _client(self) -> Client:
        if self._found.process != os.getpid():
            raise ForkedProcessError
        return self._found

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root and path else self._root or path

    def _relative(self, full: str) -> str:
        return full[len(self._root) + 1 :] if self._root else full

    def read(self, path: str) -> bytes:
        client = self._client

        def attempt(_: int) -> bytes:
            count()
            return bytes(obstore.get(client.once, self._full(path)).bytes())

        data = client.patience("read", attempt)
        count(0, read=len(data))
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        client = self._client

        def attempt(_: int) -> bytes:
            count()
            return bytes(obstore.get_range(client.once, self._full(path), start=start, length=length))

        data = client.patience("read", attempt)
        count(0, read=len(data))
        return data

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        client = self._client
        starts, lengths = [start for start, _ in ranges], [length for _, length in ranges]

        def attempt(_: int) -> list[bytes]:
            count()
            found = obstore.get_ranges(client.once, self._full(path), starts=starts, lengths=lengths)
            return [bytes(data) for data in found]

        data = client.patience("read", attempt) if ranges else []
        count(0, read=sum(len(piece) for piece in data))
        return data

    @contextlib.contextmanager
    def open(self, path: str, fetch: Fetch) -> Iterator[IO[bytes]]:
        with RangedFile(fetch, self._size_of(path)) as raw:
            yield cast(IO[bytes], io.BufferedReader(raw, 2**18))

    def download(self, path: str, target: Path) -> None:
        size = self._size_of(path)
        starts = range(0, size, PART_BYTES)
        with target.open("wb") as file, ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            for first in range(0, len(starts), _PARTS_AT_ONCE):
                group = starts[first : first + _PARTS_AT_ONCE]
                lengths = [min(PART_BYTES, size - start) for start in group]
                for data, length in zip(
                    pool.map(self.read_range, [path] * len(group), group, lengths), lengths, strict=True
                ):
                    if len(data) != length:
                        raise ShortReadError
                    file.write(data)

    def files(self, prefix: str) -> Iterator[Stored]:
        for meta in self._list(prefix, ""):
            yield Stored(self._relative(meta["path"]), meta["size"], meta["last_modified"].timestamp())

    def names(self, prefix: str, after: str) -> Iterator[str]:
        return (self._relative(meta["path"]) for meta in self._list(prefix, after))

    def _list(self, prefix: str, after: str) -> Iterator[obstore.ObjectMeta]:
        """Yield what lies below a folder, sorted; a listing that breaks goes on behind the last name."""
        client, last = self._client, self._full(after) if after else ""
        while True:
            offset = last or None

            def first_page(_: int, offset: str | None = offset) -> tuple[_Pages, Sequence[obstore.ObjectMeta]]:
                count()
                stream = obstore.list(client.once, self._full(prefix) or None, offset=offset, chunk_size=_PAGE)
                return stream, next(stream, [])

            stream, page = client.patience("list", first_page)
            try:
                while page:
                    for meta in page:
                        if meta["path"] > last:  # some servers ignore where a listing shall begin
                            last = meta["path"]
                            yield meta
                    page = next(stream, [])
                    count()
                return
            except Exception as error:
                if not fault_of(error, "list").mends:
                    raise

    def folders(self, prefix: str) -> list[str]:
        client = self._client

        def attempt(_: int) -> list[str]:
            count()
            return list(obstore.list_with_delimiter(client.once, self._full(prefix) or None)["common_prefixes"])

        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in client.patience("list", attempt))

    def size(self, path: str) -> int | None:
        full = self._full(path)
        try:
            return self._size_of(path) if full else None
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    def _size_of(self, path: str) -> int:
        client = self._client

        def attempt(_: int) -> int:
            count()
            return obstore.head(client.once, self._full(path))["size"]

        return client.patience("read", attempt)

    def delete(self, paths: Sequence[str], *, missing_ok: bool) -> None:
        for first in range(0, len(paths), _PAGE):
            group = [self._full(path) for path in paths[first : first + _PAGE]]
            try:
                self._delete(group)
            except FileNotFoundError as error:
                if not missing_ok or "NoSuchBucket" in str(error):
                    raise
                # Where a request takes one object (gs), one that is gone ends it before others: each by itself.
                with ThreadPoolExecutor(_DELETES_AT_ONCE) as pool:
                    list(pool.map(self._delete_if_there, group))

    def _delete(self, group: Sequence[str]) -> None:
        """Ask for the removal of whole names; raises FileNotFoundError if one isn't there (alone: at first)."""
        client = self._client

        def attempt(number: int) -> None:
            count()
            try:
                obstore.delete(client.once, group)
            except FileNotFoundError:
                if number == 0 or len(group) > 1:  # a single one was removed by the try before, whose answer was lost
                    raise

        client.patience("delete", attempt)

    def _delete_if_there(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._delete([name])

    def put(self, path: str, data: bytes) -> None:
        client = self._client

        def attempt(_: int) -> None:
            count()
            obstore.put(client.once, self._full(path), data, use_multipart=False)

        client.patience("write", attempt)
        count(0, written=len(data))

    def create(self, path: str, data: bytes) -> bool:
        client = self._client

        def attempt(number: int) -> bool:
            count()
            try:
                obstore.put(client.once, self._full(path), data, mode="create")
            except (AlreadyExistsError, PreconditionError) as error:
                if _is_conflict(error) and self.size(path) is None:
                    raise ConflictError from None  # two at once, and neither was taken
                # An answer that got lost may have been ours: then the object is there, with our bytes.
                return number > 0 and self.read(path) == data
            return True

        if client.conditional:
            try:
                created = client.patience("write", attempt)
                count(0, written=len(data))
                return created
            except Exception as error:
                if not _lacks_conditions(error):
                    raise
                log.warning(
                    "%s: no conditional PUT there; records are written by look, put and read back", self._bucket
                )
                client.conditional = False
        return self._create_by_looking(path, data)

    def _create_by_looking(self, path: str, data: bytes) -> bool:
        """Create where the store has no conditions: the last of two racing writers stands, and both learn who it is.

        A writer that looked before another's object came has a second to write its own; only then is it read back.
        """
        if self.size(path) is not None:
            return False
        self.put(path, data)
        time.sleep(_SETTLE_S)
        return self.read(path) == data

    def upload(self, path: str, staged: Path) -> None:
        client, size = self._client, staged.stat().st_size
        if size <= PART_BYTES:
            self.put(path, staged.read_bytes())
        else:
            part = max(PART_BYTES, -(-size // _MOST_PARTS))

            def attempt(_: int) -> None:
                count(2)
                chunks = _chunks(staged, part)
                obstore.put(client.stubborn, self._full(path), chunks, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)

            client.patience("write", attempt)
        staged.unlink()

    @contextlib.contextmanager
    def staging(self, folder: str) -> Iterator[Path]:
        scratch = Path(tempfile.mkdtemp(prefix="tokenmill-"))
        try:
            yield scratch / "staged"
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def unfinished(self) -> list[Unfinished]:
        found = self._client.patience("list", lambda _: list_uploads(self._bucket, self._root, self._options))
        return [Unfinished(self._relative(name), upload, started, None) for name, upload, started in found]

    def abandon(self, unfinished: Unfinished) -> None:
        full = self._full(unfinished.path)
        self._client.patience("delete", lambda _: abort_upload(self._bucket, full, unfinished.id, self._options))


def _chunks(staged: Path, part: int) -> Iterator[bytes]:
    """Yield a file in parts; each passes a fault point once the one before has been taken."""
    with staged.open("rb") as file:
        while data := file.read(part):
            count(written=len(data))
            yield data
            fault_point("storage:half-multipart")


def _is_conflict(error: Exception) -> bool:
    """Tell S3's 409 (requests for one name met: try again) from 412 (the name is taken); the client calls both so."""
    return "status code: 409" in str(error)


def _lacks_conditions(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, NotSupportedError) or "status code: 501" in text or "<Code>NotImplemented" in text
