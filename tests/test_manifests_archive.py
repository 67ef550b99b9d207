"""Archives: the same bytes every time, readable by stock webdataset, offsets that hold, damage that is noticed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.manifests.archive import ArchiveWriter, escape_key, iterate_members, npy_bytes, split_name
from tokenmill.manifests.identity import sha256_hex

KEYS = [
    "plain",
    "a.b.c",
    "folder/with/name.jpg",
    "../up",
    "/absolute",
    "trail/",
    "sp ace",
    "ünï/名前",
    "%41",
    "a//b",
    "",
]


def _members(number: int) -> dict[str, bytes]:
    return {
        "codes.npy": npy_bytes(np.arange(number * 300, dtype=np.uint16)),
        "text.npy": npy_bytes(np.arange(number, dtype=np.uint32)),
        "json": json.dumps({"key": KEYS[number % len(KEYS)], "number": number}).encode(),
    }


def _write(path: Path, keys: list[str] = KEYS) -> tuple[ArchiveWriter, list[dict]]:
    with ArchiveWriter(path) as writer:
        placed = [writer.add(key, _members(number)) for number, key in enumerate(keys)]
    return writer, placed


def test_archive_written_twice_has_equal_bytes_and_the_digest_it_claims(tmp_path):
    first, _ = _write(tmp_path / "a.tar")
    _write(tmp_path / "b.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert data == (tmp_path / "b.tar").read_bytes()
    assert (first.bytes, first.sha256) == (len(data), sha256_hex(data))
    assert len(data) % tarfile.RECORDSIZE == 0


def test_archive_does_not_depend_on_the_order_members_are_given_in(tmp_path):
    for name, turn in (("a.tar", 1), ("b.tar", -1)):
        with ArchiveWriter(tmp_path / name) as writer:
            writer.add("k", dict(list(_members(3).items())[::turn]))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_archive_headers_carry_no_time_owner_or_machine(tmp_path):
    _write(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.mode, info.uname, info.gname) == (0, 0, 0, 0o644, "", "")


def test_offsets_hold_exactly_the_members(tmp_path):
    _, placed = _write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    for number, places in enumerate(placed):
        for extension, wanted in _members(number).items():
            place = places[extension]
            assert data[place.offset : place.offset + place.length] == wanted
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [(i.name, i.offset_data, i.size) for i in archive] == [
            (place.name, place.offset, place.length) for places in placed for place in places.values()
        ]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves its file to the collector
def test_stock_webdataset_reads_and_decodes_every_sample(tmp_path):
    _write(tmp_path / "shard.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False).decode())
    assert [sample["json"]["key"] for sample in samples] == KEYS
    for number, sample in enumerate(samples):
        assert sample["__key__"] == escape_key(KEYS[number])
        assert np.array_equal(sample["codes.npy"], np.arange(number * 300, dtype=np.uint16))
        assert np.array_equal(sample["text.npy"], np.arange(number, dtype=np.uint32))
        assert {name for name in sample if not name.startswith("__")} == {"codes.npy", "text.npy", "json"}


def test_stock_tar_extracts_every_member_inside_the_folder(tmp_path):
    _write(tmp_path / "shard.tar")
    out = tmp_path / "out"
    with tarfile.open(tmp_path / "shard.tar") as archive:
        archive.extractall(out, filter="data")
    assert sum(path.is_file() for path in out.rglob("*")) == 3 * len(KEYS)
    assert {path.name for path in tmp_path.iterdir()} == {"shard.tar", "out"}


@given(st.lists(st.text(st.sampled_from("a.b/%\\ü\0 "), max_size=6), unique=True, max_size=20))
def test_escaped_keys_differ_come_back_and_stay_inside(keys):
    names = [escape_key(key) for key in keys]
    assert len(set(names)) == len(keys)
    for key, name in zip(keys, names, strict=True):
        assert unquote(name) == (key or "%")
        assert split_name(f"{name}.codes.npy") == (name, "codes.npy")
        assert all(part not in ("", ".", "..") for part in name.split("/"))


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [("00001.JPG", "00001", "jpg"), ("a.b/c.tar.gz", "a.b/c", "tar.gz"), ("x", "x", ""), ("d/.hidden", "d/", "hidden")],
)
def test_split_name_begins_the_extension_at_the_first_dot_of_the_last_part(name, key, extension):
    assert split_name(name) == (key, extension)


def test_iterate_members_gives_names_places_and_bytes_in_order(tmp_path):
    _, placed = _write(tmp_path / "a.tar")
    with (tmp_path / "a.tar").open("rb") as file:
        found = list(iterate_members(file))
    assert [member for member, _ in found] == [place for places in placed for place in places.values()]
    assert [data for _, data in found] == [_members(n)[e] for n, places in enumerate(placed) for e in places]


def test_iterate_members_needs_no_seeking(tmp_path):
    _write(tmp_path / "a.tar")

    class Pipe(io.RawIOBase):
        file = (tmp_path / "a.tar").open("rb")

        def read(self, size=-1):
            return self.file.read(min(size, 1000))

    with Pipe.file:
        assert len(list(iterate_members(Pipe()))) == 3 * len(KEYS)


def test_archive_cut_off_anywhere_before_its_end_mark_is_noticed(tmp_path):
    _, placed = _write(tmp_path / "a.tar", KEYS[:3])
    data = (tmp_path / "a.tar").read_bytes()
    last = placed[-1]["text.npy"]
    end = last.offset + -(-last.length // 512) * 512
    for cut in [*range(0, end, 173), *range(512, end + 1, 512)]:
        whole = []
        with pytest.raises(tarfile.ReadError):
            whole += iterate_members(io.BytesIO(data[:cut]))
    assert len(list(iterate_members(io.BytesIO(data[: end + 512])))) == 9


def test_archive_cut_off_still_gives_the_members_before_the_cut(tmp_path):
    _, placed = _write(tmp_path / "a.tar", KEYS[:3])
    data = (tmp_path / "a.tar").read_bytes()
    found = []
    with pytest.raises(tarfile.ReadError):
        for member, _ in iterate_members(io.BytesIO(data[: placed[1]["text.npy"].offset])):
            found.append(member)
    assert found == [*placed[0].values(), placed[1]["codes.npy"], placed[1]["json"]]


def test_archive_with_a_damaged_header_in_the_middle_is_noticed(tmp_path):
    _, placed = _write(tmp_path / "a.tar", KEYS[:3])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[placed[1]["codes.npy"].offset - 512] ^= 1
    with pytest.raises(tarfile.ReadError):
        list(iterate_members(io.BytesIO(data)))


def test_empty_archive_is_whole_and_an_empty_file_is_not(tmp_path):
    _write(tmp_path / "empty.tar", [])
    assert list(iterate_members(io.BytesIO((tmp_path / "empty.tar").read_bytes()))) == []
    with pytest.raises(tarfile.ReadError):
        list(iterate_members(io.BytesIO(b"")))
