"""Tables of URLs: what is fetched, what is not and why, how politely, and what a kill or a retry asks for again."""

from __future__ import annotations

import errno
import gzip
import hashlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from PIL import Image
from tests.harness import faults_in, run_alone, trusted
from tests.picture_server import (
    PictureServer,
    first,
    redirects,
    resets,
    sends,
    slowly,
    status,
    without_length,
)
from tests.tiny import picture

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.takedowns import Identifier, normal_url, write_list
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.sources import image_bytes
from tokenmill.pipelines.sources.opt_out import opted_out
from tokenmill.pipelines.sources.safe_addresses import is_public
from tokenmill.pipelines.sources.source import open_source

QUICK = {"allow_private": True, "host_interval_s": 0, "backoff_s": 0.01, "per_host": 16}


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with PictureServer() as running:
        yield running


def _table(folder: Path, **columns: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(folder / "part-0.parquet")
    return folder


def _settings(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"kind": "urls", "url": str(folder), **QUICK, **settings}


def _ingest(store: Store, settings: dict[str, Any], *, retry_failed: bool = False) -> Snapshot:
    work = ingest_work(store, "web", settings, unit_bytes=2**30)
    ((snapshot,),) = run_stage("ingest", [work], RunOptions(quiet=True, retry_failed=retry_failed))
    return snapshot


def _rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [row for commit in snapshot.commits for row in snapshot.folder.read_rows(commit).iter_rows(named=True)]


def _fetched(tmp_path: Path, urls: list[str | None], **settings: Any) -> list[dict[str, Any]]:
    folder = _table(tmp_path / "raw", url=urls)
    return _rows(_ingest(open_store(str(tmp_path / "root")), _settings(folder, **settings)))


def _jpeg(seed: int, size: int = 64) -> bytes:
    return picture(seed, size, "JPEG")


def test_pictures_of_a_table_come_with_everything_it_says_in_img2datasets_layout(tmp_path, server):
    kinds = {"/a.jpg": "JPEG", "/b": "PNG", "/c.png": "WEBP", "/d?x=%2B1": "GIF"}
    for number, (path, kind) in enumerate(kinds.items()):
        server.answers[path] = sends(picture(number, kind=kind), ("Content-Type", "text/html"))
    captions = ["first", None, "tab\tand \x07 bell", "ünï"]
    folder = _table(
        tmp_path / "raw",
        URL=[server.url(path) for path in kinds],
        TEXT=captions,
        similarity=[0.3, float("nan"), 0.1, None],
        status=["x"] * 4,
    )
    root = open_store(str(tmp_path / "root"))
    settings = _settings(folder, url_field="URL", caption_field="TEXT", contact="https://example.org/bot")
    snapshot = _ingest(root, settings)
    rows = _rows(snapshot)
    assert [row["key"] for row in rows] == [f"part-0.parquet#{number}" for number in range(4)]
    assert [row["caption"] for row in rows] == captions
    assert [row["extension"] for row in rows] == ["jpg", "png", "webp", "gif"]
    (commit,) = snapshot.commits
    archive = snapshot.folder.at(commit.data.name)
    for number, (row, (path, kind)) in enumerate(zip(rows, kinds.items(), strict=True)):
        data = picture(number, kind=kind)
        assert root.read_range(archive, row["offset"], row["length"]) == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        said = json.loads(row["metadata"])
        assert said["url"] == said["URL"] == server.url(path)
        assert (said["status"], said["http_status"], said["original_status"]) == ("success", 200, "x")
        assert said["sha256"] == row["sha256"]
    assert json.loads(rows[1]["metadata"])["similarity"] is None
    stock = list(webdataset.WebDataset(str(root.local_path(archive)), shardshuffle=False))
    assert [sample["__key__"] for sample in stock] == [f"part-0%2Eparquet%23{number}" for number in range(4)]
    assert stock[0]["txt"] == b"first"
    assert json.loads(stock[0]["json"])["key"] == "part-0.parquet#0"
    assert server.requests[0].headers["User-Agent"].endswith("(+https://example.org/bot)")
    assert not faults_in(root)


def test_every_row_that_is_no_picture_has_its_reason_and_lasting_ones_are_asked_for_once(tmp_path, server):
    jpeg, big = _jpeg(1), _jpeg(2, 900)
    answers = {
        "/gone": (status(410), "http_410"),
        "/none": (status(404), "http_404"),
        "/partial": (status(206), "http_206"),
        "/page.jpg": (sends(b"<!DOCTYPE html><p>sorry", ("Content-Type", "image/jpeg")), "not_an_image"),
        "/drawing.jpg": (sends(b'<?xml version="1.0"?><svg/>', ("Content-Type", "image/jpeg")), "not_an_image"),
        "/empty": (sends(b""), "empty"),
        "/header.png": (sends(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0"), "corrupt"),
        "/big": (sends(big), "too_large"),
        "/endless": (without_length(big), "too_large"),
        "/claims-much": (sends(jpeg, length=10**12), "too_large"),
        "/noai": (sends(jpeg, ("X-Robots-Tag", "noai")), "opted_out"),
        "/noindex": (sends(jpeg, ("X-Robots-Tag", "max-snippet: 3, noimageindex")), "opted_out"),
        "/for-us": (sends(jpeg, ("X-Robots-Tag", "all"), ("X-Robots-Tag", "tokenmill: noai")), "opted_out"),
        "/reserved": (sends(jpeg, ("TDM-Reservation", "1")), "opted_out"),
        "/to-noai": (redirects("/noai"), "opted_out"),
        "/round": (redirects("/round"), "too_many_redirects"),
        "/to-file": (redirects("file:///etc/passwd"), "bad_redirect"),
        "/nowhere": (status(302), "bad_redirect"),
        "/gzip": (sends(b"no gzip", ("Content-Encoding", "gzip")), "bad_response"),
        "/for-others": (sends(jpeg, ("X-Robots-Tag", "otherbot: noai")), None),
        "/claims-less": (without_length(jpeg), None),
        "/moved": (redirects("/for-others", 308), None),
    }
    server.answers |= {path: do for path, (do, _) in answers.items()}
    unusable = ["file:///etc/passwd", "ftp://x/a.jpg", "data:image/png;base64,AAAA", "pipe:ls", "http://", "//x/y"]
    unusable += [
        "http://[::1",
        "http://a b/c",
        "http://x\r\nHost: y/",
        "http://x:99999/",
        " ",
        f"http://x/{'y' * 9000}",
    ]
    urls = [*(server.url(path) for path in answers), *unusable, None, server.url("/for-others")]
    keys = [f"k{number}" for number in range(len(urls) - 1)] + ["k0"]
    folder = _table(tmp_path / "raw", url=urls, name=keys)
    root = open_store(str(tmp_path / "root"))
    snapshot = _ingest(root, _settings(folder, key_field="name", max_bytes=16_000, max_redirects=3))
    rows = _rows(snapshot)
    wanted = [reason for _, reason in answers.values()] + ["bad_url"] * len(unusable) + ["no_url", "duplicate_key"]
    found = {url: row["fail_reason"] for url, row in zip(urls, rows, strict=True)}
    assert [row["fail_reason"] for row in rows] == wanted, found
    assert not any(row["fail_transient"] for row in rows)
    assert [json.loads(row["metadata"])["status"] for row in rows] == [reason or "success" for reason in wanted]
    assert json.loads(rows[0]["metadata"])["http_status"] == 410
    assert all(len(server.asked(path)) == 1 for path in answers if path not in ("/round", "/noai", "/for-others"))
    assert len(server.asked("/for-others")) == 2  # by itself and by the redirect, not by the second row with its key
    counts = snapshot.counts
    assert counts.rows_in == len(urls) == counts.kept + sum(counts.failed.values())


def test_opt_out_is_ignored_only_where_the_recipe_says_so(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1), ("X-Robots-Tag", "noai"))
    (row,) = _fetched(tmp_path, [server.url("/a")], ignore_opt_out=True)
    assert row["fail_reason"] is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("noai", "noai"),
        ("NoAI", "noai"),
        ("all, noimageai", "noimageai"),
        ("none", "none"),
        ("img2dataset: noindex", "noindex"),
        ("*: noai", "noai"),
        ("otherbot: nofollow, noai", None),
        ("otherbot: noai, tokenmill: noindex", "noindex"),
        ("unavailable_after: 25 Jun 2030 15:00:00 GMT, noai", "noai"),
        ("max-image-preview: none", None),
        ("nofollow, noarchive", None),
        ("", None),
    ],
)
def test_opt_out_header_is_read_as_it_is_meant(line, found):
    assert opted_out([line]) == found


