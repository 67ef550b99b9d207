"""Takedowns: a hundred samples leave selection, plan and, on demand, every archive and table under the root."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from tests import asked_captioner, tiny
from tests.harness import faults_in, run_alone

from tokenmill.cli import main
from tokenmill.manifests.archive import ArchiveWriter, escape_key
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.takedowns import Identifier, Takedowns, normal_url
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.takedown import read_identifiers
from tokenmill.pipelines.takedown_find import all_commits, stage_dirs
from tokenmill.recipe import Recipe, load_recipe

PHOTOS, SCENES, TEXTS = 70, 24, 120


@dataclass(frozen=True)
class Root:
    """Raw data, a recipe over it, and a root where it ran up to its plan."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path)

    def run(self) -> Chain:
        chain = Chain(recipe=self.recipe, options=ChainOptions(quiet=True))
        _ = chain.plan
        return chain

    def chain(self) -> Chain:
        return Chain(recipe=self.recipe, options=ChainOptions(work=frozenset(), quiet=True))

    def ask(self, *lines: str) -> str:
        (self.folder / "asked.txt").write_text("\n".join(lines) + "\n")
        return str(self.folder / "asked.txt")


def photo(number: int, side: int = 32) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BILINEAR).save(stream, "PNG")
    return stream.getvalue()


def key_of(number: int) -> str:
    return f"folder/photo.{number:03d}.png"


