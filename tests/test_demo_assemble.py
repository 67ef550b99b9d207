"""The assembled sources: complete, reproducible, resumable, and spoiled exactly where they say."""

import hashlib
import json
import tarfile
from io import BytesIO

import av
import numpy as np
import polars as pl
import pytest
import webdataset
from PIL import Image

from tokenmill.demo.assemble import assemble
from tokenmill.demo.photographs import HELDOUT_PHOTOGRAPHS, photographs, training_photographs
from tokenmill.demo.scenes import HELDOUT_SEEDS, Scene, captions, render

NUM_SCENES = 24


def quiet(_line):
    """Swallow progress."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return assemble(tmp_path_factory.mktemp("demo"), num_scenes=NUM_SCENES, progress=quiet)


def contents(folder):
    """Digest of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def members(folder):
    """Every member of a source's tars by name."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def spoiled(data, source, hint):
    """The spoiled entries of a source with one hint; at least one."""
    found = [entry for entry in data.spoiled if (entry.source, entry.expected_reason_hint) == (source, hint)]
    assert found
    return found


def test_assemble_again_does_nothing(data):
    before = {path: path.stat().st_mtime_ns for path in data.folder.rglob("*")}
    again = assemble(data.folder, num_scenes=NUM_SCENES, progress=quiet)
    assert again.built == ()
    assert again.spoiled == data.spoiled
    assert {path: path.stat().st_mtime_ns for path in data.folder.rglob("*")} == before


def test_assemble_stopped_midway_resumes_to_the_same_bytes(data, tmp_path):
    def stop(line):
        if line.startswith("photos"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(tmp_path, num_scenes=NUM_SCENES, progress=stop)
    (tmp_path / "clips.partial").mkdir()
    (tmp_path / "clips.partial" / "half-written.mp4").write_bytes(b"")
    resumed = assemble(tmp_path, num_scenes=NUM_SCENES, progress=quiet)
    assert resumed.built == ("photos-heldout", "clips", "text")
    assert contents(tmp_path) == contents(data.folder)


def test_assemble_lost_file_rebuilds_only_its_source(data):
    before = contents(data.folder)
    (data.text / "part-00000.jsonl").unlink()
    assert assemble(data.folder, num_scenes=NUM_SCENES, progress=quiet).built == ("text",)
    assert contents(data.folder) == before


def test_scenes_are_img2dataset_shards(data):
    rows = pl.concat([pl.read_parquet(path) for path in sorted(data.scenes.glob("*.parquet"))])
    found = members(data.scenes)
    spoiled_keys = {entry.name for entry in data.spoiled if entry.source == "scenes"}
    assert set(rows["key"]) == {name.split(".")[0] for name in found}
    assert len(rows) == NUM_SCENES + len(spoiled_keys)
    for row in rows.filter(~pl.col("key").is_in(spoiled_keys)).iter_rows(named=True):
        described = json.loads(found[f"{row['key']}.json"])
        picture = found.get(f"{row['key']}.jpg") or found[f"{row['key']}.png"]
        assert row["sha256"] == described["sha256"] == hashlib.sha256(picture).hexdigest()
        assert described["status"] == "success"
        assert found[f"{row['key']}.txt"].decode() == row["caption"] == described["caption"]
        drawn = Scene.from_json(json.loads(described["scene"]))
        assert row["caption"] in captions(drawn)
        shown = np.asarray(Image.open(BytesIO(picture)).convert("RGB"), dtype=np.int16)
        assert np.abs(shown - render(drawn)).mean() < 4
    assert json.loads((data.scenes / "00000_stats.json").read_text())["count"] == len(rows)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
def test_scenes_open_with_stock_webdataset(data):
    samples = list(webdataset.WebDataset(str(data.scenes_heldout / "00000.tar"), shardshuffle=False).decode())
    assert len(samples) == 100
    assert all(sample["json"]["caption"] == sample["txt"] for sample in samples)


def test_heldout_scenes_come_from_seeds_never_trained_on(data):
    def seeds(folder):
        urls = pl.concat([pl.read_parquet(path) for path in folder.glob("*.parquet")])["url"]
        return {int(url.removeprefix("scene://").partition("?")[0]) for url in urls}

    assert min(seeds(data.scenes_heldout)) >= HELDOUT_SEEDS > max(seeds(data.scenes))


def test_photographs_heldout_are_listed_but_not_for_training():
    names = [photograph.name for photograph in photographs()]
    assert len(names) == len(set(names)) >= 12
    assert set(HELDOUT_PHOTOGRAPHS) <= set(names)
    assert {photograph.name for photograph in training_photographs()} == set(names) - set(HELDOUT_PHOTOGRAPHS)


def test_photographs_heldout_lie_by_themselves_as_the_same_files(data):
    files = sorted(data.photos_heldout.glob("scikit-*/*"))
    assert {path.stem for path in files} == set(HELDOUT_PHOTOGRAPHS)
    for path in files:
        assert path.read_bytes() == (data.photos / path.relative_to(data.photos_heldout)).read_bytes()


def test_sidecars_describe_every_file_with_caption_and_licence(data):
    for folder, suffixes in ((data.photos, (".jpg", ".png")), (data.clips, (".mp4",))):
        rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in suffixes}
        assert {row["file"] for row in rows} == files
        assert all(row["caption"] and row["licence"] and row["origin"] for row in rows)


def test_photos_whole_ones_open_and_stay_small(data):
    for path in data.photos.glob("scikit-*/*"):
        with Image.open(path) as picture:
            picture.load()
            assert max(picture.size) <= 1024


def test_text_comes_in_many_scripts(data):
    languages = {}
    for path in data.text.glob("*.jsonl"):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            languages.setdefault(row.get("language"), []).append(row["text"])
    assert sum(map(len, languages.values())) > 500
    assert {"en", "zh_Hans", "ja", "ru", "ar", "hi", "el", "ko"} <= set(languages)
    assert not any(text.isascii() for text in languages["ja"] + languages["ar"])


def test_clips_motions_have_the_frames_they_promise(data):
    for path in sorted(data.clips.glob("scenes/*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert sum(1 for _ in container.decode(stream)) == stream.frames > 30


def test_spoiled_list_is_on_disk_and_names_distinct_samples(data):
    listed = json.loads((data.folder / "spoiled.json").read_text())
    assert [entry.to_json() for entry in data.spoiled] == listed
    assert len({(entry["source"], entry["name"]) for entry in listed}) == len(listed) >= 15
    assert {entry["source"] for entry in listed} == {"scenes", "photos", "clips", "text"}


def test_spoiled_pictures_cannot_be_decoded(data):
    found = members(data.scenes)
    (cut,), (half,) = spoiled(data, "scenes", "truncated"), spoiled(data, "photos", "truncated")
    for picture in (found[f"{cut.name}.jpg"], (data.photos / half.name).read_bytes()):
        opened = Image.open(BytesIO(picture))
        with pytest.raises(OSError, match="truncated"):
            opened.load()
    assert found[f"{spoiled(data, 'scenes', 'empty')[0].name}.jpg"] == b""
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(data.photos / spoiled(data, "photos", "not_an_image")[0].name)


def test_spoiled_bomb_is_tiny_and_claims_3600_million_pixels(data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = data.photos / spoiled(data, "photos", "too_many_pixels")[0].name
    assert path.stat().st_size < 100
    with Image.open(path) as picture:
        assert picture.size == (60_000, 60_000)


def test_spoiled_member_without_picture_has_its_caption_alone(data):
    key = spoiled(data, "scenes", "no_image")[0].name
    assert [name for name in members(data.scenes) if name.startswith(key)] == [f"{key}.txt"]


def test_spoiled_monochrome_has_equal_channels(data):
    key = spoiled(data, "scenes", "colourfulness")[0].name
    pixels = np.asarray(Image.open(BytesIO(members(data.scenes)[f"{key}.jpg"])))
    assert pixels.shape[2] == 3
    assert (pixels == pixels[..., :1]).all()


def test_spoiled_duplicates_are_copies_of_their_twins(data):
    found = members(data.scenes)
    pictures = {name.split(".")[0]: picture for name, picture in found.items() if name.endswith(("jpg", "png"))}
    pictures |= {name.relative_to(data.photos).as_posix(): name.read_bytes() for name in data.photos.rglob("*.jpg")}
    for source in ("scenes", "photos"):
        for entry in spoiled(data, source, "exact_duplicate"):
            assert pictures[entry.name] == pictures[entry.twin]
        for entry in spoiled(data, source, "near_duplicate"):
            assert pictures[entry.name] != pictures[entry.twin]
            one, other = (Image.open(BytesIO(pictures[name])).resize((64, 64)) for name in (entry.name, entry.twin))
            assert np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other)).mean() < 6


def test_spoiled_clips_break_while_opening_or_decoding(data):
    half, no_index = spoiled(data, "clips", "truncated")
    with av.open(str(data.clips / half.name)) as container:
        assert container.streams.video[0].frames == 48
        with pytest.raises(av.error.InvalidDataError):
            list(container.decode(video=0))
    for entry in (no_index, *spoiled(data, "clips", "not_a_video")):
        with pytest.raises(av.error.InvalidDataError):
            av.open(str(data.clips / entry.name))


def test_spoiled_lines_are_broken_as_claimed_and_alone(data):
    def line(entry):
        file, _, offset = entry.name.partition("#")
        return (data.text / file).read_bytes()[int(offset) :].splitlines()[0]

    with pytest.raises(UnicodeDecodeError):
        line(spoiled(data, "text", "bad_encoding")[0]).decode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(line(spoiled(data, "text", "bad_json")[0]))
    assert json.loads(line(spoiled(data, "text", "empty_text")[0]))["text"] == ""
    bad = {line(entry) for entry in data.spoiled if entry.source == "text"}
    for path in data.text.glob("*.jsonl"):
        assert all(json.loads(text)["text"] for text in path.read_bytes().splitlines() if text not in bad)
