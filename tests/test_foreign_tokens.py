"""Token shards of others: indexed where they lie, planned and read as our own; what is wrong with them is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import webdataset

from tokenmill.cli import main
from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.manifests.plan_sources import sources_of_packs
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import stage_dir_at
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.verify import examine
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.foreign_tokens import index_work
from tokenmill.pipelines.plan import write_plan
from tokenmill.pipelines.runner import run_stage
from tokenmill.recipe import check_recipe
from tokenmill.settings_tokens import TokenShards
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import assemble
from tokenmill.tokenize.segments import TextSegment, VisionSegment, segments_from_json
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.packs import build_pack
from tokenmill.verification import plan_checks

VOCABULARY = byte_vocabulary(64)
RNG = np.random.default_rng(7)


def write_tar(path: Path, samples: Sequence[Mapping[str, Any]]) -> Path:
    """Write a tar as webdataset does; arrays become .npy, mappings JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write({"__key__": sample["key"], **{name: sample[name] for name in sample if name != "key"}})
    return path


def picture(number: int, kind: Any = np.int64) -> dict[str, Any]:
    words = f"picture {number}".encode()
    codes = RNG.integers(0, 64, (4 + number % 3, 5)).astype(kind)
    told = {"url": f"https://example.org/{number}.jpg", "license": "CC0"}
    return {
        "key": f"p{number:04d}",
        "npy": codes,
        "ids.npy": np.frombuffer(words, np.uint8).astype(np.uint32),
        "json": told,
    }


def clip(number: int) -> dict[str, Any]:
    codes = RNG.integers(0, 64, (2, 4, 5)).astype(np.uint16)
    return {
        "key": f"c{number:04d}",
        "codes.npy": codes,
        "text.npy": np.arange(1, 9, dtype=np.uint32),
        "json": {"fps": 8},
    }


def text(number: int) -> dict[str, Any]:
    return {"key": f"t{number:04d}", "ids.npy": RNG.integers(0, 256, 40 + number).astype(np.uint32)}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two archives beside the root, of pictures with signed grids, clips, and texts."""
    folder = tmp_path / "theirs"
    write_tar(folder / "a" / "00000.tar", [*map(picture, range(12)), *map(clip, range(4))])
    write_tar(folder / "00001.tar", [*map(text, range(20)), *(picture(n, np.uint16) for n in range(12, 20))])
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "root"))


def indexed(store: Store, url: Path, **settings: Any) -> Snapshot:
    shards = TokenShards(url=str(url), **settings)
    work = index_work(store, "theirs", shards, VOCABULARY.spec, None)
    ((snapshot,),) = run_stage("tokenize", [work], RunOptions(quiet=True))
    return snapshot


def members_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Read everything back with webdataset itself."""
    urls = [str(path) for path in sorted(folder.rglob("*.tar"))]
    found = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return {sample["__key__"]: sample for sample in found}


def check_every_document(plan: Plan, theirs: Mapping[str, Mapping[str, Any]]) -> int:
    """Compare every pack of a plan with the documents assembled from what webdataset reads; returns how many."""
    loader = PlanLoader(plan, VOCABULARY, global_packs=1)
    told = 0
    for number in range(loader.steps_per_epoch):
        step = loader.step(number)
        assert not step.faults
        documents = []
        for sample in step.samples:
            members = theirs[sample.key]
            codes = members.get("npy", members.get("codes.npy"))
            ids = members.get("ids.npy", members.get("text.npy"))
            segments: list[Any] = [TextSegment(0, len(ids), "body" if codes is None else "caption")]
            if codes is not None:
                t, h, w = codes.shape if codes.ndim == 3 else (1, *codes.shape)
                fps, seconds = (8.0, 1.0) if t > 1 else (None, None)
                segments.append(VisionSegment(t, h, w, 0, fps=fps, seconds=seconds))
            flat = np.zeros(0, np.uint16) if codes is None else codes.reshape(-1)
            whole = assemble(segments, ids, flat, sample.template, VOCABULARY)
            documents.append(whole.piece(sample.start, sample.length))
        (batch,) = step.micro_batches
        expected = build_pack(documents, plan.context, VOCABULARY.pad)
        assert np.array_equal(batch.input_ids, expected.input_ids)
        assert np.array_equal(batch.labels, expected.labels)
        told += len(documents)
    return told


