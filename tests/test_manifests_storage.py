"""The storage module's promises, on a local disk, in memory and on a real S3 server over HTTP."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tokenmill.errors import StorageError
from tokenmill.manifests.storage import Store, open_store

REMOTE = [pytest.param("s3", marks=pytest.mark.s3), pytest.param("gs", marks=pytest.mark.s3)]
KINDS = ["local", "memory", *REMOTE, pytest.param("s3-fsspec", marks=pytest.mark.s3)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "root"))
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}")
    return _remote(request, request.param)


def _remote(request: pytest.FixtureRequest, kind: str) -> Store:
    server = request.getfixturevalue("gcs_server" if kind == "gs" else "s3_server")
    more = {"backend": "fsspec"} if kind == "s3-fsspec" else {}
    return open_store(server.new_root(), {**server.options, **more})


def test_put_then_read_returns_the_same_bytes(store):
    store.put("a/b/c.bin", b"hello")
    assert store.read_bytes("a/b/c.bin") == b"hello"
    assert store.size("a/b/c.bin") == 5
    assert store.exists("a/b/c.bin") and not store.exists("a/b")


def test_put_twice_keeps_the_last(store):
    store.put("x", b"first")
    store.put("x", b"second, longer")
    assert store.read_bytes("x") == b"second, longer"


def test_put_exclusive_twice_keeps_the_first(store):
    assert store.put_exclusive("commits/u.0.json", b"first")
    assert not store.put_exclusive("commits/u.0.json", b"second")
    assert store.read_bytes("commits/u.0.json") == b"first"


@pytest.mark.parametrize("kind", ["local", *REMOTE])
def test_put_exclusive_from_eight_writers_at_once_has_one_winner(kind, request, tmp_path):
    store = open_store(str(tmp_path / "root")) if kind == "local" else _remote(request, kind)
    stores = [pickle.loads(pickle.dumps(store)) for _ in range(8)]

    def write(number: int) -> bool:
        return stores[number].put_exclusive("record.json", f"writer {number}".encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert stores[0].read_bytes("record.json") == f"writer {won.index(True)}".encode()


def test_read_range_returns_exactly_the_range(store):
    store.put("r", bytes(range(100)))
    assert store.read_range("r", 10, 5) == bytes(range(10, 15))
    assert store.read_range("r", 99, 1) == b"c"
    assert store.read_range("r", 50, 0) == b""


def test_read_range_beyond_the_end_raises_and_names_the_file(store):
    store.put("short", b"12345")
    with pytest.raises(StorageError, match="short"):
        store.read_range("short", 3, 5)
    with pytest.raises(StorageError, match="short"):
        store.read_range("short", 10, 2)


def test_missing_object_raises_and_names_the_file(store):
    store.put("there", b"1")
    for read in (
        store.read_bytes,
        store.size,
        lambda name: store.read_range(name, 0, 1),
        lambda name: store.read_ranges(name, [(0, 1)]),
    ):
        with pytest.raises(StorageError, match="not-there"):
            read("not-there")
    with pytest.raises(StorageError, match="not-there"), store.open("not-there") as file:
        file.read()


def test_files_lists_all_below_a_prefix_sorted_with_sizes(store):
    for name in ("p/b", "p/a/x", "p/a/y", "q"):
        store.put(name, name.encode())
    assert [(entry.path, entry.size) for entry in store.files("p")] == [("p/a/x", 5), ("p/a/y", 5), ("p/b", 3)]
    assert [entry.path for entry in store.files()] == ["p/a/x", "p/a/y", "p/b", "q"]
    assert store.files("absent") == []


def test_names_come_in_the_order_of_their_whole_paths_from_behind_a_given_one(store):
    paths = sorted(["p/a-b/x", "p/a/x", "p/a/y", "p/a.c", "p/b", "q"])
    for path in paths:
        store.put(path, b"1")
    assert list(store.names()) == paths
    assert list(store.names("p")) == paths[:-1]
    for number, path in enumerate(paths):
        assert list(store.names("", path)) == paths[number + 1 :]
    assert list(store.names("p", "p/a/x")) == ["p/a/y", "p/b"]
    assert list(store.names("absent")) == []


def test_read_ranges_gives_each_range_and_refuses_what_is_not_there(store):
    store.put("r", bytes(range(200)))
    found = store.read_ranges("r", [(100, 5), (0, 3), (50, 0), (102, 2)])
    assert found == [bytes(range(100, 105)), b"\0\1\2", b"", b"fg"]
    assert store.read_ranges("r", []) == []
    with pytest.raises(StorageError, match="r: wanted bytes 190"):
        store.read_ranges("r", [(0, 1), (190, 20)])


def test_open_reads_a_large_object_straight_on_and_in_jumps(store):
    data = bytes(range(256)) * 4096 * 3  # 3 MiB: several growing blocks
    store.put("o", data)
    with store.open("o") as file:
        assert b"".join(iter(lambda: file.read(100_000), b"")) == data
        file.seek(-10, 2)
        assert file.read() == data[-10:]
        file.seek(1_000_000)
        assert file.read(7) == data[1_000_000:1_000_007]


def test_delete_many_removes_all_and_takes_no_offence_at_those_gone(store):
    for name in ("a/1", "a/2", "b"):
        store.put(name, b"1")
    store.delete_many(["a/1", "gone", "b"])
    assert list(store.names()) == ["a/2"]
    many = [f"c/{number:02}" for number in range(60)]
    for name in many[::2]:
        store.put(name, b"1")
    store.delete_many(many)  # a store that takes one object a request meets those gone between the others
    assert list(store.names()) == ["a/2"]
    store.delete_many(["gone"])
    store.delete_many([])


def test_folders_lists_only_those_directly_below(store):
    for name in ("p/one/x", "p/two/deep/y", "p/file"):
        store.put(name, b"1")
    assert store.folders("p") == ["one", "two"]
    assert store.folders("absent") == []


def test_listing_sees_what_another_store_object_wrote(store):
    assert store.files("late") == []
    pickle.loads(pickle.dumps(store)).put("late/file", b"1")
    assert [entry.path for entry in store.files("late")] == ["late/file"]


def test_open_seeks_and_reads(store):
    store.put("o", bytes(range(200)))
    with store.open("o") as file:
        file.seek(150)
        assert file.read(10) == bytes(range(150, 160))
        file.seek(0)
        assert file.read() == bytes(range(200))


def test_staged_file_appears_only_when_published(store):
    with store.staging("folder") as staged:
        staged.write_bytes(b"x" * 1000)
        assert store.files("folder") == []
        store.put_file("folder/data.tar", staged)
    assert [(entry.path, entry.size) for entry in store.files("folder")] == [("folder/data.tar", 1000)]


def test_local_copy_gives_the_bytes_on_disk(store):
    store.put("folder/clip.mp4", b"frames")
    with store.local_copy("folder/clip.mp4") as path:
        assert path.read_bytes() == b"frames"
    assert store.exists("folder/clip.mp4")


def test_delete_removes_one_object(store):
    store.put("one", b"1")
    store.put("two", b"2")
    store.delete("one")
    assert [entry.path for entry in store.files()] == ["two"]


def test_store_of_an_unknown_protocol_raises_storage_error():
    with pytest.raises(StorageError, match="nosuch"):
        open_store("nosuch://place")


def test_local_root_that_cannot_be_written_raises_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        open_store(str(tmp_path / "file")).put("x", b"1")


RACE = """
import sys
from tokenmill.manifests.storage import open_store
store = open_store(sys.argv[1])
sys.stdin.read(1)
print(sum(store.put_exclusive(f'commits/{number}', sys.argv[2].encode()) for number in range(50)))
"""


def test_racing_processes_on_a_local_disk_have_one_winner_a_record(tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    racers = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    for racer in racers:
        racer.stdin.write("g")
        racer.stdin.flush()
    won = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    store = open_store(str(tmp_path))
    stored = [store.read_bytes(entry.path) for entry in store.files("commits")]
    assert sum(won) == len(stored) == 50
    assert [stored.count(str(number).encode()) for number in range(3)] == won
    assert len(list((tmp_path / "commits").iterdir())) == 50


WRITES = {
    "put": "store.put('folder/data', data)",
    "put_exclusive": "store.put_exclusive('folder/data', data)",
    "put_file": "staged.write_bytes(data); store.put_file('folder/data', staged)",
}
PROGRAM = """
import json, sys
from tokenmill.manifests.storage import open_store
store = open_store(sys.argv[1], json.loads(sys.argv[2]))
data = bytes(range(256)) * int(sys.argv[3])
with store.staging('folder') as staged:
    {write}
