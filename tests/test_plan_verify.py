"""`tokenmill verify PLAN`: a sound plan has no fault, and each thing that can be wrong with one is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tokenmill.cli import main
from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.identity import digest_of, sha256_hex
from tokenmill.manifests.plans import PLAN_SCHEMA, Plan, open_plan, read_named_table
from tokenmill.manifests.stagedir import table_bytes
from tokenmill.manifests.storage import open_store
from tokenmill.manifests.verify_plan import plan_faults
from tokenmill.manifests.verify_plan_sources import digest_faults, missing_faults
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.verification import plan_checks

VOCABULARY = byte_vocabulary(64)
Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    store = open_store(str(tmp_path_factory.mktemp("made") / "root"))
    snapshots = [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=40, clips=6)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=60, text_words=60)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=150, split_long_clips=True, window_documents=40))


@pytest.fixture
def plan(made: Plan, tmp_path: Path) -> Plan:
    """A copy that a test may change."""
    shutil.copytree(made.folder.store.url, tmp_path / "root")
    return open_plan(open_store(str(tmp_path / "root")), made.folder.path)


def changed(plan: Plan, window: int = 0, **changes: Change) -> Plan:
    """Write one window's tables (`documents`, `packs`) with a change, all digests of the plan made right again."""
    store, names = plan.folder.store, plan.windows.row(window, named=True)
    rows = plan.windows.to_dicts()
    for role, change in changes.items():
        data = table_bytes(change(read_named_table(store, plan.folder.at(names[role]))), PLAN_SCHEMA)
        rows[window][role] = f"changed-{role}-{sha256_hex(data)[:8]}.parquet"
        store.put(plan.folder.at(rows[window][role]), data)
    return described(plan, "windows.parquet", pl.DataFrame(rows, schema=plan.windows.schema))


def described(plan: Plan, table: str, frame: pl.DataFrame, **told: object) -> Plan:
    """Publish a table of the plan and a description that names it; returns the plan opened anew."""
    data = table_bytes(frame, PLAN_SCHEMA)
    description = {**plan.description, **told, "tables": {**plan.description["tables"], table: sha256_hex(data)}}
    store = plan.folder.store
    store.put(plan.folder.at(table), data)
    whole = description | {"digest": digest_of(description)}
    store.put(plan.folder.at("plan.json"), json.dumps(whole, sort_keys=True).encode())
    return open_plan(store, plan.folder.path)


def faults(plan: Plan, *, deep: bool = False) -> list[str]:
    return [fault.what for fault in plan_faults(plan, plan_checks(), deep=deep)]


def at_row(row: int, **values: object) -> Change:
    """Change some columns of one row."""
    here = pl.int_range(pl.len()) == row
    return lambda frame: frame.with_columns(
        pl.when(here).then(pl.lit(value)).otherwise(pl.col(name)).cast(frame.schema[name]).alias(name)
        for name, value in values.items()
    )


def strings(change: Change) -> Change:
    """Apply a change to a table whose names are strings, however they were written."""
    names = ("source", "shard", "template")
    return lambda frame: change(frame.with_columns(pl.col(n).cast(pl.String) for n in names if n in frame.columns))


def test_plan_that_is_sound_has_no_fault(plan: Plan) -> None:
    assert faults(plan, deep=True) == []
    assert missing_faults(plan) == digest_faults(plan) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (at_row(3, length=0), "a document of 0 ids"),
        (at_row(0, length=151), "ids, the context is 150"),
        (at_row(0, length=151), "tokens of its documents are"),
        (at_row(0, sample=10_000), "whose index has"),
        (at_row(0, sample=-1), "sample -1 of"),
        (at_row(0, template="poem"), "documents of template 'poem'; there are chat"),
        (at_row(0, shard="tokenize/words/elsewhere.tar"), "which shards.parquet does not name"),
        (at_row(0, source="pictures2"), "is not of the source pictures2"),
        (at_row(1, weight=1e6), "weighs 1e+06"),
        (at_row(1, weight=0.001), "its documents weigh"),
        (at_row(1, slot=5), "row 1 is not slot"),
        (lambda frame: frame[1:], "documents, its packs"),
        (lambda frame: frame.reverse(), "its place in the order"),
        (lambda frame: pl.concat([frame[:-1], frame[:1]]), "is there twice"),
        (lambda frame: frame.with_columns(start=pl.col("start") + 1), "id 0 is missing"),
        (
            lambda frame: frame.with_columns(
                frame=pl.when(pl.col("frames") > 0).then(pl.col("frame") + 1).otherwise(pl.col("frame"))
            ),
            "frame 0 is missing",
        ),
    ],
)
def test_plan_with_wrong_documents_is_told_what_is_wrong(plan: Plan, change: Change, told: str) -> None:
    found = faults(changed(plan, documents=strings(change)))
    assert any(told in what for what in found), found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (at_row(0, tokens=1), "pack 0: tokens of its documents are"),
        (at_row(0, squares=1), "pack 0: squares of its documents are"),
        (at_row(0, weight=0.5), "its own table says 0.5"),
        (at_row(0, pack=7), "its packs are not numbered 0 to"),
        (lambda frame: frame[:-1], "windows.parquet says"),
    ],
)
def test_plan_with_wrong_packs_is_told_what_is_wrong(plan: Plan, change: Change, told: str) -> None:
    found = faults(changed(plan, packs=change))
    assert any(told in what for what in found), found


