"""What the storage module does when the network or the store misbehaves: through a faulty proxy, with real sockets."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests import tiny
from tests.faulty_proxy import KINDS, FaultyProxy

from tokenmill.errors import RecipeError, StorageError
from tokenmill.manifests.storage import Store, open_store, traffic
from tokenmill.manifests.storage_retry import pause_s
from tokenmill.recipe import load_recipe

pytestmark = pytest.mark.s3
LARGE = bytes(range(256)) * (10 * 4096)  # 10 MiB: two parts
QUICK = {"timeout_s": 0.4, "retry_timeout_s": 20}


@pytest.fixture(scope="module")
def bucket(s3_server) -> Store:
    store = open_store(s3_server.new_root(), s3_server.options)
    store.put("small", b"0123456789" * 1000)
    store.put("large", LARGE)
    return store


def _through(proxy: FaultyProxy, store: Store, **options: object) -> Store:
    return open_store(store.url, {**store.options, "endpoint_url": proxy.endpoint, **QUICK, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_survives_a_fault(kind, bucket, s3_server):
    with FaultyProxy(s3_server.endpoint, stall_s=1) as proxy:
        store = _through(proxy, bucket)

        def faulty(*before: str) -> Store:
            proxy.script = [*before, kind]
            return store

        assert faulty().read_bytes("small") == b"0123456789" * 1000
        assert faulty().read_range("large", 256, 1024) == bytes(range(256)) * 4
        assert faulty().read_ranges("small", [(0, 10), (5000, 10)]) == [b"0123456789"] * 2
        assert list(faulty().names()) == [entry.path for entry in bucket.files()]
        assert faulty().size("large") == len(LARGE)
        faulty().put(f"{kind}/put", b"1")
        assert faulty().put_exclusive(f"{kind}/first", b"1")
        assert not faulty().put_exclusive(f"{kind}/first", b"2")
        with store.staging("") as staged:
            staged.write_bytes(LARGE)
            faulty(*["none"] * (KINDS.index(kind) % 4)).put_file(f"{kind}/large", staged)
        faulty().delete(f"{kind}/put")
        assert proxy.hits[kind] == 10
    assert bucket.read_bytes(f"{kind}/large") == LARGE
    assert [entry.path for entry in bucket.files(kind)] == [f"{kind}/first", f"{kind}/large"]
    for begun in bucket.unfinished():  # one whose beginning was never answered stays behind: gc's business
        assert kind in ("lost-answer", "truncate", "stall") and begun.path == f"{kind}/large"
        bucket.abandon(begun)


def test_bodies_cut_off_one_after_the_other_never_give_short_data(bucket, s3_server):
    with FaultyProxy(s3_server.endpoint, rate=0.5, seed=3, kinds=["truncate"]) as proxy:
        store = _through(proxy, bucket, retry_timeout_s=60)
        for number in range(10):
            assert store.read_range("large", number * 256, 512) == bytes(range(256)) * 2
        assert store.read_bytes("large") == LARGE
        with store.local_copy("large") as path:
            assert path.read_bytes() == LARGE
        with store.open("large") as file:
            assert file.read() == LARGE
        assert proxy.hits["truncate"] > 3


def test_conflict_of_two_conditional_writes_of_which_none_was_taken_is_tried_again(bucket, s3_server):
    with FaultyProxy(s3_server.endpoint) as proxy:
        store = _through(proxy, bucket)
        proxy.script = ["409"]
        assert store.put_exclusive("conflict", b"1")
        proxy.script = ["409"]
        assert not store.put_exclusive("conflict", b"2")
        assert proxy.hits["409"] == 2
    assert bucket.read_bytes("conflict") == b"1"


@pytest.mark.parametrize("answer", [(503, "SlowDown"), (403, "AccessDenied")])
def test_store_that_refuses_in_the_middle_of_an_open_file_is_told_in_one_line(answer, bucket, s3_server):
    with FaultyProxy(s3_server.endpoint) as proxy:
        store = _through(proxy, bucket, retry_timeout_s=1)
        with store.open("large") as file:
            assert file.read(100) == LARGE[:100]
            proxy.answers = {"GET": answer}
            with pytest.raises(StorageError, match=r"large: cannot read it: [^\n]+$"):
                file.read()


def test_fault_of_whoever_reads_an_open_file_stays_theirs(bucket, tmp_path):
    for store in (bucket, open_store(str(tmp_path))):
        store.put("theirs", b"1")
        with pytest.raises(OSError, match="theirs"), store.open("theirs"):
            raise OSError("theirs")


def test_retries_and_bytes_are_counted(bucket, s3_server):
    with FaultyProxy(s3_server.endpoint) as proxy:
        store = _through(proxy, bucket)
        before = traffic()
        proxy.script = ["503", "429"]
        store.read_bytes("small")
        store.put("counted", b"12345")
        spent = traffic() - before
    assert (spent.requests, spent.bytes_read, spent.bytes_written, spent.retries) == (4, 10_000, 5, 2)


@pytest.mark.parametrize("kind", ["reset", "stall"])
def test_store_that_is_gone_raises_within_the_time_out_and_the_next_call_at_once(kind, bucket, s3_server):
    with FaultyProxy(s3_server.endpoint, rate=1, kinds=[kind], stall_s=2) as proxy:
        store = _through(proxy, bucket, retry_timeout_s=1)
        for most_s in (1 + 0.4 + 1, 0.4 + 0.6):
            started = time.monotonic()
            with pytest.raises(StorageError, match=r"small: cannot read it: .* run it again when the store is back"):
                store.read_bytes("small")
            assert time.monotonic() - started < most_s
        proxy.rate = 0
        assert store.read_range("small", 0, 10) == b"0123456789"


REFUSALS = {
    "wrong key": (403, "InvalidAccessKeyId", "refuses the credentials"),
    "wrong secret": (403, "SignatureDoesNotMatch", "refuses the credentials"),
    "clock skew": (403, "RequestTimeTooSkewed", "clock"),
    "not permitted": (403, "AccessDenied", "may not write"),
    "no bucket": (404, "NoSuchBucket", "no such bucket"),
    "full": (507, "XMinioStorageFull", "store is full"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusal_that_no_retry_mends_is_told_at_once_in_one_line(what, bucket, s3_server):
    status, code, told = REFUSALS[what]
    with FaultyProxy(s3_server.endpoint) as proxy:
        proxy.answers = dict.fromkeys(("PUT", "GET", "POST"), (status, code))
        store = _through(proxy, bucket, secret="s3cr3t-value")
        started = time.monotonic()
        with pytest.raises(StorageError, match=told) as caught:
            store.put("x", b"1")
        with pytest.raises(StorageError):
            store.put_exclusive("y", b"1")
        with pytest.raises(StorageError):
            store.read_bytes("small")
        with pytest.raises(StorageError):
            list(store.names())
        assert time.monotonic() - started < 0.4
    text = str(caught.value)
    assert text.startswith(f"{bucket.url}/x: cannot write it: ") and "\n" not in text and len(text) < 250


def test_bucket_that_is_not_there_is_told_by_every_operation(s3_server):
    store = open_store("s3://no-such-bucket-here/root", s3_server.options)
    for call in (store.files, lambda: store.put("x", b"1"), lambda: store.read_bytes("x"), store.folders):
        with pytest.raises(StorageError, match="no such bucket"):
            call()


@pytest.mark.parametrize("backend", ["auto", "fsspec"])
def test_nothing_listens_raises_a_storage_error_of_one_line(backend):
    options = {"endpoint": "http://127.0.0.1:9", "key": "a", "secret": "b", "retry_timeout_s": 0.5, "backend": backend}
    with pytest.raises(StorageError, match=r"x: cannot read it: .* run it again") as caught:
        open_store("s3://bucket/root", options).read_bytes("x")
    assert "\n" not in str(caught.value)


def test_options_are_shown_nowhere(bucket, s3_server):
    secret = "s3cr3t-value"
    options = {**s3_server.options, "secret": secret, "session_token": secret, "retries": "many"}
    with pytest.raises(RecipeError, match=r"storage\.retries") as wrong:
        open_store("s3://bucket/root", options)
    with pytest.raises(RecipeError, match=r"storage\.no_such_thing.*documented: backend") as unknown:
        open_store("s3://bucket/root", {**options, "retries": 1, "no_such_thing": secret})
    store = open_store("s3://bucket/root", {**options, "retries": 1})
    for shown in (wrong.value, unknown.value, wrong.value.__cause__, repr(store), str(store), store._backend._options):
        assert secret not in repr(shown)
    assert pickle.loads(pickle.dumps(store)).options == store.options


def test_recipe_with_a_wrong_storage_option_names_the_key_and_no_value(tmp_path):
    for options in ({"secret": "s3cr3t-value", "timeout_s": "s3cr3t-value"}, "s3cr3t-value"):
        recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path, "s3://b/root", {"storage": options})
        with pytest.raises(RecipeError, match=r"storage") as caught:
            load_recipe(recipe)
        assert "s3cr3t" not in str(caught.value)
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path, "s3://b/root", {"storage": {"secret": "s3cr3t"}})
    for override in ("storage.secret.deeper=s3cr3t", "storage.key=[s3cr3t", "storage.retries=s3cr3t"):
        with pytest.raises(RecipeError, match=r"storage") as caught:
            load_recipe(recipe, [override])
        assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in repr(load_recipe(recipe))


def test_store_without_conditional_put_has_one_winner_by_looking(bucket, s3_server):
    with FaultyProxy(s3_server.endpoint) as proxy:
        store = _through(proxy, bucket)
        proxy.script = ["501"]
        assert store.put_exclusive("looked/1", b"first")
        assert not store.put_exclusive("looked/1", b"second")
    off = open_store(bucket.url, {**bucket.options, "conditional_put": False})
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda number: off.put_exclusive("looked/race", b"%d" % number), range(4)))
    assert won.count(True) == 1
    assert off.read_bytes("looked/race") == b"%d" % won.index(True)
    assert not off.put_exclusive("looked/1", b"third")
    assert off.read_bytes("looked/1") == b"first"


FORK = """
import os, sys
from tokenmill.errors import StorageError
from tokenmill.manifests.storage import open_store
store = open_store(sys.argv[1], {"endpoint": sys.argv[2], "key": "testing", "secret": "testing"})
store.files()
if os.fork() == 0:
    told = 0
    for use in (store.files, lambda: open_store(sys.argv[1], store.options)):
        try:
            use()
        except StorageError as error:
            told += "forked" in str(error)
    os._exit(5 + told)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_process_forked_from_one_that_has_used_the_store_is_refused_and_does_not_hang(bucket, s3_server):
    command = [sys.executable, "-W", "ignore", "-c", FORK, bucket.url, s3_server.endpoint]
    assert subprocess.run(command, timeout=30, check=False).returncode == 7


def test_upload_that_raises_or_is_killed_is_unfinished_until_abandoned(bucket, s3_server):
    program = (
        "import sys, json\nfrom tokenmill.manifests.storage import open_store\n"
        "store = open_store(sys.argv[1], json.loads(sys.argv[2]))\n"
        "with store.staging('') as staged:\n    staged.write_bytes(bytes(20 * 2**20))\n"
        "    store.put_file('killed', staged)\n"
    )
    command = [sys.executable, "-c", program, bucket.url, json.dumps(s3_server.options)]
    environment = os.environ | {"TOKENMILL_FAULT": "storage:half-multipart:2"}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    (left,) = bucket.unfinished()
    assert left.path == "killed" and left.started_s is not None
    assert not bucket.exists("killed")
    bucket.abandon(left)
    bucket.abandon(left)
    assert bucket.unfinished() == []


def test_pauses_grow_and_are_bounded():
    assert [pause_s(number, 0.1, 1.0) for number in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert pause_s(3, 0.1, 0.0) == 0.4
