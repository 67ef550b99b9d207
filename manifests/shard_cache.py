"""Shards of a remote store on a local disk, shared by all processes of a machine.

A file is named by the digest of its content, which is taken while it comes: what has its final name is right, whoever
made it. Locks are `flock`, which the kernel frees with the process, so a killed download leaves a file that the next
one clears away. The bound holds for what is being downloaded, too: its room is reserved before the first byte. A file
that goes while another process has it open takes its room until that one closes it. No shared memory, no daemon.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenmill.errors import ManifestError, RecipeError
from tokenmill.faults import fault_point
from tokenmill.manifests.storage import Store

log = logging.getLogger(__name__)

_PART_BYTES = 8 * 2**20
_PARTIAL, _ENDING = ".part-", ".shard"
_POLL_S = 0.02
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class ShardCache:
    """A folder of at most `max_bytes` of shards; safe to use from several threads and processes.

    Raises RecipeError if the folder cannot be made or written to.
    """

    def __init__(self, store: Store, folder: Path, max_bytes: int) -> None:
        self._store, self.folder, self.max_bytes = store, folder, max_bytes
        self._full = threading.Event()
        self._fetched: dict[str, int] = {}
        self._warned = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / "lock-room", wanted=lambda: False):  # whoever holds it may take his time
                pass
        except OSError as error:
            raise RecipeError(f"train.loader.cache: {folder}: cannot write there ({error.strerror})") from error

    def path(self, sha256: str) -> Path:
        """Return where the shard of this digest lies, or would."""
        return self.folder / f"{sha256}{_ENDING}"

    def find(self, sha256: str) -> Path | None:
        """Return where the shard with this digest is, now the most recently used one; None if it isn't here."""
        return self.path(sha256) if self.touch(sha256) else None

    def touch(self, sha256: str) -> bool:
        """Say that a shard is in use; returns whether it is here."""
        try:
            os.utime(self.path(sha256))
        except FileNotFoundError:
            return False
        except OSError:  # another user's, or on a disk that became read-only: good to read, and the first to go
            return True
        return True

    def fetch(self, shard: str, sha256: str, *, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Download a shard unless it is here or on its way; says whether it is here now.

        Args:
            wanted: asked between parts and while another process downloads; False ends it.

        Raises:
            StorageError: the store does not give it. ManifestError: it is not what its digest says.
        """
        if self._full.is_set():
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # it may be removed at any time
            with _locked(self.folder / f"lock-{sha256[:2]}", wanted) as mine:
                return self.path(sha256).exists() or (mine and self._download(shard, sha256, wanted))
        except OSError as error:
            self.give_up(shard, error)
            return False

    def _download(self, shard: str, sha256: str, wanted: Callable[[], bool]) -> bool:
        size = self._store.size(shard)
        with self._reserved(size) as part:
            if part is None:
                return False
            digest = hashlib.sha256()
            with part.open("r+b") as file:
                for start in range(0, size, _PART_BYTES):
                    if not wanted():
                        return False
                    data = self._store.read_range(shard, start, min(_PART_BYTES, size - start))
                    digest.update(data)
                    file.write(data)
                    fault_point("cache:half-downloaded")
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != sha256:
                raise ManifestError(replaced_message(shard, size))
            with _locked(self.folder / "lock-room"):  # or who counts meanwhile may see it twice, or never
                part.replace(self.path(sha256))
        self._watch_for_thrashing(shard)
        return True

    @contextlib.contextmanager
    def _reserved(self, size: int) -> Iterator[Path | None]:
        """Give a file of that size to write to, gone afterwards unless renamed; None where there is no room for it."""
        part = self.folder / f"{_PARTIAL}{uuid.uuid4().hex}"
        with contextlib.ExitStack() as stack:
            with _locked(self.folder / "lock-room"):
                if not self._make_room(size):
                    yield None
                    return
                stack.callback(part.unlink, missing_ok=True)
                descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # held while it is written: whoever can take it knows us dead
                _allocate(descriptor, size)
            yield part

    def _make_room(self, size: int) -> bool:
        """Remove what killed downloads left and the least recently used shards until `size` more bytes fit."""
        if size > self.max_bytes:
            return False
        shards: list[tuple[int, int, Path]] = []
        used = 0
        for path, status in _files(self.folder):
            if path.name.startswith(_PARTIAL):
                used += 0 if _removed_if_dead(path) else status.st_size
            elif path.name.endswith(_ENDING):
                used += status.st_size
                shards.append((status.st_mtime_ns, status.st_size, path))
        shards.sort(reverse=True)
        while shards and used + size > self.max_bytes:
            _, freed, path = shards.pop()
            path.unlink(missing_ok=True)
            used -= freed
        return used + size <= self.max_bytes

    def give_up(self, shard: str, error: OSError) -> None:
        """Tell why a shard is not kept; where there is no room, once and for all."""
        if error.errno not in _NO_ROOM:
            log.warning("%s: %s is not kept (%s)", self.folder, shard, error.strerror)
        elif not self._full.is_set():
            self._full.set()
            log.warning(
                "%s: no shard is kept any more (%s); shards are read by ranges from now on", self.folder, error.strerror
            )

    def _watch_for_thrashing(self, shard: str) -> None:
        """Warn once when this process has to fetch what went out before: then the cache costs more than it saves."""
        times = self._fetched[shard] = self._fetched.get(shard, 0) + 1
        if times == 2 and not self._warned:
            self._warned = True
            log.warning(
                "%s: %s came a second time, so %d bytes hold fewer shards than are read by turns; raise "
                "train.loader.cache_bytes or leave the cache out", self.folder, shard, self.max_bytes,
            )  # fmt: skip


def replaced_message(shard: str, size: int) -> str:
    """Say that a shard is not the one that was planned with."""
    return (
        f"{shard}: its {size} bytes do not have the sha256 that the plan names: it was replaced or damaged; "
        'run "tokenmill verify --deep" on its folder, then plan again'
    )


@contextlib.contextmanager
def _locked(path: Path, wanted: Callable[[], bool] = lambda: True) -> Iterator[bool]:
    """Hold an exclusive lock for the block; gives False, without the lock, once it is not wanted any more."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _lock(descriptor, wanted)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wanted: Callable[[], bool]) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not wanted():
                return False
            time.sleep(_POLL_S)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                yield Path(entry.path), entry.stat(follow_symlinks=False)


def _removed_if_dead(part: Path) -> bool:
    """Remove a partial file unless the process that writes it lives, and so holds its lock."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError, PermissionError):
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        return True
    return not part.exists()


def _allocate(descriptor: int, size: int) -> None:
    """Take the room on the disk now, so that a full one is noticed before the download and not in its middle."""
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ESPIPE):
            raise
        os.ftruncate(descriptor, size)
