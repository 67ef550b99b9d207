"""Housekeeping: a root full of leftovers comes down to exactly what its snapshots name, killed in between or not."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
from tests import tiny
from tests.harness import faults_in, run_alone

from tokenmill.cli import main
from tokenmill.manifests.gc_apply import RootChangedError, apply
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.snapshots import read_snapshot, snapshot_names
from tokenmill.manifests.stagedir import StageDir, stage_dir_at
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.verify import stage_folders
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.failures import Failure, read_failures, write_failure
from tokenmill.pipelines.kept import GcOptions, _surveyed, collect
from tokenmill.recipe import Recipe, check_recipe, load_recipe

SOURCES = ("photos", "text")
STAGES = ("ingest", "split", "score", "takedown", "compare", "duplicates", "select", "caption", "tokenize")
HOURS_24 = GcOptions()
AT_ONCE = GcOptions(older_than_s=0)


def recipe_at(folder: Path, root: str, changes: dict[str, object] | None = None):
    """Return the recipe over a folder's data, and write it beside."""
    tiny.write_recipe(folder / "recipe.yaml", folder / "data", root, changes, sources=SOURCES)
    return check_recipe(tiny.recipe(folder / "data", root, changes, sources=SOURCES), "tiny")


def run(recipe, *, until: str = "plan", **options: bool) -> dict[str, str]:
    """Run the chain and return the digest of every snapshot by its folder."""
    chain = Chain(recipe=recipe, options=ChainOptions(quiet=True, **options))
    stages = STAGES if until == "plan" else STAGES[: STAGES.index(until) + 1]
    found = {s.folder.path: s.digest for stage in stages for s in chain.snapshots(stage)}
    return found | ({chain.plan.folder.path: chain.plan.description["snapshot"]} if until == "plan" else {})


def named(store: Store) -> set[str]:
    """Return every path that may be there: descriptions, snapshots, the records and files these name, logs, caches."""
    found = set()
    for path in stage_folders(store, store.files()):
        folder = stage_dir_at(store, path)
        found.add(folder.at("config.json"))
        for name in snapshot_names(folder):
            found |= {folder.at(f"snapshots/{name}.json"), folder.at(f"snapshots/{name}.parquet")}
            for commit in read_snapshot(folder, name).commits:
                found.add(folder.at(commit.record_name))
                found |= {folder.at(entry.name) for entry in commit.files}
        if folder.config.stage == "plan":
            found |= {folder.at(name) for name in ("plan.json", "windows.parquet", "shards.parquet")}
    return found | {e.path for e in store.files() if "/logs/" in e.path or "/rollups/" in e.path}


def must_stay(recipe: Recipe, store: Store, *, old_plans: bool = True) -> set[str]:
    """Say what gc may not touch: what the recipe's own snapshots and every finished plan lead to, by plain JSON alone.

    `previous` of a duplicates snapshot counts one step: a damaged unit can then be computed again.
    """
    chain = Chain(recipe=recipe, options=ChainOptions(quiet=True, work=frozenset()))
    wanted = [(snapshot.digest, True) for stage in STAGES for snapshot in chain.snapshots(stage)]
    described = {}
    for entry in store.files():
        if "/snapshots/" in entry.path and entry.path.endswith(".json"):
            value = json.loads(store.read_bytes(entry.path))
            described[value["digest"]] = (entry.path, value["parents"])
    stay: set[str] = set()
    for path in [p for p in listing(store) if p.endswith("/plan.json")]:
        folder = path.removesuffix("/plan.json")
        if old_plans or folder == chain.plan.folder.path:
            stay |= {f"{folder}/{name}" for name in ("plan.json", "windows.parquet", "shards.parquet")}
            wanted += [(digest, True) for digest, (name, _) in described.items() if name.startswith(f"{folder}/")]
    while wanted:
        digest, follow = wanted.pop()
        path, parents = described[digest]
        folder = path.split("/snapshots/")[0]
        stay |= {f"{folder}/config.json", path, path.removesuffix(".json") + ".parquet"}
        for unit, attempt in pl.read_parquet(store.read_bytes(f"{path[:-5]}.parquet")).select("unit", "attempt").rows():
            record = f"{folder}/commits/{unit}.{attempt}.json"
            stay |= {record} | {f"{folder}/{file['name']}" for file in json.loads(store.read_bytes(record))["files"]}
        if follow:
            wanted += [(parent, label != "previous") for label, parent in parents.items() if parent in described]
    return stay


def state(store: Store, paths: set[str]) -> dict[str, tuple[int, float | None]]:
    """Return size and time of some objects that are there."""
    return {entry.path: (entry.size, entry.modified_s) for entry in store.files() if entry.path in paths}


def without_aside(store: Store) -> set[str]:
    return {path for path in listing(store) if "/logs/" not in path and "/rollups/" not in path}


