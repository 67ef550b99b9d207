"""The local cache of shards: bounded, whole or not there, one download a node, whatever dies or runs full meanwhile."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.recording_proxy import RecordingProxy

from tokenmill.errors import ManifestError, RecipeError, StorageError
from tokenmill.manifests.shard_cache import ShardCache
from tokenmill.manifests.storage import Store, open_store

SHARD_BYTES = 100_000
NAMES = [f"tokenize/words/{number}.tar" for number in range(4)]
FETCH = """
import sys
from pathlib import Path
from tokenmill.manifests.shard_cache import ShardCache
from tokenmill.manifests.storage import open_store
url, options, folder, room, *shards = sys.argv[1:]
cache = ShardCache(open_store(url, eval(options)), Path(folder), int(room))
print("ready", flush=True)
sys.stdin.readline()
for shard in shards:
    assert cache.fetch(*shard.split("=")), shard
"""


def content(name: str, size: int = SHARD_BYTES) -> bytes:
    return hashlib.sha256(name.encode()).digest() * (size // 32)


def digest(name: str, size: int = SHARD_BYTES) -> str:
    return hashlib.sha256(content(name, size)).hexdigest()


def fill(store: Store, size: int = SHARD_BYTES) -> Store:
    for name in NAMES:
        store.put(name, content(name, size))
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return fill(open_store(str(tmp_path / "store")))


def held(folder: Path) -> list[str]:
    """Which shards a folder holds, and what else there is besides locks."""
    by_digest = {f"{digest(name)}.shard": name for name in NAMES}
    return sorted(by_digest.get(path.name, path.name) for path in folder.iterdir() if "lock-" not in path.name)


def downloader(store: Store, folder: Path, *names: str, size: int = SHARD_BYTES, **env: str) -> subprocess.Popen[str]:
    shards = [f"{name}={digest(name, size)}" for name in names]
    command = [sys.executable, "-c", FETCH, store.url, repr(store.options), str(folder), str(2**30), *shards]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | env)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_fetched_shard_is_whole_and_found_by_its_digest(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(store, tmp_path / "cache", 2**30)

    assert cache.find(digest(NAMES[0])) is None
    assert cache.fetch(NAMES[0], digest(NAMES[0]))
    path = cache.find(digest(NAMES[0]))

    assert path is not None and path.read_bytes() == content(NAMES[0])
    assert held(cache.folder) == [NAMES[0]]


def test_least_recently_used_shard_goes_first(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(store, tmp_path / "cache", 3 * SHARD_BYTES)
    for name in NAMES[:3]:
        assert cache.fetch(name, digest(name))
    assert cache.touch(digest(NAMES[0]))

    assert cache.fetch(NAMES[3], digest(NAMES[3]))

    assert held(cache.folder) == [NAMES[0], NAMES[2], NAMES[3]]


def test_shard_larger_than_the_cache_is_left_to_ranges_and_throws_nothing_out(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(store, tmp_path / "cache", SHARD_BYTES)
    assert cache.fetch(NAMES[0], digest(NAMES[0]))
    store.put("large.tar", b"x" * (SHARD_BYTES + 1))

    assert not cache.fetch("large.tar", hashlib.sha256(b"x" * (SHARD_BYTES + 1)).hexdigest())

    assert held(cache.folder) == [NAMES[0]]


def test_bound_holds_while_several_threads_download(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(store, tmp_path / "cache", 2 * SHARD_BYTES)
    threads = [
        threading.Thread(target=lambda name=name: cache.fetch(name, digest(name))) for name in NAMES for _ in range(3)
    ]
    most = 0

    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with (cache.folder / "lock-room").open() as lock:  # nothing comes or goes while it is held
            fcntl.flock(lock, fcntl.LOCK_EX)
            most = max(most, sum(path.stat().st_size for path in cache.folder.iterdir()))

    assert 0 < most <= 2 * SHARD_BYTES
    assert len(held(cache.folder)) == 2 and set(held(cache.folder)) < set(NAMES)


def test_shard_that_was_replaced_is_refused_by_name_and_not_kept(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(store, tmp_path / "cache", 2**30)
    store.put(NAMES[0], content(NAMES[1]))

    with pytest.raises(ManifestError, match=rf"{NAMES[0]}: its {SHARD_BYTES} bytes do not have the sha256 .* replaced"):
        cache.fetch(NAMES[0], digest(NAMES[0]))

    assert held(cache.folder) == []


def test_shard_that_vanished_is_a_storage_error(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(store, tmp_path / "cache", 2**30)
    store.delete(NAMES[0])

    with pytest.raises(StorageError, match=f"{NAMES[0]}: not there"):
        cache.fetch(NAMES[0], digest(NAMES[0]))


def test_killed_download_counts_for_nothing_and_is_cleared_away(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    killed = downloader(store, folder, NAMES[0], TOKENMILL_FAULT="cache:half-downloaded")
    killed.communicate("go\n")
    assert killed.returncode == -9
    (left,) = held(folder)
    cache = ShardCache(store, folder, SHARD_BYTES)  # no room for both: what was left has to go

    assert left.startswith(".part-")
    assert cache.find(digest(NAMES[0])) is None
    assert cache.fetch(NAMES[0], digest(NAMES[0]))
    assert held(folder) == [NAMES[0]]


def test_download_of_a_process_that_lives_is_not_cleared_away(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    frozen = downloader(store, folder, NAMES[0], TOKENMILL_FAULT="cache:half-downloaded=hang")
    assert frozen.stdin is not None
    frozen.stdin.write("go\n")
    frozen.stdin.flush()
    deadline = time.monotonic() + 20
    while not held(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    cache = ShardCache(store, folder, 2 * SHARD_BYTES)

    try:
        assert cache.fetch(NAMES[1], digest(NAMES[1]))  # fits beside what is reserved
        assert cache.fetch(NAMES[2], digest(NAMES[2]))  # does not: a shard that is whole goes
        tries = iter([True, True, False])
        assert not cache.fetch(NAMES[0], digest(NAMES[0]), wanted=lambda: next(tries))  # the other's, who lives
        assert [name for name in held(folder) if not name.startswith(".part-")] == [NAMES[2]]
        assert len(held(folder)) == 2
    finally:
        frozen.kill()
        frozen.communicate()
    assert cache.fetch(NAMES[0], digest(NAMES[0]))  # the kernel freed the lock


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may be longer: a limit the kernel keeps, as it does that of a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_warned_of_once_and_leaves_nothing(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(store, tmp_path / "cache", 2**30)

    with largest_file(SHARD_BYTES // 2), caplog.at_level(logging.WARNING):
        assert not cache.fetch(NAMES[0], digest(NAMES[0]))
        assert not cache.fetch(NAMES[1], digest(NAMES[1]))

    assert held(cache.folder) == []
    assert [record.getMessage() for record in caplog.records if "no shard is kept any more" in record.getMessage()] == [
        record.getMessage() for record in caplog.records
    ]
    assert len(caplog.records) == 1


def test_cache_too_small_for_what_is_read_by_turns_is_warned_of_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(store, tmp_path / "cache", SHARD_BYTES)

    with caplog.at_level(logging.WARNING):
        for name in NAMES * 3:
            assert cache.fetch(name, digest(name))

    assert len(caplog.records) == 1
    assert "raise train.loader.cache_bytes" in caplog.text


def test_folder_that_was_removed_meanwhile_is_made_again(store: Store, tmp_path: Path) -> None:
    cache = ShardCache(store, tmp_path / "cache", 2**30)
    assert cache.fetch(NAMES[0], digest(NAMES[0]))
    shutil.rmtree(cache.folder)

    assert cache.find(digest(NAMES[0])) is None
    assert cache.fetch(NAMES[1], digest(NAMES[1]))
    assert held(cache.folder) == [NAMES[1]]


def test_folder_that_cannot_be_made_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(RecipeError, match=r"train.loader.cache: .*file/cache: cannot write there"):
        ShardCache(store, tmp_path / "file" / "cache", 2**30)


@pytest.mark.s3
def test_two_processes_at_once_download_each_shard_once(s3_server, tmp_path: Path) -> None:
    size = 9 * 2**20  # two parts
    store = fill(open_store(s3_server.new_root(), s3_server.options), size)
    with RecordingProxy(s3_server.endpoint) as proxy:
        through = open_store(store.url, {**store.options, "endpoint_url": proxy.endpoint})
        processes = [downloader(through, tmp_path / "cache", *NAMES, size=size) for _ in range(2)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait() for process in processes] == [0, 0]
        for process in processes:
            process.communicate()

        assert len(proxy.reads(".tar")) == 2 * len(NAMES)

    for name in NAMES:
        assert (tmp_path / "cache" / f"{digest(name, size)}.shard").read_bytes() == content(name, size)


@pytest.mark.s3
def test_faults_on_the_way_never_leave_a_wrong_shard(s3_server, tmp_path: Path) -> None:
    store = fill(open_store(s3_server.new_root(), s3_server.options))
    with RecordingProxy(s3_server.endpoint, rate=0.4, seed=2, kinds=["truncate", "reset", "503"]) as proxy:
        through = open_store(store.url, {**store.options, "endpoint_url": proxy.endpoint, "timeout_s": 0.4})
        cache = ShardCache(through, tmp_path / "cache", 2**30)
        for name in NAMES:
            assert cache.fetch(name, digest(name))
        assert sum(proxy.hits.values()) > 0

    for name in NAMES:
        assert cache.path(digest(name)).read_bytes() == content(name)