def test_foreign_shards_are_indexed_where_they_lie_and_read_as_by_webdataset(store: Store, shards: Path) -> None:
    before = {path: path.read_bytes() for path in shards.rglob("*.tar")}
    snapshot = indexed(store, shards)
    assert snapshot.counts.to_json() == {"in": 44, "kept": 44, "dropped": {}, "failed": {}, "out": 44}
    assert not list(Path(store.url).rglob("*.tar"))
    own = write_token_source(store, "own", VOCABULARY, Amounts(texts=10))
    alone = write_plan(store, [snapshot], PlanSettings(context=160))
    assert check_every_document(alone, members_of(shards)) >= 44
    both = write_plan(store, [snapshot, own], PlanSettings(context=160, phase="both"))
    assert set(both.shards["source"].cast(str)) == {"theirs", "own"}
    assert {path: path.read_bytes() for path in shards.rglob("*.tar")} == before


def test_foreign_shards_below_the_root_are_named_relative_to_it(store: Store, shards: Path, tmp_path: Path) -> None:
    inside = shards.rename(tmp_path / "moved")
    Path(store.url).mkdir()
    inside = inside.rename(Path(store.url) / "theirs")
    plan = write_plan(store, [indexed(store, inside)], PlanSettings(context=160))
    assert set(plan.shards["shard"]) == {"theirs/a/00000.tar", "theirs/00001.tar"}
    assert check_every_document(plan, members_of(inside)) >= 44


@pytest.mark.s3
def test_foreign_shards_in_another_bucket_are_read_by_ranges(s3_server: Any, shards: Path) -> None:
    theirs, root = (open_store(s3_server.new_root(), s3_server.options) for _ in range(2))
    for path in sorted(shards.rglob("*.tar")):
        theirs.put(str(path.relative_to(shards)), path.read_bytes())
    work = index_work(root, "theirs", TokenShards(url=theirs.url), VOCABULARY.spec, None)
    ((snapshot,),) = run_stage("tokenize", [work], RunOptions(quiet=True))
    plan = write_plan(root, [snapshot], PlanSettings(context=160))
    assert set(plan.shards["shard"]) == {f"{theirs.url}/a/00000.tar", f"{theirs.url}/00001.tar"}
    assert check_every_document(plan, members_of(shards)) >= 44
    assert examine(root, "", deep=True, checks=plan_checks()).faults == []
    theirs.delete_many(["00001.tar"])
    assert {fault.path for fault in examine(root, "", deep=False).faults} == {f"{theirs.url}/00001.tar"}


def test_foreign_shards_indexed_again_are_the_same_and_a_changed_one_is_indexed_anew(
    store: Store, shards: Path
) -> None:
    first, again = indexed(store, shards), indexed(store, shards)
    assert first.digest == again.digest
    write_tar(shards / "00001.tar", [text(n) for n in range(7)])
    other = indexed(store, shards)
    assert other.counts.rows_in == 16 + 7
    assert {commit.unit for commit in first.commits} & {commit.unit for commit in other.commits}


def test_foreign_shards_and_their_plan_are_verified_and_what_changed_is_named(store: Store, shards: Path) -> None:
    write_plan(store, [indexed(store, shards)], PlanSettings(context=160))
    for deep in (False, True):
        assert examine(store, "", deep=deep, checks=plan_checks()).faults == []
    archive = shards / "00001.tar"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    (fault,) = examine(store, "", deep=True).faults
    assert (fault.path, fault.what) == (f"file://{archive}", "sha256 differs from its record")
    archive.unlink()
    assert {fault.path for fault in examine(store, "", deep=False).faults} == {f"file://{archive}"}


def test_foreign_shards_lead_back_to_urls_and_licences(store: Store, shards: Path) -> None:
    plan = write_plan(store, [indexed(store, shards, licence="CC-BY-4.0")], PlanSettings(context=160))
    found = sources_of_packs(plan, range(plan.num_packs))
    rows = {row["key"]: row for row in found.to_dicts()}
    assert rows["p0003"]["urls"] == ["https://example.org/3.jpg"] and rows["p0003"]["licence"] == "CC0"
    assert rows["t0003"]["urls"] == [] and rows["t0003"]["fault"] is None
    assert rows["t0003"]["licence"] == "CC-BY-4.0", "the source's, where the sample says nothing"


PICKLED = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 60


def header(shape: str) -> bytes:
    """Return the beginning of an .npy file that says more than there is."""
    told = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(told).to_bytes(2, "little") + told