@pytest.mark.parametrize(
    ("fault", "pause_s"),
    [(status(503, ("Retry-After", "1")), 1), (status(500), 0), (resets, 0), (sends(b"x" * 10, length=500), 0)],
)
def test_fault_that_passes_is_tried_again(tmp_path, server, fault, pause_s):
    server.answers["/a"] = first(1, fault, sends(_jpeg(1)))
    (row,) = _fetched(tmp_path, [server.url("/a")], tries=2)
    assert row["fail_reason"] is None
    one, two = server.asked("/a")
    assert two.started - one.started >= pause_s


def test_fault_that_does_not_pass_is_transient_and_a_long_retry_after_is_not_waited_for(tmp_path):
    with PictureServer(address="0.0.0.0") as everywhere:
        everywhere.answers |= {
            "/busy": status(503),
            "/quiet": status(429, ("Retry-After", "3600")),
            "/reset": resets,
            "/short": sends(b"x" * 10, length=500),
        }
        paths = ["/busy", "/reset", "/short", "/quiet"]
        urls = [everywhere.url(path, f"127.0.0.{number}") for number, path in enumerate(paths, 2)]
        urls += [everywhere.url("/busy", "127.0.0.5"), "http://127.0.0.9:9/refused"]
        rows = _fetched(tmp_path, urls, tries=2, per_host=1)
    reasons = ["http_503", "reset", "incomplete", "http_429", "host_busy", "connect"]
    assert [row["fail_reason"] for row in rows] == reasons
    assert all(row["fail_transient"] for row in rows)