def test_plan_whose_windows_do_not_follow_one_another_is_told_so(plan: Plan) -> None:
    rows = plan.windows.with_columns(first_pack=pl.col("first_pack") + 1)
    assert any("begins at pack" in what for what in faults(described(plan, "windows.parquet", rows)))
    renamed = plan.windows.with_columns(unit=pl.lit("other-0123456789abcdef"))
    assert any("not the units of" in what for what in faults(described(plan, "windows.parquet", renamed)))


def test_plan_that_takes_a_pass_twice_in_two_windows_is_told_so(plan: Plan) -> None:
    """Each window alone is sound."""
    rows = [plan.windows.row(0, named=True)] * 2
    found = faults(described(plan, "windows.parquet", pl.DataFrame(rows, schema=plan.windows.schema)))
    assert any("is there twice" in what for what in found), found


def test_plan_whose_sums_are_others_is_told_so(plan: Plan) -> None:
    totals = {**plan.description["totals"], "tokens": 7}
    found = faults(described(plan, "windows.parquet", plan.windows, totals=totals))
    assert len(found) == 1 and found[0].startswith("totals.tokens is 7, its windows have ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame[1:], "does not name"),
        (at_row(0, index_sha256="0" * 64), "index_sha256 of"),
        (at_row(0, source="words"), "source of"),
        (at_row(0, shard="tokenize/other.tar"), "which is not in the snapshot of pictures"),
        (lambda frame: pl.concat([frame, frame[:1]]), "twice"),
    ],
)
def test_plan_with_other_shards_than_its_snapshots_is_told_so(plan: Plan, change: Change, told: str) -> None:
    found = faults(described(plan, "shards.parquet", change(plan.shards)))
    assert any(told in what for what in found), found


def test_plan_of_another_snapshot_than_the_one_there_is_told_so(plan: Plan) -> None:
    """The snapshot's own description was made anew, of fewer units."""
    sources = {**plan.description["sources"]}
    sources["words"] = {**sources["words"], "snapshot": "ab" * 32}
    found = faults(described(plan, "windows.parquet", plan.windows, sources=sources))
    assert any("was made from it" in what for what in found), found


def test_plan_deep_with_another_length_or_a_failed_sample_is_told_so(plan: Plan) -> None:
    def lengthen(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(length=pl.col("length") + 1)

    other = changed(plan, documents=lengthen)
    assert any("the plan takes it to id" in what for what in faults(other, deep=True))
    no_picture = changed(plan, documents=strings(lambda f: f.with_columns(template=pl.lit("chat"))))
    assert any("needs turns of a conversation" in what for what in faults(no_picture, deep=True))


def test_verify_command_of_a_plan_alone_reads_what_lies_beside_it(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(plan.folder.store.url)
    place = str(root / plan.folder.path)
    assert main(["verify", place, "--deep"]) == 0
    archive = next(root.glob("tokenize/words/*/*.tar"))
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert main(["verify", place]) == 0
    assert main(["verify", place, "--deep"]) == 1
    assert f"{archive.relative_to(root)}: sha256 differs" in capsys.readouterr().out
    archive.unlink()
    assert main(["verify", place]) == 1
    assert f"{archive.relative_to(root)}: is missing, and plan {plan.folder.path} reads it" in capsys.readouterr().out


def test_verify_of_a_root_that_lies_deeper_finds_what_its_plans_read(plan: Plan) -> None:
    root = Path(plan.folder.store.url)
    assert main(["verify", str(root.parent)]) == 0
    next(root.glob("tokenize/words/*/*.tar")).unlink()
    assert main(["verify", str(root.parent)]) == 1
