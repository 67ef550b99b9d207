"""What is used of all answers to a sample: which captions, which pairs, why none; and what that costs to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.asking import AskedRoot, chosen_of

from tokenmill.cli import main
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.fates import fates_of
from tokenmill.pipelines.status import render_status, status_of


@pytest.fixture
def asked(tmp_path: Path) -> AskedRoot:
    """Two shards of six samples; the same captions are asked for, and the source's own is the other column."""
    root = AskedRoot(folder=tmp_path)
    mixed = {"dense": root.column(), "original": {"engine": "metadata", "fields": ["caption"]}}
    root.changes["caption.image"] = {"columns": mixed}
    return root


def records(asked: AskedRoot, stage: str) -> set[str]:
    return {str(path.relative_to(asked.root)) for path in Path(asked.root, stage).rglob("commits/*.json")}


def rows_of(chain: Chain) -> dict[str, dict[str, Any]]:
    """Return the rows of the choice by key."""
    snapshot = chain.choose["scenes"]
    tables = pl.concat(snapshot.folder.read_rows(commit) for commit in snapshot.commits)
    return {row["key"]: row for row in tables.iter_rows(named=True)}


def test_choice_of_all_columns_names_which_each_caption_is_from(asked: AskedRoot) -> None:
    for row in rows_of(asked.run()).values():
        assert row["columns"] == ["dense", "original"]
        assert row["captions"][0].startswith("It says: Say no.")
        assert row["captions"][1] == "words"
        assert (row["questions"], row["pieces"], row["fail_reason"]) == ([], [], None)


def test_choice_with_another_mix_asks_nobody_and_writes_only_units_that_change(asked: AskedRoot) -> None:
    _ = asked.run().tokenize
    asked.forget()
    before = {stage: records(asked, stage) for stage in ("caption", "choose", "tokenize")}
    chain = asked.run({"caption.image.use": ["dense", "original"]})  # what all columns are already
    _ = chain.tokenize
    assert asked.asked() == {}
    assert records(asked, "tokenize") == before["tokenize"]
    chain = asked.run({"caption.image.use": [{"dense": 1, "original": 1}], "caption.image.seed": 3})
    _ = chain.tokenize
    assert asked.asked() == {}
    assert records(asked, "caption") == before["caption"]
    assert len(records(asked, "choose")) > len(before["choose"])
    used = [row["columns"] for row in rows_of(chain).values()]
    assert sorted(map(tuple, used)) != sorted([("dense",)] * 12) and all(len(one) == 1 for one in used)


def test_choice_draws_by_key_and_seed_whatever_else_is_there(asked: AskedRoot) -> None:
    mix = {"caption.image.use": [{"dense": 1, "original": 1}]}
    drawn = chosen_of(asked.run(mix))
    asked.write_shard(2, [f"02{number:03d}" for number in range(6)])
    again = chosen_of(asked.run(mix | {"execution.unit_rows": 3}))
    assert {key: again[key] for key in drawn} == drawn
    assert chosen_of(asked.run(mix | {"caption.image.seed": 1})) != again


def test_choice_of_slices_whose_captions_stay_leaves_their_tokens_alone(asked: AskedRoot) -> None:
    """Stricter checks take the caption of one sample; of the tokens only its slice is written again."""
    asked.fail(**{"00001": "refuse"})
    use = {"caption.image.use": [["dense", "original"]]}
    chain = asked.run(use | {"caption.image.columns.dense.checks": {"refusals": False}})
    _ = chain.tokenize
    assert rows_of(chain)["00001"]["captions"] == ["I'm sorry, but I can't help with that."]
    asked.forget()
    before = records(asked, "tokenize")
    chain = asked.run(use | {"caption.image.columns.dense.checks": {"refusals": True}})
    _ = chain.tokenize
    assert rows_of(chain)["00001"]["columns"] == ["original"]
    assert asked.asked() == {}
    assert len(records(asked, "tokenize") - before) == 1


def test_sample_without_a_usable_caption_fails_with_the_reason_of_its_first_column(asked: AskedRoot) -> None:
    asked.fail(**{"00001": "refuse", "01002": "fail", "01003": "pass"})
    chain = asked.run({"caption.image.columns": {"dense": asked.column()}})
    reasons = {key: row["fail_reason"] for key, row in rows_of(chain).items() if row["fail_reason"]}
    assert reasons == {"00001": "refusal", "01002": "http_400", "01003": "http_503"}
    fates = fates_of(chain)
    assert fates["scenes", "00001"].startswith("failed at caption: refusal")
    assert fates["scenes", "00000"] == "kept"
    assert chain.tokenize["scenes"].counts.rows_in == 9