def test_server_that_is_slow_is_given_up(tmp_path, server):
    server.answers["/slow"] = slowly(_jpeg(1), 1.0)
    (row,) = _fetched(tmp_path, [server.url("/slow")], tries=1, read_timeout_s=0.3)
    assert (row["fail_reason"], row["fail_transient"]) == ("timeout", True)


def test_total_time_of_a_request_is_bounded_even_where_bytes_keep_coming(tmp_path, server):
    def drip(handler, count):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(30):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.answers["/drip"] = drip
    (row,) = _fetched(tmp_path, [server.url("/drip")], tries=1, total_timeout_s=0.3)
    assert (row["fail_reason"], row["fail_transient"]) == ("timeout", True)


def test_host_is_asked_by_few_at_once_and_with_pauses(tmp_path, server):
    for number in range(12):
        server.answers[f"/{number}"] = slowly(_jpeg(number), 0.05)
    urls = [server.url(f"/{number}") for number in range(12)]
    _fetched(tmp_path / "few", urls, per_host=2)
    assert server.most_at_once() == 2
    server.forget()
    _fetched(tmp_path / "paused", urls[:6], per_host=6, host_interval_s=0.1)
    starts = sorted(request.started for request in server.asked())
    assert starts[-1] - starts[0] > 0.35  # five pauses, less what a busy machine makes of them


def test_hosts_do_not_wait_for_each_other(tmp_path):
    with PictureServer(address="0.0.0.0") as everywhere:
        everywhere.answers["/a"] = slowly(_jpeg(1), 0.6)
        urls = [everywhere.url("/a", f"127.0.0.{number}") for number in range(2, 12)]
        _fetched(tmp_path, urls, per_host=1)
        assert everywhere.most_at_once() >= 8


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("10.0.0.1", False),
        ("100.100.100.200", False),
        ("127.0.0.1", False),
        ("168.63.129.16", False),
        ("169.254.169.254", False),
        ("192.168.1.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("::7f00:1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
        ("fd00:ec2::254", False),
        ("fe80::1%eth0", False),
        ("ff02::1", False),
    ],
)
def test_address_of_the_public_internet_is_told_from_all_others(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_private_address_is_not_asked_unless_the_recipe_allows_it(tmp_path, server, host):
    server.answers["/a"] = sends(_jpeg(1))
    (row,) = _fetched(tmp_path, [server.url("/a", host)], allow_private=False)
    assert (row["fail_reason"], row["fail_transient"]) == ("private_address", False)
    assert not server.asked()


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001"])
def test_address_in_another_spelling_does_not_get_through(tmp_path, server, host):
    server.answers["/a"] = sends(_jpeg(1))
    (row,) = _fetched(tmp_path, [server.url("/a", host)], allow_private=False)
    assert row["fail_reason"] in ("private_address", "bad_url")
    assert not server.asked()


def test_redirect_from_an_allowed_network_to_a_private_address_is_refused(tmp_path):
    with PictureServer(address="0.0.0.0") as everywhere:
        everywhere.answers |= {"/a": redirects(everywhere.url("/b", "127.0.0.2")), "/b": sends(_jpeg(1))}
        (row,) = _fetched(tmp_path, [everywhere.url("/a", "127.0.0.1")], allow_private=["127.0.0.1/32"])
        assert row["fail_reason"] == "private_address"
        assert [request.path for request in everywhere.asked()] == ["/a"]


def test_name_that_leads_elsewhere_the_second_time_is_refused(tmp_path, monkeypatch):
    honest = socket.getaddrinfo
    answers = itertools.chain(["127.0.0.1"], itertools.repeat("127.0.0.2"))

    def rebinding(host, *arguments, **options):
        return honest(next(answers) if host == "rebind.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr("tokenmill.pipelines.sources.download._DNS_CACHE_S", 0)
    with PictureServer(address="0.0.0.0") as everywhere:
        everywhere.answers["/a"] = first(1, resets, sends(_jpeg(1)))
        url = everywhere.url("/a", "rebind.example")
        (row,) = _fetched(tmp_path, [url], allow_private=["127.0.0.1/32"], tries=3)
        assert row["fail_reason"] == "private_address"
        assert len(everywhere.asked()) == 1


def test_large_pictures_are_fetched_within_few_bytes_of_memory(tmp_path, server, monkeypatch):
    from tokenmill.pipelines.sources.byte_budget import Share

    most, budgets = 0, set()
    grow = Share.grow

    def watched(self, total):
        nonlocal most
        grow(self, total)
        budgets.add(self._budget)
        most = max(most, self._budget.used)

    monkeypatch.setattr(Share, "grow", watched)
    noise = Image.effect_noise((900, 900), 100)
    stream = BytesIO()
    noise.save(stream, "PNG")
    data = stream.getvalue()
    assert len(data) > 600_000
    for number in range(20):
        server.answers[f"/{number}"] = (without_length if number % 2 else sends)(data)
    rows = _fetched(tmp_path, [server.url(f"/{number}") for number in range(20)], bytes_ahead=2_000_000)
    assert not any(row["fail_reason"] for row in rows)
    assert 600_000 < most <= 2_000_000 + 2 * len(data)
    assert [budget.used for budget in budgets] == [0]


def test_sha256_of_the_table_is_compared(tmp_path, server):
    server.answers |= {"/a": sends(_jpeg(1)), "/b": sends(_jpeg(2))}
    digest = hashlib.sha256(_jpeg(1)).hexdigest()
    folder = _table(tmp_path / "raw", url=[server.url("/a"), server.url("/b")], sha256=[digest, digest])
    one, two = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(folder, sha256_field="sha256")))
    assert (one["fail_reason"], two["fail_reason"]) == (None, "hash_mismatch")
    assert json.loads(two["metadata"])["original_sha256"] == digest


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "csv.gz", "tsv", "jsonl", "jsonl.zst"])
def test_table_of_any_format_gives_the_same_rows_in_ranges(tmp_path, server, suffix):
    for number in range(5):
        server.answers[f"/{number}"] = sends(_jpeg(number))
    captions = ["plain", 'quoted "word", and comma', "two\nlines", "ünï", "tab\there"]
    frame = pl.DataFrame({"url": [server.url(f"/{number}") for number in range(5)], "caption": captions})
    _write(frame, tmp_path / "raw" / f"t.{suffix}")
    quotes = {"quotes": True} if suffix == "tsv" else {}
    snapshot = _ingest(open_store(str(tmp_path / "root")), _settings(tmp_path / "raw", rows_per_unit=2, **quotes))
    rows = _rows(snapshot)
    assert len(snapshot.commits) == 3
    assert [row["caption"] for row in rows] == captions
    assert [row["key"] for row in rows] == [f"t.{suffix}#{number}" for number in range(5)]
    assert len(server.asked()) == 5