def segments(*values: Any) -> dict[str, Any]:
    return {"npy": np.zeros((2, 2), np.uint16), "json": {"segments": list(values)}}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "beyond": ({"npy": np.full((2, 2), 64)}, "out_of_range"),
    "negative": ({"npy": np.full((2, 2), -1)}, "out_of_range"),
    "words_beyond": ({"ids.npy": np.array([10_000], np.uint32)}, "out_of_range"),
    "no_members": ({"json": {"url": "x"}}, "missing_member"),
    "floats": ({"npy": np.zeros((2, 2), np.float32)}, "not_ids"),
    "four_dimensions": ({"npy": np.zeros((1, 1, 2, 2), np.uint16)}, "not_ids"),
    "fortran": ({"npy": np.asfortranarray(np.arange(6, dtype=np.uint16).reshape(2, 3))}, "not_ids"),
    "no_array": ({"npy": b"not an array"}, "unreadable"),
    "pickled": ({"npy": PICKLED}, "unreadable"),
    "nothing": ({"ids.npy": np.zeros(0, np.uint32)}, "empty"),
    "one_row": ({"npy": np.zeros(6, np.uint16)}, "no_grid"),
    "wrong_grid": ({"npy": np.zeros(6, np.uint16), "json": {"shape": [2, 2]}}, "no_grid"),
    "no_fps": ({"npy": np.zeros((2, 2, 2), np.uint16)}, "no_fps"),
    "bad_json": ({"npy": np.zeros((2, 2), np.uint16), "json": b"{"}, "bad_json"),
    "bad_zip": ({"npy": b"PK\x03\x04 and no more"}, "unreadable"),
    "larger_than_memory": ({"npy": header("(10000000000000,)")}, "unreadable"),
    "deep_header": ({"npy": header(f"({'-' * 3000}1,)")}, "unreadable"),
    "deep_json": ({"npy": np.zeros((2, 2), np.uint16), "json": b"[" * 100_000}, "bad_json"),
    "wrapped_grid": ({"npy": np.zeros(4, np.uint16), "json": {"shape": [2**62 + 1, 4]}}, "no_grid"),
    "beyond_segments": (segments({"vision": [1, 3, 3], "offset": 0}), "bad_segments"),
    "no_segments": (segments(), "empty"),
    "null_segment": (segments(None), "bad_segments"),
    "half_segment": (segments({"vision": [1, 2.0, 2], "offset": 0}), "bad_segments"),
}  # fmt: skip


def test_foreign_samples_that_are_no_tokens_are_rows_with_reasons(store: Store, tmp_path: Path) -> None:
    bad = [{"key": key, **members} for key, (members, _) in BAD.items()]
    good = {"key": "good", "npy": np.zeros(6, np.uint16), "json": {"shape": [2, 3]}}
    write_tar(tmp_path / "theirs" / "0.tar", [*bad, good])
    snapshot = indexed(store, tmp_path / "theirs")
    rows = snapshot.folder.read_rows(snapshot.commits[0])
    reasons = dict(rows.select("key", "fail_reason").rows())
    assert reasons == {key: reason for key, (_, reason) in BAD.items()} | {"good": None}
    assert snapshot.counts.kept == 1 and sum(snapshot.counts.failed.values()) == len(BAD)
    plan = write_plan(store, [snapshot], PlanSettings(context=160, templates={"image": {"unconditional": 1.0}}))
    (step,) = PlanLoader(plan, VOCABULARY, global_packs=1).steps(0, 1)
    assert [sample.key for sample in step.samples] == ["good"] and not step.faults


def test_foreign_archive_of_our_own_without_its_index_is_indexed(store: Store, tmp_path: Path) -> None:
    """Texts have an empty array of codes there."""
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    ours = write_token_source(elsewhere, "ours", VOCABULARY, Amounts(texts=6, images=5, shards=1))
    snapshot = indexed(store, Path(elsewhere.url) / ours.folder.path)
    read = [one.folder.read_rows(one.commits[0]) for one in (snapshot, ours)]
    for name in ("key", "num_text", "num_codes"):
        assert read[0][name].to_list() == read[1][name].to_list()
    mine, theirs = ([segments_from_json(json.loads(told)) for told in table["segments"]] for table in read)
    assert mine == theirs


def test_foreign_shards_beside_the_root_written_with_dots_are_not_below_it(store: Store, shards: Path) -> None:
    straight, around = indexed(store, shards), indexed(store, Path(store.url) / ".." / "theirs")
    assert straight.digest == around.digest