def listing(store: Store) -> set[str]:
    return {entry.path for entry in store.files()} | {left.path for left in store.unfinished()}


def make_mess(folder: Path, recipe, store: Store) -> dict[str, str]:
    """Leave behind what runs leave: killed ones, retries, other raw data, other settings; returns the last digests."""
    run(recipe)
    later = folder / "data/text/more.jsonl"
    later.write_text(json.dumps({"id": "never", "text": "words that a killed run saw, and none later"}) + "\n")
    killed = run_alone("ingest", folder / "recipe.yaml", environment={"TOKENMILL_FAULT": "commit:before-record:1"})
    assert killed.was_killed
    later.write_text(json.dumps({"id": "more", "text": "some more words, and then some"}) + "\n")
    run(recipe, until="select")  # a newer state of one source: its older snapshots are superseded
    later.unlink()
    (folder / "data/photos/broken.jpg").write_bytes(tiny.picture(7, 72))
    digests = run(recipe)
    newest = Chain(recipe=recipe, options=ChainOptions(quiet=True, work=frozenset()))
    for stage in ("ingest", "tokenize"):
        spoil(newest.snapshots(stage)[0].folder)
    return digests


def spoil(folder: StageDir) -> None:
    """Leave an attempt that nobody names, with its file, and a file without a record."""
    unit, attempt = next(iter(sorted(folder.record_names().items())))
    commit = folder.read_commit(unit, attempt)
    data = b"of a retry that no snapshot took"
    entry = folder.publish_bytes(f"{unit}-x", ".bin", data, "data")
    rows = replace(commit, attempt=attempt + 1, predecessor=sha256_hex(commit.to_bytes()), unit="gone-0000000000000000")
    folder.store.put(folder.at(rows.record_name), replace(rows, files=(entry,)).to_bytes())
    folder.publish_bytes("lost-0000000000000000", ".tar", b"of a killed run", "data")


@dataclass(frozen=True)
class Messy:
    """A root full of leftovers, and the digests its recipe has."""

    folder: Path
    digests: dict[str, str]

    def copy(self, target: Path) -> Path:
        """Copy the root, with a recipe beside it that reads the same data; returns the recipe's path."""
        shutil.copytree(self.folder / "root", target / "root")
        sources = ("photos", "text")
        return tiny.write_recipe(target / "recipe.yaml", self.folder / "data", str(target / "root"), sources=sources)


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Messy:
    folder = tmp_path_factory.mktemp("messy")
    tiny.write_data(folder / "data")
    recipe = recipe_at(folder, str(folder / "root"))
    return Messy(folder, make_mess(folder, recipe, open_store(recipe.root)))


def test_gc_leaves_exactly_what_snapshots_name(messy, tmp_path):
    assert_cleaned(load_recipe(messy.copy(tmp_path)), messy.digests)


@pytest.mark.s3
def test_gc_on_s3_leaves_exactly_what_snapshots_name(s3_server, tmp_path):
    tiny.write_data(tmp_path / "data")
    recipe = recipe_at(tmp_path, s3_server.new_root(), {"storage": s3_server.options})
    assert_cleaned(recipe, make_mess(tmp_path, recipe, open_store(recipe.root, recipe.storage)))


def assert_cleaned(recipe: Recipe, digests: dict[str, str]) -> None:
    store = open_store(recipe.root, recipe.storage)
    begin_upload(store)
    before = listing(store)
    assert before - named(store), "there is something to remove"
    stay = must_stay(recipe, store)
    kept = state(store, stay)
    assert kept.keys() == stay

    collect(recipe, AT_ONCE, apply_it=False)
    assert listing(store) == before, "a dry run changes nothing"
    found = collect(recipe, AT_ONCE, apply_it=True)
    kinds = found.totals()
    assert kinds["orphan"]["objects"] >= 2 and kinds["superseded"]["objects"] >= 4
    assert kinds["leftover" if store.is_local else "upload"]["objects"] == 1
    assert without_aside(store) == stay
    assert state(store, stay) == kept, "and not written anew"
    assert faults_in(store) == []
    assert run(recipe) == digests
    assert without_aside(store) == stay, "running again is a no-op"
    assert collect(recipe, AT_ONCE, apply_it=True).doomed == []


def begin_upload(store: Store) -> None:
    """Leave a temporary file, or a multipart upload that nobody completes."""
    if store.is_local:
        place = store.local_path("tokenize/.part-0123")
        assert place is not None
        place.write_bytes(b"half of an archive")
        return
    import s3fs

    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    files = s3fs.S3FileSystem(**{k: v for k, v in store.options.items() if k in ("endpoint_url", "key", "secret")})
    files.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/tokenize/photos/half.tar")