def _write(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir()
    kind, packed = path.name.split(".")[1], path.suffix
    stream = BytesIO()
    if kind == "parquet":
        frame.write_parquet(stream, row_group_size=2)
    elif kind == "arrow":
        frame.write_ipc(stream)
    elif kind == "jsonl":
        frame.write_ndjson(stream)
    else:
        frame.write_csv(stream, separator="\t" if kind == "tsv" else ",")
    data = stream.getvalue()
    if packed == ".zst":
        data = pa.compress(data, "zstd", asbytes=True)
    path.write_bytes(gzip.compress(data) if packed == ".gz" else data)


def test_table_that_cannot_be_used_stops_the_run_and_says_why(tmp_path):
    folder = _table(tmp_path / "raw", link=["http://x/"], caption=["c"])
    with pytest.raises(RunError, match=r"part-0\.parquet: no column 'url'; it has: link, caption"):
        open_source("s", _settings(folder)).files()
    with pytest.raises(RunError, match=r"no column 'TEXT'"):
        open_source("s", _settings(folder, url_field="link", caption_field="TEXT")).files()
    (folder / "part-1.csv.gz").write_bytes(gzip.compress(b"url\nhttp://x/\n" * 100)[:-9])
    with pytest.raises(RunError, match=r"part-1\.csv\.gz: not a readable table"):
        open_source("s", _settings(folder, files="*.gz")).files()
    with pytest.raises(RunError, match=r"no file fits data/\*"):
        open_source("s", _settings(folder, files="data/*")).files()


@pytest.mark.parametrize(
    "settings",
    [{"max_byts": 3}, {"tries": 0}, {"allow_private": ["10.0.0.0/99"]}, {"contact": "a\nb"}, {"rows_per_unit": 0}],
)
def test_wrong_setting_is_refused_by_name(tmp_path, settings):
    (name,) = settings
    with pytest.raises(RecipeError, match=rf"sources\.s: .*{name}"):
        open_source("s", _settings(tmp_path, **settings))


def test_retry_asks_only_for_what_failed_in_passing_and_keeps_the_other_bytes(tmp_path, server):
    server.answers |= {f"/{number}": sends(_jpeg(number)) for number in range(6)}
    server.answers["/2"] = first(2, status(503), sends(_jpeg(2)))
    server.answers["/4"] = status(404)
    folder = _table(tmp_path / "raw", url=[server.url(f"/{number}") for number in range(6)])
    root = open_store(str(tmp_path / "root"))
    settings = _settings(folder, tries=2)
    before = _ingest(root, settings)
    assert before.counts.failed == {"http_404": 1, "http_503": 1}
    server.forget()
    server.answers["/2"] = sends(_jpeg(2))
    after = _ingest(root, settings, retry_failed=True)
    assert [request.path for request in server.asked()] == ["/2"]
    (commit,) = after.commits
    assert (commit.attempt, commit.counts.kept, commit.counts.failed) == (1, 5, {"http_404": 1})
    archive = after.folder.at(commit.data.name)
    for number, row in enumerate(_rows(after)):
        if number != 4:
            assert root.read_range(archive, row["offset"], row["length"]) == _jpeg(number)
    server.forget()
    fresh = _ingest(open_store(str(tmp_path / "fresh")), settings)
    assert commit.data.sha256 == fresh.commits[0].data.sha256
    assert not faults_in(root)


def test_retry_that_changes_nothing_asks_again_and_leaves_the_record(tmp_path, server):
    server.answers |= {"/a": sends(_jpeg(1)), "/b": status(503)}
    folder = _table(tmp_path / "raw", url=[server.url("/a"), server.url("/b")])
    root = open_store(str(tmp_path / "root"))
    before = _ingest(root, _settings(folder, tries=1))
    server.forget()
    after = _ingest(root, _settings(folder, tries=1), retry_failed=True)
    assert [request.path for request in server.asked()] == ["/b"]
    assert after.digest == before.digest


def test_retry_of_a_unit_whose_failures_all_last_reads_no_archive(tmp_path, server):
    server.answers |= {"/a": sends(_jpeg(1)), "/b": status(404)}
    folder = _table(tmp_path / "raw", url=[server.url("/a"), server.url("/b")])
    root = open_store(str(tmp_path / "root"))
    before = _ingest(root, _settings(folder))
    server.forget()
    root.delete(before.folder.at(before.commits[0].data.name))  # reading it would fail
    assert _ingest(root, _settings(folder), retry_failed=True).digest == before.digest
    assert not server.asked()


def test_sample_on_a_takedown_list_is_not_asked_for(tmp_path, server):
    server.answers |= {"/a": sends(_jpeg(1)), "/b": sends(_jpeg(2))}
    folder = _table(tmp_path / "raw", url=[server.url("/a"), server.url("/b")], caption=["one", "two"])
    root = open_store(str(tmp_path / "root"))
    write_list(root, [Identifier(kind="url", value=normal_url(server.url("/a")))], [], frozenset(), {})
    one, two = _rows(_ingest(root, _settings(folder)))
    assert (one["fail_reason"], one["caption"], one["metadata"]) == ("takedown", None, "{}")
    assert two["fail_reason"] is None
    assert [request.path for request in server.asked()] == ["/b"]


def test_columns_that_have_our_names_for_something_else_are_kept_under_another(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1))
    folder = _table(
        tmp_path / "raw",
        url=["https://example.org/page"],
        image=[server.url("/a")],
        key=["000000001"],
        status=["failed_to_download"],
        title=["t"],
    )
    (row,) = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(folder, url_field="image")))
    assert json.loads(row["metadata"]) == {
        "url": server.url("/a"),
        "image": server.url("/a"),
        "original_url": "https://example.org/page",
        "original_key": "000000001",
        "original_status": "failed_to_download",
        "title": "t",
        "status": "success",
        "http_status": 200,
        "sha256": hashlib.sha256(_jpeg(1)).hexdigest(),
    }