def test_foreign_archive_that_is_cut_off_gives_what_came_before_and_a_row(store: Store, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "theirs" / "0.tar", [text(n) for n in range(9)])
    archive.write_bytes(archive.read_bytes()[:4000])
    snapshot = indexed(store, tmp_path / "theirs")
    assert snapshot.counts.failed == {"cut_off": 1}
    assert 0 < snapshot.counts.kept < 9


def test_foreign_shards_with_other_member_names_and_one_grid_for_all(store: Store, tmp_path: Path) -> None:
    samples = [{"key": f"k{n}", "vq.npy": np.arange(6, dtype=np.uint16), "words.npy": np.arange(3)} for n in range(4)]
    write_tar(tmp_path / "theirs" / "0.tar", samples)
    snapshot = indexed(store, tmp_path / "theirs", codes=("vq.npy",), text=("words.npy",), grid=(2, 3))
    segments = set(snapshot.folder.read_rows(snapshot.commits[0])["segments"])
    assert [json.loads(one)[1]["vision"] for one in segments] == [[1, 2, 3]]


def recipe(root: Path, mix: Mapping[str, Any] | None = None, **sources: Any) -> Any:
    section = {"vocabulary": VOCABULARY.spec, "vision": {"name": "scenes"}}
    value = {"root": str(root), "sources": sources, "tokenize": section, "execution": {"executor": "inline"}}
    return check_recipe(value | {"plan": {"context": 160, "mix": mix or {}}}, "a recipe")


def test_recipe_with_tokenized_sources_plans_shards_of_others_and_folders_of_other_roots(
    shards: Path, tmp_path: Path
) -> None:
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    ours = write_token_source(elsewhere, "ours", VOCABULARY, Amounts(texts=12, images=8))
    sources = {
        "theirs": {"kind": "tokens", "url": str(shards)},
        "ours": {"kind": "tokens", "url": f"{elsewhere.url}/{ours.folder.path}"},
    }
    chain = Chain(recipe=recipe(tmp_path / "root", **sources), options=ChainOptions(quiet=True))
    plan = chain.plan
    assert {name: told["snapshot"] for name, told in plan.description["sources"].items()}["ours"] == ours.digest
    keys = {row["key"] for row in sources_of_packs(plan, range(plan.num_packs)).to_dicts()}
    assert len(keys) == 44 + 20
    loader = PlanLoader(plan, VOCABULARY, global_packs=2)
    assert not any(step.faults for step in loader.steps(0, loader.steps_per_epoch))
    assert examine(chain.store, "", deep=True, checks=plan_checks()).faults == []


def test_recipe_with_tokenized_sources_mixes_them_and_refuses_others_by_name(store: Store, shards: Path) -> None:
    sources = {name: {"kind": "tokens", "url": str(shards)} for name in ("one", "two")}
    shares = {"one": {"share": 0.25}, "two": {"share": 0.75}}
    chain = Chain(recipe=recipe(Path(store.url), shares, **sources), options=ChainOptions(quiet=True))
    check_chain(chain)
    tokens = {name: told["tokens"] for name, told in chain.plan.description["sources"].items()}
    assert 0.2 < tokens["one"] / sum(tokens.values()) < 0.3
    for mix, told in ({"three": 1}, "no source 'three'; allowed: one, two"), ({"one": {"share": 1}}, "missing: two"):
        with pytest.raises(RecipeError, match=told):
            check_chain(Chain(recipe=recipe(Path(store.url), mix, **sources), options=ChainOptions(quiet=True)))


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"url": "empty"}, "holds no .tar and no folder of a tokenize stage"),
        ({"url": "empty", "codse": ["npy"]}, "sources.theirs.codse"),
        ({"url": "empty", "grid": [0, 1]}, "sources.theirs.grid"),
        ({"url": "empty", "codes": ["NPY"]}, "sources.theirs.codes"),
        ({"url": "plan"}, "is a folder of the stage plan, not of tokens"),
        ({"url": "tokens", "snapshot": "ffff"}, "has 0 snapshots"),
        ({"url": "tokens", "snapshot": "right, then wrong"}, "another one"),
        ({"url": "tokens"}, "holds the source own; give it that name here too"),
    ],
)
def test_recipe_with_a_wrong_tokenized_source_is_refused_by_name(
    tmp_path: Path, section: dict[str, Any], told: str
) -> None:
    store = open_store(str(tmp_path / "other"))
    own = write_token_source(store, "own", VOCABULARY, Amounts(texts=5))
    plan = write_plan(store, [own], PlanSettings(context=160))
    places = {
        "empty": str(tmp_path),
        "plan": f"{store.url}/{plan.folder.path}",
        "tokens": f"{store.url}/{own.folder.path}",
    }
    (tmp_path / "void").mkdir()
    places["empty"] = str(tmp_path / "void")
    source = section | {"kind": "tokens", "url": places[section["url"]]}
    if "wrong" in section.get("snapshot", ""):
        source["snapshot"] = own.digest[:16] + "0" * 48
    with pytest.raises(RecipeError, match=told):
        _ = Chain(recipe=recipe(tmp_path / "root", theirs=source), options=ChainOptions(quiet=True)).plan