"""


def _run_writer(write: str, url: str, options: str, blocks: int, fault: str = "") -> int:
    environment = os.environ | {"TOKENMILL_FAULT": fault}
    program = PROGRAM.format(write=WRITES[write])
    command = [sys.executable, "-c", program, url, options, str(blocks)]
    return subprocess.run(command, env=environment, check=False).returncode


@pytest.mark.parametrize("write", WRITES)
def test_kill_in_the_middle_of_a_local_write_leaves_nothing_visible(write, tmp_path):
    url = str(tmp_path / "root")
    assert _run_writer(write, url, "{}", 1000, "storage:half-written:1") == -signal.SIGKILL
    assert open_store(url).files() == []
    assert _run_writer(write, url, "{}", 1000) == 0
    assert open_store(url).read_bytes("folder/data") == bytes(range(256)) * 1000


@pytest.mark.s3
def test_kill_in_the_middle_of_a_multipart_upload_leaves_nothing_visible(s3_server):
    import json

    url, options = s3_server.new_root(), json.dumps(s3_server.options)
    blocks = 48 * 1024  # 12 MiB: three parts
    assert _run_writer("put_file", url, options, blocks, "storage:half-multipart:2") == -signal.SIGKILL
    store = open_store(url, s3_server.options)
    assert store.files() == []
    assert _run_writer("put_file", url, options, blocks) == 0
    assert store.size("folder/data") == blocks * 256
    assert store.read_range("folder/data", 6 * 2**20, 256) == bytes(range(256))


def test_leftovers_of_killed_local_writers_are_unfinished_until_abandoned(tmp_path):
    url = str(tmp_path / "root")
    _run_writer("put", url, "{}", 10, "storage:half-written:1")
    store = open_store(url)
    (left,) = store.unfinished()
    assert left.path.startswith("folder/.part-") and left.bytes is not None and left.started_s is not None
    assert store.files() == [] and list(store.names()) == []
    store.abandon(left)
    store.abandon(left)
    assert store.unfinished() == []


def test_put_exclusive_without_hard_links_has_one_winner(tmp_path, monkeypatch):
    """Some network file systems know no links; which error they give is all that is made up here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.put_exclusive("folder/record", b"%d" % number), range(8)))
    assert won.count(True) == 1
    assert store.read_bytes("folder/record") == b"%d" % won.index(True)
    assert list(store.names()) == ["folder/record"] and store.unfinished() == []


FULL = """
import sys
from pathlib import Path
from tokenmill.errors import StorageError
from tokenmill.manifests.storage import open_store
store = open_store(sys.argv[1])
writes = [lambda: store.put("a/x", bytes(2**21)), lambda: store.put_exclusive("a/x", bytes(2**21))]
for write in writes:
    try:
        write()
    except StorageError as error:
        print(error)
print(sorted(path.name for path in Path(sys.argv[1]).rglob("*") if path.is_file()))
"""


@pytest.mark.parametrize(("options", "told"), [("size=1m", "the disk is full"), ("size=1m,ro", "read-only")])
def test_disk_that_takes_no_more_raises_a_storage_error_and_is_left_clean(options, told, tmp_path):
    program = f"mount -t tmpfs -o {options} none {tmp_path} && exec {sys.executable} -c '{FULL}' {tmp_path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", program], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine lets nobody mount a file system of their own")
    *errors, left = done.stdout.splitlines()
    assert len(errors) == 2 and all(told in error and f"{tmp_path}/a/x: cannot write it" in error for error in errors)
    assert left == "[]", done.stderr