def test_rewrite_after_a_takedown_leaves_no_journal(tmp_path):
    from tokenmill.manifests.takedowns import Takedowns
    from tokenmill.pipelines.sources.journal import Journal
    from tokenmill.pipelines.sources.source import IndexRow
    from tokenmill.pipelines.takedown_rewrite import rewrite

    folder = _table(tmp_path / "raw", url=["http://127.0.0.1:9/a"])
    root = open_store(str(tmp_path / "root"))
    snapshot = _ingest(root, _settings(folder, tries=1))
    journal = Journal(root, snapshot.folder.at("journal/other-unit.0"))
    rows = [IndexRow(key=str(n), path="p", payload=b"x" * 9, sha256="") for n in range(256)]
    assert len(list(journal.kept(iter(rows)))) == 256
    assert [name for name in root.names() if "/journal/" in name]
    rewrite(root, Takedowns(frozenset({Identifier(kind="key", value="0")})), {("web", "0")})
    assert not [name for name in root.names() if "/journal/" in name]


def test_machine_without_a_network_stops_the_run_and_records_nothing(tmp_path):
    urls = [f"http://127.0.0.{2 + number % 20}:9/{number}" for number in range(150)]
    with pytest.raises(RunError, match=r"first 100 URLs, of \d+ hosts, could not be reached"):
        _fetched(tmp_path, urls, tries=1)
    assert not [name for name in open_store(str(tmp_path / "root")).names() if "/commits/" in name]


