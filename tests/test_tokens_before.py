"""Codes that exist are taken over, nothing else is encoded, and the archive is the one made from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests import counted_vision, tiny

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import motion, render_motion
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe

SMALL, LARGE = 40, 80  # sides: 25 pictures, of which a rule keeps 20 or all


def _png(seed: int, height: int, width: int) -> bytes:
    stream = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for shard in range(2):
        with ArchiveWriter(folder / f"{shard:05d}.tar") as writer:
            for number in range(12 + shard):
                side = SMALL if number % 5 == 4 or number == 12 else LARGE
                data = _png(shard * 100 + number, side, side + 16 * (number % 3))
                writer.add(f"{shard}{number:02d}", {"png": data, "txt": f"picture {number}".encode()})


def _write_clips(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, frames in enumerate((8, 24, 40)):
        moved = render_motion(motion(number), 8, 48)
        encode_mp4(folder / f"film-{number}.mp4", np.concatenate([moved, moved[::-1]] * 4)[:frames], 8)
    rows = [{"file": f"film-{number}.mp4", "caption": "two squares that move"} for number in range(3)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Root:
    """A root over the same data as others, tokenized with a tokenizer that says what it encodes."""

    def __init__(self, data: Path, folder: Path, source: str) -> None:
        self.data, self.path, self.source = data, folder, source
        self.log = data.parent / "encoded.log"

    def tokens(self, changes: dict[str, Any] | None = None) -> Snapshot:
        every = {
            "execution.unit_rows": 7,
            "execution.decode_threads": 2,
            "filter.image": {"scorers": {"resolution": {}}, "rules": {"size": f"min_side_px > {SMALL}"}},
            "filter.video.scenes": {"content": None, "min_seconds": 0.5, "max_seconds": 60},
            "tokenize.vocabulary": {"name": "bytes", "codebook_size": 256},
            "tokenize.vision": {"name": counted_vision.NAME, "log": str(self.log)},
            "tokenize.video": {"min_area": 1024, "max_area": 1024, "fps": 8, "max_ids": 250},
            "plan.split_long_clips": False,
        }
        value = tiny.recipe(self.data, str(self.path), every | (changes or {}), sources=[self.source])
        return Chain(recipe=check_recipe(value, "r"), options=ChainOptions(quiet=True)).tokenize[self.source]

    def encoded(self) -> int:
        return counted_vision.encoded(self.log)

    def files(self, snapshot: Snapshot) -> dict[str, str]:
        """Return the digests of all files that a snapshot stands for."""
        folder, store = snapshot.folder, snapshot.folder.store
        names = [folder.at(file.name) for commit in snapshot.commits for file in commit.files]
        names += [folder.at(f"commits/{commit.unit}.{commit.attempt}.json") for commit in snapshot.commits]
        return {name: sha256_hex(store.read_bytes(name)) for name in names}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Root]:
    counted_vision.install(monkeypatch)
    data = tmp_path / "data"
    _write_pictures(data / "scenes")
    _write_clips(data / "clips")
    return lambda name="root", source="scenes": Root(data, tmp_path / name, source)


ALL = {"filter.image.rules": {}}
NO_CAPTION = {"caption.image.columns": {"said": {"engine": "template", "templates": ["a picture"]}}}
CAPTION = {"caption.image.columns": {"said": {"engine": "template", "templates": ["another {key}"]}}}


def _equal_to_scratch(root: Callable[..., Root], changed: Root, changes: dict[str, Any]) -> None:
    snapshot = changed.tokens(changes)
    scratch = root("scratch", changed.source)
    from_scratch = scratch.tokens(changes)
    assert snapshot.digest == from_scratch.digest
    assert changed.files(snapshot) == scratch.files(from_scratch)


def test_selection_that_grew_encodes_only_what_is_new(root: Callable[..., Root]) -> None:
    first = root()
    assert (first.tokens().counts.kept, first.encoded()) == (20, 20)
    assert (first.tokens(ALL).counts.kept, first.encoded()) == (25, 5)
    _equal_to_scratch(root, first, ALL)
    assert first.encoded() == 25  # of the root from scratch: the counter counts


@pytest.mark.parametrize(
    "changes",
    [
        CAPTION,
        {"tokenize.vocabulary": {"name": "bytes", "codebook_size": 512}},
        {"tokenize.mask": {"kinds": ["email"]}},
        {"sources.scenes.licence": "CC0-1.0"},
        {"execution.unit_rows": 5},
    ],
    ids=["captions", "vocabulary", "mask", "licence", "unit_rows"],
)
def test_what_changes_no_codes_encodes_nothing(root: Callable[..., Root], changes: dict[str, Any]) -> None:
    first = root()
    before = first.tokens()
    first.encoded()
    after = first.tokens(changes)
    assert first.encoded() == 0
    assert after.digest != before.digest
    _equal_to_scratch(root, first, changes)


@pytest.mark.parametrize(
    "changes",
    [{"tokenize.image": {"min_area": 1024, "max_area": 2048}}, {"tokenize.vision.batch_size": 2}],
    ids=["area", "batch size"],
)
def test_what_may_change_codes_encodes_everything(root: Callable[..., Root], changes: dict[str, Any]) -> None:
    first = root()
    first.tokens()
    first.encoded()
    first.tokens(changes)
    assert first.encoded() == 20


def test_archives_that_are_gone_or_damaged_are_encoded_again(root: Callable[..., Root]) -> None:
    first = root()
    before = first.tokens()
    first.encoded()
    store, folder = before.folder.store, before.folder
    gone, damaged, *_ = before.commits
    store.delete(folder.at(gone.data.name))
    path = store.local_path(folder.at(damaged.data.name))
    data = bytearray(path.read_bytes())
    row = folder.read_rows(damaged).row(0, named=True)
    data[row["codes_offset"] + row["codes_length"] - 1] ^= 1
    path.unlink()
    path.write_bytes(data)
    first.tokens(CAPTION)
    assert first.encoded() == gone.counts.kept + 1
    _equal_to_scratch(root, first, CAPTION)


def test_picture_of_the_same_key_and_other_bytes_is_encoded_again(root: Callable[..., Root]) -> None:
    first = root()
    first.tokens()
    first.encoded()
    shard = first.data / "scenes" / "00001.tar"
    with ArchiveWriter(shard) as writer:
        for number in range(13):
            side = SMALL if number % 5 == 4 or number == 12 else LARGE
            data = _png(100 + number + 1000 * (number == 3), side, side + 16 * (number % 3))
            writer.add(f"1{number:02d}", {"png": data, "txt": f"picture {number}".encode()})
        writer.add("199", {"png": _png(199, LARGE, LARGE), "txt": b"one more: the shard has another size"})
    first.tokens()
    assert first.encoded() == 2


def test_failures_between_codes_that_are_taken_over_are_none_in_a_row(root: Callable[..., Root]) -> None:
    first = root()
    with ArchiveWriter(first.data / "scenes" / "00000.tar") as writer:
        for number in range(12):
            data = _png(number, LARGE, LARGE)
            writer.add(f"0{number:02d}", {"png": data[:-300] if number % 2 else data, "txt": b"a picture"})
    budget = ALL | {"execution.failure_budget": 2, "execution.unit_rows": 100, "filter.image.scorers": {}}
    assert first.tokens(budget).counts.failed == {"truncated": 6}
    first.encoded()
    assert first.tokens(budget | CAPTION).counts.failed == {"truncated": 6}
    assert first.encoded() == 0


def test_clips_are_taken_over_unless_their_words_leave_room_for_fewer_frames(root: Callable[..., Root]) -> None:
    first = root(source="clips")
    whole = first.tokens()
    assert (whole.counts.kept, first.encoded()) == (3, _windows(whole))
    vocabulary = {"tokenize.vocabulary": {"name": "bytes", "codebook_size": 512}}
    first.tokens(vocabulary)
    assert first.encoded() == 0
    words = {"caption.video.columns": {"said": {"engine": "template", "templates": ["squares " * 8]}}}
    lower = first.tokens(words)
    changed = _segments(lower, [key for key, told in _segments(whole).items() if _segments(lower)[key] != told])
    assert 1 <= len(changed) < 3
    assert first.encoded() == sum(segment["vision"][0] for segment in changed.values())
    _equal_to_scratch(root, first, words)


def _segments(snapshot: Snapshot, keys: Sequence[str] | None = None) -> dict[str, Any]:
    rows = pl.concat(snapshot.folder.read_rows(commit) for commit in snapshot.commits)
    found = {row["key"]: json.loads(row["segments"])[-1] for row in rows.iter_rows(named=True)}
    return found if keys is None else {key: found[key] for key in keys}


def _windows(snapshot: Snapshot) -> int:
    return sum(segment["vision"][0] for segment in _segments(snapshot).values())


def test_picture_more_in_a_folder_of_loose_ones_encodes_that_one(root: Callable[..., Root]) -> None:
    first = root(source="photos")
    folder = first.data / "photos"
    folder.mkdir()
    for number in range(8):
        (folder / f"p{number}.png").write_bytes(_png(number, LARGE, LARGE))
    first.tokens(NO_CAPTION)
    assert first.encoded() == 8
    (folder / "p3a.png").write_bytes(_png(100, LARGE, LARGE))
    first.tokens(NO_CAPTION)
    assert first.encoded() == 1
    _equal_to_scratch(root, first, NO_CAPTION)