def test_gc_leaves_what_is_young_and_what_a_plan_or_checkpoint_names(tmp_path):
    tiny.write_data(tmp_path / "data")
    recipe = recipe_at(tmp_path, str(tmp_path / "root"))
    store = open_store(recipe.root)
    run(recipe)
    old = Chain(recipe=recipe, options=ChainOptions(quiet=True, work=frozenset())).plan
    changed = recipe_at(tmp_path, recipe.root, {"filter.text.rules.length": "num_chars >= 300"})
    run(changed)
    before = listing(store)
    assert collect(changed, HOURS_24, apply_it=True).doomed == []
    found = collect(changed, AT_ONCE, apply_it=True)
    assert any(old.folder.path in note for note in found.notes)
    assert old.folder.path in {path.rpartition("/")[0] for path in listing(store)}
    assert all(store.exists(shard) for shard in old.shards["shard"]), "a plan keeps its archives"

    checkpoint = "checkpoints/main/step-00000001/checkpoint.json"
    store.put(checkpoint, json.dumps({"schema": 1, "loader": {"plan_id": old.plan_id}, "files": []}).encode())
    everything = replace(AT_ONCE, old_plans=True, old_settings=True)
    collect(changed, everything, apply_it=True)
    assert all(store.exists(shard) for shard in old.shards["shard"]), "so does a checkpoint"
    store.delete(checkpoint)
    collect(changed, everything, apply_it=True)
    assert not store.files(old.folder.path)
    assert len(listing(store)) < len(before)
    assert listing(store) == named(store)
    assert faults_in(store) == []
    run(changed)
    assert listing(store) == named(store)


def test_gc_of_an_unfinished_run_keeps_what_a_resume_needs(tmp_path):
    tiny.write_data(tmp_path / "data")
    recipe = recipe_at(tmp_path, str(tmp_path / "root"))
    store = open_store(recipe.root)
    digests = run(recipe)
    tokens = next(iter(sorted(store.folders("tokenize/text"))))
    folder = stage_dir_at(store, f"tokenize/text/{tokens}")
    unit, attempt = sorted(folder.record_names().items())[0]
    store.delete(folder.at(f"commits/{unit}.{attempt}.json"))
    for entry in (*store.files(folder.at("snapshots")), *store.files(folder.at("rollups"))):
        store.delete(entry.path)
    records = {entry.path for entry in store.files() if "/commits/" in entry.path}
    found = collect(recipe, AT_ONCE, apply_it=True)
    assert any("tokenize and what follows" in note for note in found.notes)
    assert {entry.path for entry in store.files() if "/commits/" in entry.path} == records
    assert run(recipe) == digests


@pytest.mark.parametrize("fault", ["gc:after-delete:1", "gc:after-delete:5", "storage:after-delete:12"])
def test_gc_killed_and_run_again_ends_the_same(fault, messy, tmp_path):
    path = messy.copy(tmp_path)
    store = open_store(str(tmp_path / "root"))
    stay = must_stay(load_recipe(path), store)
    arguments = ("gc", str(path), "--apply", "--older-than", "0")
    assert run_alone(*arguments, environment={"TOKENMILL_FAULT": fault}).was_killed
    assert missing(store) == [], "a reader never sees a record that names a missing file"
    assert main(arguments) == 0
    assert without_aside(store) == stay
    assert run(load_recipe(path)) == messy.digests


def missing(store: Store) -> list[str]:
    """Name the files that a record speaks of and that are not there."""
    there = listing(store)
    found = []
    for path in sorted(p for p in there if "/commits/" in p):
        folder = path.split("/commits/")[0]
        names = [entry["name"] for entry in json.loads(store.read_bytes(path))["files"]]
        found += [f"{folder}/{name}" for name in names if f"{folder}/{name}" not in there]
    return found


@pytest.fixture(scope="module")
def two_plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a root in which the plan of former settings is finished beside the recipe's own."""
    folder = tmp_path_factory.mktemp("two-plans")
    tiny.write_data(folder / "data")
    run(recipe_at(folder, str(folder / "root"), FORMER))
    run(recipe_at(folder, str(folder / "root")))
    return folder


FORMER = {"filter.text.rules.length": "num_chars >= 300"}
EVERYTHING = replace(AT_ONCE, old_plans=True, old_settings=True)


def at(two_plans: Path, folder: Path) -> tuple[Recipe, Store, Plan]:
    """Copy the root; returns the recipe, the store and the plan of the former settings."""
    shutil.copytree(two_plans / "root", folder / "root")
    (folder / "data").symlink_to(two_plans / "data")
    former = recipe_at(folder, str(folder / "root"), FORMER)
    recipe = recipe_at(folder, str(folder / "root"))
    return recipe, open_store(recipe.root), Chain(recipe=former, options=ChainOptions(work=frozenset())).plan