def test_index_command_tells_counts_and_reasons_and_refuses_what_it_cannot_read(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(shards / "2.tar", [{"key": "bad", "npy": np.full((2, 2), 99)}])
    root = str(tmp_path / "root")
    command = ["index-tokens", str(shards), "--root", root, "--source", "theirs"]
    vocabulary = ["--vocabulary", "{name: bytes, codebook_size: 64}"]
    assert main([*command, *vocabulary, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["archives"], found["in"], found["kept"], found["failed"]) == (3, 45, 44, {"out_of_range": 1})
    folder = stage_dir_at(open_store(root), found["folder"])
    assert folder.config.settings["vocabulary"] == VOCABULARY.spec
    assert main([*command, *vocabulary]) == 0
    assert "failed out_of_range: 1" in capsys.readouterr().out
    assert main([*command, *vocabulary, "--set", "codes=[none.npy]", "--set", "text=[none.npy]"]) == 1
    assert "failed missing_member: 45" in capsys.readouterr().out
    for wrong, told in (["--set", "grid"], "KEY=VALUE"), (["--set", "gird=1"], "gird"), (["--vision", "x"], "mapping"):
        assert main([*command, *vocabulary, *wrong]) == 2
        assert told in capsys.readouterr().err


def test_recipe_of_tokenized_sources_alone_runs_tells_its_status_and_reports(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = recipe(tmp_path / "root", theirs={"kind": "tokens", "url": str(shards)}).model_dump(mode="json")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({name: value[name] for name in ("root", "sources", "tokenize", "execution", "plan")}))
    for command in (
        ["run", str(path), "--until", "plan"],
        ["status", str(path)],
        ["report", str(path)],
        ["gc", str(path)],
    ):
        assert main(command) == 0, command
    told = capsys.readouterr().out
    assert "tokenize theirs" in told and "2/2 units  in 44  kept 44" in told and "nothing may go" in told
    assert "theirs" in (tmp_path / "root" / "reports" / "main.html").read_text()


@pytest.mark.parametrize("more", [[], ["--rewrite"]])
def test_takedown_of_a_foreign_sample_leaves_it_out_of_the_next_plan_and_the_shards_alone(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    inside = shards.rename(root / "theirs")
    before = {path: path.read_bytes() for path in inside.rglob("*.tar")}
    value = recipe(root, theirs={"kind": "tokens", "url": str(inside)}).model_dump(mode="json")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({name: value[name] for name in ("root", "sources", "tokenize", "execution", "plan")}))
    (tmp_path / "keys").write_text("theirs/p0003\nt0005\nlate\n")
    run = ["run", str(path), "--until", "plan"]
    assert main(run) == 0
    assert main(["takedown", str(path), "--keys", str(tmp_path / "keys"), *more]) == 1, "late is not there yet"
    assert "2 indexes of token shards of others leave them out" in capsys.readouterr().out
    write_tar(inside / "2.tar", [text(70), text(71) | {"key": "late"}])
    assert main(run) == 0
    assert main(["gc", str(path), "--older-than", "0", "--apply"]) == 0
    store = open_store(str(root))
    plans = [open_plan(store, str(one.parent.relative_to(root))) for one in root.glob("plans/*/*/plan.json")]
    (newest,) = [plan for plan in plans if len(plan.shards) == 3]
    assert len(plans) == 1 if more else plans
    keys = set(sources_of_packs(newest, range(newest.num_packs))["key"])
    assert len(keys) == 44 + 2 - 3 and not keys & {"p0003", "t0005", "late"}
    assert {path: path.read_bytes() for path in before} == before
    assert examine(store, "", deep=True, checks=plan_checks()).faults == []
    if more:
        indexed_keys = {key for file in root.glob("tokenize/*/*/*.parquet") for key in pl.read_parquet(file)["key"]}
        assert not indexed_keys & {"p0003", "t0005", "late"} and "p0004" in indexed_keys