@pytest.mark.parametrize("answered", [False, True])
def test_machine_without_dns_is_told_from_names_that_do_not_exist(tmp_path, server, monkeypatch, answered):
    honest = socket.getaddrinfo

    def fails(host, *arguments, **options):
        if host.endswith(".example"):
            raise socket.gaierror(socket.EAI_NONAME, "no")
        return honest(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    server.answers["/a"] = sends(_jpeg(1))
    urls: list[str | None] = [None if n % 10 == 0 else f"http://h{n}.example/{n}" for n in range(130)]
    if answered:
        rows = _fetched(tmp_path, [server.url("/a"), *urls])
        assert {row["fail_reason"] for row in rows} == {None, "no_url", "dns"}
    else:
        with pytest.raises(RunError, match="could not be reached"):
            _fetched(tmp_path, urls)


def test_host_that_is_dead_costs_few_tries_and_no_other_host(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1))
    urls = [*(f"http://127.0.0.9:9/{number}" for number in range(200)), server.url("/a")]
    rows = _fetched(tmp_path, urls, tries=3, per_host=2)
    assert {row["fail_reason"] for row in rows[:-1]} == {"connect"}
    assert rows[-1]["fail_reason"] is None


def test_run_killed_twice_goes_on_without_asking_again_and_ends_with_the_same_files(tmp_path, server):
    count = 280
    jpegs = [_jpeg(number) for number in range(7)]
    server.answers |= {f"/{number}": sends(jpegs[number % 7]) for number in range(count)}
    server.answers["/5"] = status(404)
    folder = _table(tmp_path / "raw", url=[server.url(f"/{number}") for number in range(count)])

    value = {
        "root": str(tmp_path / "killed"),
        "execution": {"executor": "inline"},
        "sources": {"web": _settings(folder)},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value))
    one, two = (open_store(str(tmp_path / name)) for name in ("killed", "whole"))
    for fault in ("journal:after-part:1", "commit:between-files:1"):
        assert run_alone("ingest", tmp_path / "recipe.yaml", environment={"TOKENMILL_FAULT": fault}).was_killed
        assert [name for name in one.names() if "/journal/" in name]
    server.forget()
    _ingest(one, _settings(folder))
    assert sorted(request.path for request in server.asked()) == sorted(f"/{number}" for number in range(256, count))
    _ingest(two, _settings(folder))
    assert trusted(one) == trusted(two)
    assert not any("/journal/" in name for name in one.names())
    assert not faults_in(one)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        (" http://h/a?x=%2b&y=%7E#part ", "http://h/a?x=%2b&y=%7E"),
        ("HTTP://h/\u00fc b", "http://h/%C3%BC%20b"),
        ('http://h/"x"', "http://h/%22x%22"),
    ],
)
def test_url_is_sent_as_it_is_written_where_that_is_a_url(text, sent):
    from tokenmill.pipelines.sources.download import parsed_url

    assert str(parsed_url(text)) == sent


def test_many_urls_of_a_host_that_does_not_exist_have_all_the_same_lasting_reason(tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    rows = _fetched(tmp_path, [f"http://nosuch.example/{number}" for number in range(20)])
    assert {(row["fail_reason"], row["fail_transient"]) for row in rows} == {("dns", False)}


@pytest.mark.parametrize(
    ("code", "transient"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True), (socket.EAI_FAIL, True)]
)
def test_name_that_does_not_exist_is_told_from_one_that_cannot_be_looked_up(tmp_path, monkeypatch, code, transient):
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    (row,) = _fetched(tmp_path, ["http://nosuch.example/a"], tries=1)
    assert (row["fail_reason"], row["fail_transient"]) == ("dns", transient)


@pytest.mark.parametrize("url", ["http://xn--a/", "http:// ]\u0130[@", "http://a..b/", "http://h:25/"])
def test_url_that_no_library_survives_is_one_failed_row_as_is_a_redirect_to_it(tmp_path, server, url):
    server.answers |= {"/a": sends(_jpeg(1)), "/r": redirects(url.encode("utf-8").decode("latin-1"))}
    good, bad, redirected = _fetched(tmp_path, [server.url("/a"), url, server.url("/r")])
    assert (good["fail_reason"], bad["fail_reason"]) == (None, "bad_url")
    assert redirected["fail_reason"] in ("bad_redirect", "bad_url")