def write_data(data: Path) -> None:
    (data / "photos/folder").mkdir(parents=True)
    (data / "text").mkdir()
    (data / "scenes").mkdir()
    for number in range(PHOTOS):
        (data / "photos" / key_of(number)).write_bytes(photo(number))
    rows = [
        {"file": key_of(n), "caption": f"blots {n}", "url": f"https://Photos.example.org:443/p/{n}.png#top"}
        for n in range(PHOTOS)
    ]
    (data / "photos/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ArchiveWriter(data / "scenes/00000.tar") as writer:
        for number in range(SCENES):
            copied = photo(1) if number == 5 else photo(1000 + number)  # sample 5: the bytes of a loose picture
            described = json.dumps({"url": f"http://example.org/s?id={number}", "caption": f"a scene, number {number}"})
            writer.add(f"scene{number:04d}", {"png": copied, "json": described.encode()})
    lines = [
        json.dumps(
            {"id": f"doc-{n:04d}", "text": f"Text {n}: " + f"words of {n} " * 9, "link": f"https://t.example/{n}"}
        )
        for n in range(TEXTS)
    ]
    (data / "text/texts.jsonl").write_text("\n".join(lines) + "\n")


def write_recipe(root: Root, changes: Mapping[str, Any] | None = None) -> None:
    duplicates = {"exact": True, "max_distance": None}
    settings = {
        "execution.unit_rows": 40,
        "sources.text.range_bytes": 6000,
        "filter.image.rules": {"resolution": "min_side_px >= 8"},
        "filter.image.duplicates": duplicates,
        "filter.image.decontaminate": [{"name": "exam", "kind": "images", "url": str(root.folder / "exam")}],
        "filter.image.scorers": {"resolution": {}, "colourfulness": {}, "perceptual_hash": {}},
        "plan.held_out": 0.0,
        "plan.window_documents": 40,
        "tokenize.image.max_area": 1024,
    }
    changed = {**settings, **(changes or {})}
    sources = ("scenes", "photos", "text")
    tiny.write_recipe(root.path, root.folder / "data", str(root.root), changed, sources=sources)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Root:
    root = Root(tmp_path_factory.mktemp("takedown"))
    write_data(root.folder / "data")
    (root.folder / "exam").mkdir()
    (root.folder / "exam/unseen.png").write_bytes(photo(5000))
    write_recipe(root)
    root.run()
    return root


@pytest.fixture
def root(prepared: Root, tmp_path: Path) -> Root:
    shutil.copytree(prepared.folder, tmp_path / "copy")
    copy = Root(tmp_path / "copy")
    write_recipe(copy)
    return copy


def hundred() -> list[str]:
    return [f"photos/{key_of(n)}" for n in range(50)] + [f"doc-{n:04d}" for n in range(0, 100, 2)]


def kept(root: Root) -> dict[str, set[str]]:
    chain = root.chain()
    found: dict[str, set[str]] = {}
    for source, snapshot in chain.select.items():
        tables = [snapshot.folder.read_rows(commit) for commit in snapshot.commits]
        found[source] = {key for table in tables for key in table.filter("keep")["key"]}
    return found


def planned(root: Root) -> set[tuple[str, str]]:
    """Read the samples of the recipe's plan out of its tables, without the project's own look-ups."""
    plan = root.chain().plan
    found = set()
    for row in plan.windows.iter_rows(named=True):
        documents = pl.read_parquet(root.root / plan.folder.path / row["documents"])
        for source, shard, sample in documents.select("source", "shard", "sample").iter_rows():
            index = pl.read_parquet(root.root / plan.index_of[shard])
            found.add((source, index["key"][sample]))
    return found


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_takedown_of_a_hundred_keys_leaves_none_in_selection_and_plan(root, capsys):
    before = root.run()
    texts_only = [f"doc-{n:04d}" for n in range(0, 100, 2)]
    untouched = before.tokenize["scenes"].digest

    assert main(["takedown", str(root.path), "--keys", root.ask(*hundred()), "--json"]) == 0
    report = report_of(capsys)
    assert report["asked"] == 100 and report["not_found"] == []
    assert report["samples"] == {"photos": 50, "scenes": 1, "text": 50}, "the scene has a photo's bytes"

    after = root.run()
    assert not {f"photos/{key}" for key in kept(root)["photos"]} & set(hundred())
    assert not kept(root)["text"] & set(texts_only)
    assert "scene0005" not in kept(root)["scenes"]
    names = planned(root)
    assert len(names) == (PHOTOS - 50) + (SCENES - 1) + (TEXTS - 50)
    assert not {f"{source}/{key}" for source, key in names} & set(hundred())
    assert not {key for _, key in names} & set(texts_only)
    assert after.plan.plan_id != before.plan.plan_id
    assert after.tokenize["scenes"].digest == untouched, "its copy had been dropped as a duplicate before"
    for source in ("photos", "text"):
        counts = after.select[source].counts
        assert counts.dropped["takedown"] == 50
    assert faults_in(open_store(str(root.root))) == []


def test_takedown_touches_only_the_slices_that_lose_a_sample(root):
    before = root.run()
    assert main(["takedown", str(root.path), "--keys", root.ask("doc-0003", "scene0000")]) == 0
    after = root.run()
    assert after.tokenize["photos"].digest == before.tokenize["photos"].digest
    units = {stage: [{c.unit for c in s.commits} for s in (chain.select["text"], chain.tokenize["text"])]
             for stage, chain in (("before", before), ("after", after))}  # fmt: skip
    for old, new in zip(units["before"], units["after"], strict=True):
        assert len(old - new) == 1, "one slice of many"


def test_takedown_done_again_changes_nothing(root, capsys):
    arguments = ["takedown", str(root.path), "--keys", root.ask(*hundred()), "--json"]
    assert main(arguments) == 0
    first = report_of(capsys)
    root.run()
    before = {path: path.stat().st_mtime_ns for path in root.root.rglob("*") if path.is_file()}
    assert main(arguments) == 0
    second = report_of(capsys)
    assert second["list"] is None
    assert second["samples"] == first["samples"]
    root.run()
    assert {path: path.stat().st_mtime_ns for path in root.root.rglob("*") if path.is_file()} == before


def test_takedown_of_unknown_keys_names_them_and_ends_with_one(root, capsys):
    assert main(["takedown", str(root.path), "--keys", root.ask("doc-0001", "nobody", "photos/no.png"), "--json"]) == 1
    assert report_of(capsys)["not_found"] == ["nobody", "photos/no.png"]
    root.run()
    assert "doc-0001" not in kept(root)["text"]


def test_takedown_by_url_and_hash_finds_the_same_samples(root, capsys):
    urls = [
        "http://photos.example.org/p/3.png",
        "https://example.org/s?id=7#x",
        "https://t.example/5/",
        "https://no.one/",
    ]
    assert main(["takedown", str(root.path), "--urls", root.ask(*urls), "--json"]) == 1
    report = report_of(capsys)
    assert report["samples"] == {"photos": 1, "scenes": 1, "text": 1}
    assert report["not_found"] == [normal_url("https://no.one/")]
    hashes = [sha256_hex(photo(9)), sha256_hex(photo(1001)), f"{looks(root)['scene0002']:016x}"]
    assert main(["takedown", str(root.path), "--hashes", root.ask(*hashes), "--json"]) == 0
    root.run()
    now = kept(root)
    assert not now["photos"] & {key_of(3), key_of(9)}
    assert not now["scenes"] & {"scene0007", "scene0001", "scene0002"}
    assert "doc-0005" not in now["text"]
    assert sum(len(keys) for keys in now.values()) == (PHOTOS - 2) + (SCENES - 3 - 1) + (TEXTS - 1)


def looks(root: Root) -> dict[str, int]:
    """Return the perceptual hash of every scene."""
    tables = [pl.read_parquet(path) for path in root.root.glob("score/scenes/*/*.parquet")]
    return {key: phash for table in tables if "phash" in table.columns
            for key, phash in table.select("key", "phash").iter_rows()}  # fmt: skip


def test_takedown_of_a_kept_original_takes_its_copies_too(root):
    assert main(["takedown", str(root.path), "--keys", root.ask(f"photos/{key_of(1)}")]) == 0
    root.run()
    assert key_of(1) not in kept(root)["photos"]
    assert "scene0005" not in kept(root)["scenes"], "the copy does not take its place"


def test_data_that_arrives_later_and_is_on_a_list_never_gets_in(root):
    assert main(["takedown", str(root.path), "--keys", root.ask("late-1", "doc-0000")]) == 1
    lines = [json.dumps({"id": f"late-{n}", "text": f"late words {n} " * 5}) for n in range(3)]
    (root.folder / "data/text/later.jsonl").write_text("\n".join(lines) + "\n")
    chain = root.run()
    assert kept(root)["text"] >= {"late-0", "late-2"}
    assert not kept(root)["text"] & {"late-1", "doc-0000"}
    assert chain.ingest["text"].counts.failed == {"takedown": 1}
    assert b"late-1" not in everything(root, but=("takedowns",))


def test_packs_and_steps_of_the_report_are_those_of_the_plan(root, capsys):
    plan = root.chain().plan
    asked = {f"photos/{key_of(n)}" for n in (2, 40)} | {"text/doc-0011"}
    expected = set()
    for row in plan.windows.iter_rows(named=True):
        for place in pl.read_parquet(root.root / plan.folder.path / row["documents"]).iter_rows(named=True):
            key = pl.read_parquet(root.root / plan.index_of[place["shard"]])["key"][place["sample"]]
            if f"{place['source']}/{key}" in asked:
                expected.add(row["first_pack"] + place["pack"])
    size, done = 3, 4
    folder = root.root / "checkpoints/main/step-00000004"
    folder.mkdir(parents=True)
    loader = {"plan_id": plan.plan_id, "phase": "pretrain", "epoch": 0, "next_pack": size * done, "global_packs": size}
    (folder / "checkpoint.json").write_text(json.dumps({"schema": 1, "loader": loader, "files": []}))

    assert main(["takedown", str(root.path), "--keys", root.ask(*asked), "--json"]) == 0
    (found,) = report_of(capsys)["plans"]
    assert found["plan"] == plan.folder.path
    assert found["packs"] == sorted(expected)
    (run,) = found["runs"]
    assert run["packs_seen"] == sorted(pack for pack in expected if pack < size * done)
    assert run["steps"] == sorted({pack // size for pack in expected if pack < size * done})
    assert open_plan(open_store(str(root.root)), found["plan"]).num_packs == plan.num_packs, "still to be trained on"


def everything(root: Root, *, but: tuple[str, ...] = ()) -> bytes:
    """Return the content of every file under the root: tables as their values, all else as it is."""
    parts = []
    for path in sorted(root.root.rglob("*")):
        if path.is_file() and path.relative_to(root.root).parts[0] not in but:
            parts.append(path.read_bytes())
            if path.suffix == ".parquet":
                parts.append(pl.read_parquet(path).write_ndjson().encode())
    return b"\n".join(parts)


def assert_gone(root: Root) -> None:
    """No name and no byte of the hundred is anywhere under the root; raw files' names are where records name inputs."""
    found = everything(root, but=("takedowns",))
    assert not [name for name in hundred() if name.encode() in found]
    for number in range(50):
        assert photo(number) not in found
        assert sha256_hex(photo(number)).encode() not in found
        assert escape_key(key_of(number)).encode() not in found
    assert not [n for n in range(0, 100, 2) if f"doc-{n:04d}".encode() in found]
    assert f"photo.{60:03d}".encode() in found and b"doc-0001" in found, "the others are there"


def forget_raw_photos(root: Root) -> None:
    """Remove the raw files, as the report asks: a record names the raw files it was made of."""
    for number in range(50):
        (root.folder / "data/photos" / key_of(number)).unlink()
    sidecar = root.folder / "data/photos/captions.jsonl"
    lines = sidecar.read_text().splitlines()
    sidecar.write_text("".join(line + "\n" for line in lines if json.loads(line)["file"] > key_of(49)))


def test_rewrite_leaves_no_key_and_no_byte_under_the_root(root, capsys, monkeypatch):
    asked_captioner.install(monkeypatch)
    log = root.folder / "asked.log"
    column = {"engine": asked_captioner.NAME, "log": str(log), "prompt": "Say {key} of {source}"}
    write_recipe(root, {"caption.image": {"columns": {"dense": column}}})
    root.run()
    paid = len(log.read_text().splitlines())
    assert paid == PHOTOS + SCENES - 1
    old_plan = root.chain().plan.folder.path
    (root.root / "reports").mkdir()
    (root.root / "reports/main.html").write_text("a page with pictures")
    arguments = ["takedown", str(root.path), "--keys", root.ask(*hundred()), "--rewrite", "--json"]
    assert main(arguments) == 0
    report = report_of(capsys)
    done = report["rewritten"]
    assert old_plan in done["plans"]
    assert len(done["archives"]) >= 1
    assert {raw["file"] for raw in report["raw_files"]} >= {key_of(0), "texts.jsonl"}
    store = open_store(str(root.root))
    assert faults_in(store) == []
    tables_and_tars = b"\n".join(
        pl.read_parquet(path).write_ndjson().encode() if path.suffix == ".parquet" else path.read_bytes()
        for path in root.root.rglob("*")
        if path.suffix in (".parquet", ".tar", ".html") and path.parent.name != "takedowns"
    )
    assert not [key for key in hundred() if key.removeprefix("photos/").encode() in tables_and_tars]
    assert not [n for n in range(50) if photo(n) in tables_and_tars]

    chain = root.run()
    assert chain.ingest["photos"].counts.failed == {"takedown": 50}
    assert len(planned(root)) == (PHOTOS - 50) + (SCENES - 1) + (TEXTS - 50)
    for snapshot in chain.snapshots("tokenize"):
        assert not snapshot.counts.failed, "what is left is read from the rewritten archives"
    again = Chain(recipe=root.recipe, options=ChainOptions(quiet=True, retry_failed=True))
    assert again.ingest["photos"].digest == chain.ingest["photos"].digest, "reading the raw files again lets none in"

    forget_raw_photos(root)
    root.run()
    assert main(["gc", str(root.path), "--apply", "--older-than", "0"]) == 0
    assert_gone(root)
    assert len(log.read_text().splitlines()) == paid, "nobody is asked again"
    (folder,) = [
        one for one in stage_dirs(store, "caption") if one.source == "photos" and one.config.settings.get("prompt")
    ]
    names = [one.name for commit in all_commits(folder) if commit.counts.rows_in for one in commit.inputs]
    assert names == [key_of(50), "kept", key_of(69)], "nor do answers go by the name of a file that is taken down"
    assert faults_in(store) == []
    assert main(arguments) == 0, "doing it again finds nothing, and all of it was found before"


def test_model_of_which_only_the_export_is_left_is_reported_as_having_seen_all(root, capsys):
    plan = root.chain().plan
    folder = root.root / "checkpoints/main/export"
    folder.mkdir(parents=True)
    (folder / "tokenmill.json").write_text(json.dumps({"plan": plan.plan_id, "step": 7}))
    later = root.root / "checkpoints/main/step-00000009"
    later.mkdir()
    loader = {"plan_id": "f" * 64, "phase": "late", "epoch": 0, "next_pack": 3, "global_packs": 3}
    (later / "checkpoint.json").write_text(json.dumps({"schema": 1, "loader": loader, "files": []}))
    assert main(["takedown", str(root.path), "--keys", root.ask("text/doc-0011"), "--json"]) == 0
    (found,) = report_of(capsys)["plans"]
    (run,) = found["runs"]
    assert (run["run"], run["steps_done"], run["packs_seen"]) == ("main", None, found["packs"])


def test_identifiers_of_a_file_with_a_byte_order_mark_and_odd_spaces_are_whole(tmp_path):
    path = tmp_path / "asked.txt"
    path.write_bytes("\ufeffdoc-0\r\na\u2028b\n\n# no key\n".encode())
    assert {one.value for one in read_identifiers(path, "keys")} == {"doc-0", "a\u2028b"}


# 0 and -1: the last object of the plan's folder is gone, or is the only one that is left
@pytest.mark.parametrize("fault", ["takedown:after-rewrite:2", "gc:after-delete:20", 2, -1, 0])
def test_rewrite_killed_and_run_again_ends_the_same(fault, root):
    if isinstance(fault, int):
        plan = root.chain().plan.folder
        fault = f"takedown:after-delete:{fault if fault > 0 else len(plan.store.files(plan.path)) + fault}"
    arguments = ("takedown", str(root.path), "--keys", root.ask(*hundred()), "--rewrite")
    assert run_alone(*arguments, environment={"TOKENMILL_FAULT": fault}).was_killed
    assert main(arguments) == 0
    assert main(["gc", str(root.path), "--apply", "--older-than", "0"]) == 0
    assert faults_in(open_store(str(root.root))) == []
    for path in root.root.rglob("*.parquet"):
        if path.parent.name != "takedowns":
            values = pl.read_parquet(path).write_ndjson()
            assert not [key for key in hundred() if f'"{key.removeprefix("photos/")}"' in values], path


def test_identifier_matching_normalises_urls_and_measures_distance():
    assert normal_url("HTTPS://Example.org:443/a%7Eb/?q=1#f") == normal_url("http://example.org/a~b?q=1")
    lists = Takedowns(frozenset({Identifier(kind="phash", value=f"{0b1011:016x}", distance=1)}))
    rows = pl.DataFrame({"key": ["a", "b", "c"], "phash": pl.Series([0b1010, 0b0110, None], dtype=pl.UInt64)})
    assert lists.mask(rows, "any").to_list() == [True, False, False]


@pytest.mark.parametrize(("flag", "line"), [("--hashes", "abc"), ("--keys", ""), ("--urls", "# only a comment")])
def test_wrong_file_ends_with_two(flag, line, root, capsys):
    assert main(["takedown", str(root.path), flag, root.ask(line)]) == 2
    assert "asked.txt" in capsys.readouterr().err