@pytest.mark.parametrize("damage", [lambda text: text.replace("0", "1", 3), lambda text: text[: len(text) // 2]])
def test_snapshot_that_does_not_say_any_more_what_it_came_from_keeps_every_snapshot(damage, two_plans, tmp_path):
    recipe, store, plan = at(two_plans, tmp_path)
    (description,) = (tmp_path / "root" / plan.folder.path / "snapshots").glob("*.json")
    description.write_text(damage(description.read_text()))
    before = listing(store)
    found = collect(recipe, EVERYTHING, apply_it=True)
    assert any(description.name in note for note in found.notes)
    assert not [path for path in before - listing(store) if "/logs/" not in path]


def test_snapshot_that_another_recipe_published_lately_keeps_its_older_units(two_plans, tmp_path):
    recipe, store, plan = at(two_plans, tmp_path)
    long_ago = time.time() - 72 * 3600
    for place in (tmp_path / "root").rglob("*"):
        os.utime(place, (long_ago, long_ago))
    for place in (tmp_path / "root" / plan.folder.path / "snapshots").iterdir():
        os.utime(place)
    collect(recipe, replace(HOURS_24, old_plans=True, old_settings=True), apply_it=True)
    assert faults_in(store) == []
    assert all(store.exists(shard) for shard in plan.shards["shard"])


def test_plan_finished_while_gc_looked_around_keeps_everything(two_plans, tmp_path):
    recipe, store, plan = at(two_plans, tmp_path)
    aside = {path: store.read_bytes(path) for path in listing(store) if path.startswith(plan.folder.path)}
    store.delete_many([path for path in aside if "/snapshots/" in path or path.endswith("plan.json")])
    _, sweep = _surveyed(recipe, EVERYTHING, needs_clock=True)
    assert sweep.doomed
    for path, data in aside.items():
        store.put(path, data)
    before = listing(store)
    with pytest.raises(RootChangedError, match="run gc again"):
        apply(store, sweep)
    assert listing(store) == before
    assert all(store.exists(shard) for shard in plan.shards["shard"])


@pytest.mark.parametrize("left", [1, 2, 3])
def test_folder_whose_removal_was_killed_near_its_end_goes_the_next_time(left, two_plans, tmp_path):
    recipe, store, plan = at(two_plans, tmp_path)
    stay = must_stay(recipe, store, old_plans=False)
    removed = len(without_aside(store) - stay) + sum("/rollups/" in p for p in listing(store))
    arguments = ("gc", str(tmp_path / "recipe.yaml"), "--apply", "--older-than", "0", "--old-plans", "--old-settings")
    fault = {"TOKENMILL_FAULT": f"storage:after-delete:{removed - left}"}
    assert run_alone(*arguments, environment=fault).was_killed
    assert main(arguments) == 0
    assert without_aside(store) == stay
    assert not store.files(plan.folder.path)


def test_gc_leaves_the_tries_of_failed_units(messy, tmp_path):
    path = messy.copy(tmp_path)
    folder = Chain(recipe=load_recipe(path), options=ChainOptions(work=frozenset())).snapshots("score")[0].folder
    write_failure(folder, Failure(unit="poison-0000000000000000", tries=3, error="its worker died"))
    collect(load_recipe(path), AT_ONCE, apply_it=True)
    assert read_failures(folder)["poison-0000000000000000"].tries == 3
    assert faults_in(folder.store) == []


@pytest.mark.parametrize("hours", ["-5", "nan", "inf", "soon"])
def test_gc_older_than_what_is_no_number_of_hours_ends_with_two(hours, messy, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gc", str(messy.copy(tmp_path)), "--older-than", hours])
    assert ended.value.code == 2
    assert "--older-than" in capsys.readouterr().err


def test_gc_tells_what_it_would_remove_and_how(tmp_path, capsys):
    tiny.write_data(tmp_path / "data")
    recipe = recipe_at(tmp_path, str(tmp_path / "root"))
    run(recipe, until="ingest")
    store = open_store(recipe.root)
    store.put("ingest/text/lost.tar", b"outside of every folder")
    folder = stage_dir_at(store, f"ingest/text/{store.folders('ingest/text')[0]}")
    orphan = folder.publish_bytes("lost", ".tar", b"x" * 2**20, "data")
    two_days_ago = time.time() - 48 * 3600
    os.utime(tmp_path / "root" / folder.at(orphan.name), (two_days_ago, two_days_ago))
    assert main(["gc", str(tmp_path / "recipe.yaml")]) == 0
    told = capsys.readouterr().out
    assert "orphan" in told and "1.0 MiB" in told and "--apply" in told
    assert store.exists(folder.at(orphan.name))
    assert main(["gc", str(tmp_path / "recipe.yaml"), "--apply", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in value["objects"]] == [folder.at(orphan.name)]
    assert not store.exists(folder.at(orphan.name)) and store.exists("ingest/text/lost.tar")