def test_fault_that_nobody_foresaw_is_the_rows_alone(tmp_path, server, monkeypatch):
    from tokenmill.pipelines.sources.download import Downloader

    def fails(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(Downloader, "_check_opt_out", fails)
    server.answers["/a"] = sends(_jpeg(1))
    (row,) = _fetched(tmp_path, [server.url("/a")])
    assert (row["fail_reason"], row["fail_message"]) == ("bad_response", "ArithmeticError")


def test_column_without_a_name_is_neither_key_nor_digest(tmp_path, server):
    server.answers |= {"/0": sends(_jpeg(0)), "/1": sends(_jpeg(1))}
    (tmp_path / "raw").mkdir()
    lines = [",url,caption", *(f"{number},{server.url(f'/{number}')},c{number}" for number in range(2))]
    (tmp_path / "raw" / "a.csv").write_text("\n".join(lines))
    rows = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(tmp_path / "raw")))
    assert [(row["key"], row["fail_reason"], row["caption"]) for row in rows] == [
        ("a.csv#0", None, "c0"),
        ("a.csv#1", None, "c1"),
    ]


def test_digest_of_the_table_may_be_in_capitals_or_absent(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1))
    digests = [hashlib.sha256(_jpeg(1)).hexdigest().upper(), "", " ", None]
    folder = _table(tmp_path / "raw", url=[server.url("/a")] * 4, sha256=digests)
    rows = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(folder, sha256_field="sha256")))
    assert not any(row["fail_reason"] for row in rows)


def test_idle_connections_are_not_kept(tmp_path, monkeypatch):
    from tokenmill.pipelines.sources.byte_budget import Share

    most = 0
    settle = Share.settle

    def watched(self, kept):
        nonlocal most
        settle(self, kept)
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))

    monkeypatch.setattr(Share, "settle", watched)
    with PictureServer(address="0.0.0.0") as everywhere:
        everywhere.answers["/a"] = sends(_jpeg(1))
        urls = [everywhere.url("/a", f"127.0.{n // 50}.{n % 50 + 1}") for n in range(150)]
        before = len(list(Path("/proc/self/fd").iterdir()))
        rows = _fetched(tmp_path, urls, concurrency=8)
    assert not any(row["fail_reason"] for row in rows)
    assert most - before < 100  # both ends of eight connections, and some that the server is about to close


def test_machine_at_its_limit_of_open_files_stops_the_run_and_blames_no_host(tmp_path, server, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("tokenmill.pipelines.sources.download.socket_maker", lambda networks: full)
    with pytest.raises(RunError, match=r"EMFILE.*ulimit"):
        _fetched(tmp_path, [server.url("/a")])


def test_host_that_accepts_and_says_nothing_is_soon_left_alone(tmp_path, server):
    server.answers |= {f"/{number}": slowly(b"", 0.3) for number in range(30)}
    rows = _fetched(tmp_path, [server.url(f"/{n}") for n in range(30)], tries=2, per_host=2, read_timeout_s=0.1)
    assert len(server.asked()) <= 8  # six, and those under way then
    assert {row["fail_reason"] for row in rows} == {"timeout", "connect"}
    assert all(row["fail_transient"] for row in rows)


def test_host_that_is_always_busy_is_soon_left_alone(tmp_path, server):
    server.answers |= {f"/{number}": status(503) for number in range(60)}
    rows = _fetched(tmp_path, [server.url(f"/{number}") for number in range(60)], per_host=2)
    assert len(server.asked()) <= 22
    assert {row["fail_reason"] for row in rows} == {"http_503", "host_busy"}
    assert all(row["fail_transient"] for row in rows)


def test_pause_that_a_host_asks_for_holds_for_the_units_after(tmp_path, server):
    server.answers |= {f"/{number}": status(429, ("Retry-After", "3600")) for number in range(4)}
    urls = [server.url(f"/{number}") for number in range(4)]
    rows = _fetched(tmp_path, urls, rows_per_unit=1, tries=1)
    assert [row["fail_reason"] for row in rows] == ["http_429", "host_busy", "host_busy", "host_busy"]
    assert [request.path for request in server.asked()] == ["/0"]


def test_pause_that_is_no_number_is_no_fault(tmp_path, server):
    server.answers["/a"] = status(429, ("Retry-After", "\u00c2\u00b2"))
    (row,) = _fetched(tmp_path, [server.url("/a")], tries=1)
    assert row["fail_reason"] == "http_429"


def test_opt_out_of_an_error_page_says_nothing_of_the_picture(tmp_path, server):
    noindex = ("X-Robots-Tag", "noindex")
    server.answers |= {"/a": status(503, noindex), "/b": status(404, noindex)}
    one, two = _fetched(tmp_path, [server.url("/a"), server.url("/b")], tries=1)
    assert (one["fail_reason"], one["fail_transient"], two["fail_reason"]) == ("http_503", True, "http_404")


def test_metadata_nested_too_deeply_costs_neither_the_other_values_nor_a_takedown(tmp_path, server):
    server.answers |= {"/a": sends(_jpeg(1)), "/b": sends(_jpeg(2))}
    (tmp_path / "raw").mkdir()
    nested = "[" * 700 + "]" * 700
    lines = [f'{{"url": "{server.url(path)}", "width": 3, "deep": {nested}}}' for path in ("/a", "/b", ":9/x")]
    (tmp_path / "raw" / "a.jsonl").write_text("\n".join(lines))
    root = open_store(str(tmp_path / "root"))
    write_list(root, [Identifier(kind="url", value=normal_url(server.url("/a")))], [], frozenset(), {})
    one, two, _ = _rows(_ingest(root, _settings(tmp_path / "raw", tries=1)))
    assert one["fail_reason"] == "takedown"
    assert json.loads(two["metadata"])["width"] == 3
    assert [request.path for request in server.asked()] == ["/b"]


def test_user_and_password_of_a_url_are_neither_sent_nor_stored(tmp_path, server):
    server.answers |= {"/a": redirects(server.url("/b").replace("//", "//u:secret@")), "/b": sends(_jpeg(1))}
    (row,) = _fetched(tmp_path, [server.url("/a").replace("//", "//bob:secret@")])
    assert row["fail_reason"] is None
    assert not any("Authorization" in request.headers for request in server.asked())
    assert "secret" not in row["metadata"]
    assert json.loads(row["metadata"])["url"] == server.url("/a")


@pytest.mark.parametrize("allowed", [False, True])
def test_port_of_another_service_is_not_asked_unless_the_recipe_allows_it(tmp_path, allowed):
    ports = {"allow_ports": [6379]} if allowed else {}
    (row,) = _fetched(tmp_path, ["http://127.0.0.9:6379/a"], tries=1, **ports)
    assert row["fail_reason"] == ("connect" if allowed else "bad_url")


def test_cell_that_cannot_be_read_costs_its_row_alone(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1))
    (tmp_path / "raw").mkdir()
    offsets, texts = b"".join(n.to_bytes(4, "little") for n in (0, 2, 4, 6)), b"ok\xff\xfeok"
    captions = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(texts))
    dates = pa.array([0, 0, 2**62], pa.timestamp("us"))
    table = pa.table({"url": [server.url("/a")] * 3, "caption": captions, "date": dates})
    pq.write_table(table, tmp_path / "raw" / "a.parquet")
    rows = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(tmp_path / "raw")))
    assert [row["fail_reason"] for row in rows] == [None, "bad_row", "bad_row"]
    assert "'caption'" in rows[1]["fail_message"]
    assert "'date'" in rows[2]["fail_message"]


