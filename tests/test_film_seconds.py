"""How long films are, told by their headers: every container, near and far, whole and broken."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.films import ffmpeg, shots

from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.sources.film_header import mp4_seconds
from tokenmill.pipelines.sources.film_seconds import FilmSeconds

SECONDS = 2.5
FRAGMENTED = ("-movflags", "frag_keyframe+empty_moov")
WAYS = {
    "plain.mp4": (),
    "first.mp4": ("-movflags", "+faststart"),
    "quicktime.mov": (),
    "fragmented.mp4": FRAGMENTED,
    "film.mkv": (),
    "film.webm": ("-c:v", "libvpx", "-deadline", "realtime"),
    "film.avi": ("-c:v", "mpeg4"),
    "film.ts": (),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    source = shots(folder / "source.mkv", [1, 1.5])
    for name, options in WAYS.items():
        ffmpeg("-i", source, "-b:v", "100k", *options, folder / name)
    return folder


@pytest.fixture(scope="module")
def remote(films):
    store = open_store("memory://films-of-film-seconds")
    for name in WAYS:
        store.put(name, (films / name).read_bytes())
    return store


@pytest.mark.parametrize("name", sorted(WAYS))
@pytest.mark.parametrize("place", ["near", "far"])
def test_film_tells_its_seconds(films, remote, name, place):
    store = open_store(str(films)) if place == "near" else remote
    found = FilmSeconds(store)(name, (films / name).stat().st_size)
    assert found == pytest.approx(SECONDS, abs=0.15)


def test_large_mp4_with_its_header_at_the_end_costs_three_small_reads():
    box = lambda kind, content: (8 + len(content)).to_bytes(4, "big") + kind + content  # noqa: E731
    mvhd = box(b"mvhd", bytes(12) + (600).to_bytes(4, "big") + (600 * 7200).to_bytes(4, "big") + bytes(80))
    size_mdat = 5 << 30
    head = box(b"ftyp", b"isom") + (1).to_bytes(4, "big") + b"mdat" + size_mdat.to_bytes(8, "big")
    moov, reads = box(b"moov", mvhd), []
    start_of_moov = len(head) - 16 + size_mdat

    def read(start: int, length: int) -> bytes:
        reads.append(length)
        data, offset = (moov, start - start_of_moov) if start >= start_of_moov else (head, start)
        return data[offset : offset + length].ljust(length, b"\0")

    assert mp4_seconds(read, start_of_moov + len(moov)) == 7200
    assert len(reads) <= 3 and sum(reads) < 20_000


@pytest.mark.parametrize("what", ["empty", "text", "cut off", "no moov", "zeros", "endless boxes", "unknown duration"])
def test_film_that_does_not_say_has_no_seconds(films, tmp_path, what):
    data = bytearray((films / "plain.mp4").read_bytes())
    moov = data.rfind(b"moov") - 4
    mvhd = data.find(b"mvhd")
    data[mvhd + 20 : mvhd + 24] = b"\xff" * 4 if what == "unknown duration" else data[mvhd + 20 : mvhd + 24]
    broken = {
        "empty": b"",
        "text": b"this is a text\n" * 1000,
        "cut off": bytes(data[: moov + 20]),
        "no moov": bytes(data[:moov]),
        "zeros": bytes(200_000),
        "endless boxes": b"\0\0\0\x08free" * 100_000,
        "unknown duration": bytes(data[: mvhd + 30]),
    }[what]
    (tmp_path / "film.mp4").write_bytes(broken)
    assert FilmSeconds(open_store(str(tmp_path)))("film.mp4", len(broken)) is None


@pytest.mark.parametrize("action", ["die", "SIGABRT", "hang"])
def test_header_that_ends_or_hangs_the_child_costs_that_film_alone(films, tmp_path, monkeypatch, action):
    monkeypatch.setenv("TOKENMILL_FAULT", f"header:film:1={action}")
    monkeypatch.setenv("TOKENMILL_FAULT_ONCE", str(tmp_path / "once"))
    store, name = open_store(str(films)), "film.mkv"
    seconds = FilmSeconds(store, timeout_s=2)
    size, started = (films / name).stat().st_size, time.monotonic()
    assert seconds(name, size) is None
    assert time.monotonic() - started < 30
    assert seconds(name, size) == pytest.approx(SECONDS, abs=0.1)
    seconds.close()
    assert not [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and _is_child(pid)]


def _is_child(process: Path) -> bool:
    try:
        parent = (process / "stat").read_bytes().rpartition(b")")[2].split()[1]
        return parent == str(os.getpid()).encode() and b"film_header_child" in (process / "cmdline").read_bytes()
    except OSError:
        return False