def test_columns_of_bytes_are_read_as_text_and_whole_numbers_as_keys(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1))
    (tmp_path / "raw").mkdir()
    columns = {"url": [server.url("/a").encode()], "caption": [b"cat"], "id": [5.0]}
    pq.write_table(pa.table(columns), tmp_path / "raw" / "A.PARQUET")
    (row,) = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(tmp_path / "raw", key_field="id")))
    assert (row["key"], row["caption"], row["fail_reason"]) == ("5", "cat", None)


def test_quotation_marks_of_a_tsv_are_text(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1))
    captions = ['"The cat" sat', '"open quote', "next", "last"]
    (tmp_path / "raw").mkdir()
    lines = ["url\tcaption", *(f"{server.url('/a')}\t{caption}" for caption in captions)]
    (tmp_path / "raw" / "a.TSV").write_text("\n".join(lines))
    rows = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(tmp_path / "raw")))
    assert [row["caption"] for row in rows] == captions


def test_column_is_never_lost_to_the_name_another_was_given(tmp_path, server):
    server.answers["/a"] = sends(_jpeg(1))
    folder = _table(tmp_path / "raw", url=[server.url("/a")], status=["new"], original_status=["old"])
    (row,) = _rows(_ingest(open_store(str(tmp_path / "root")), _settings(folder)))
    said = json.loads(row["metadata"])
    assert (said["status"], said["original_status"], said["original_original_status"]) == ("success", "old", "new")


def test_retry_fetches_again_what_lay_in_an_archive_that_is_gone(tmp_path, server):
    server.answers |= {"/a": sends(_jpeg(1)), "/b": status(503)}
    folder = _table(tmp_path / "raw", url=[server.url("/a"), server.url("/b")])
    root = open_store(str(tmp_path / "root"))
    before = _ingest(root, _settings(folder, tries=1))
    root.delete(before.folder.at(before.commits[0].data.name))
    server.answers["/b"] = sends(_jpeg(2))
    after = _ingest(root, _settings(folder, tries=1), retry_failed=True)
    assert after.counts.kept == 2


def test_headers_of_pictures_are_read_where_they_hold_up_no_download(tmp_path, server, monkeypatch):
    honest, threads = image_bytes.image_extension, []

    def watched(data: bytes) -> str:
        threads.append(threading.current_thread())
        return honest(data)

    monkeypatch.setattr("tokenmill.pipelines.sources.urls.image_extension", watched)
    server.answers["/a"] = sends(_jpeg(1))
    _fetched(tmp_path, [server.url("/a")])
    assert [thread.name for thread in threads] == [threading.current_thread().name]
