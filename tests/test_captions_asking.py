"""What is asked and what is not: other selections, cuts, metadata, prompts and columns; retries; what answers cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from tests.asked_captioner import NAME, install
from tests.asking import PICTURES, AskedRoot, answers_of, chosen_of, journaled_in, paid_in, table_of
from tests.harness import faults_in

from tokenmill.cli import main
from tokenmill.errors import RunError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.pipelines import earlier_records
from tokenmill.pipelines.answer_journal import journal_line
from tokenmill.pipelines.kept import GcOptions, collect
from tokenmill.pipelines.questions import Asking
from tokenmill.settings_caption import CaptionColumn


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AskedRoot:
    install(monkeypatch)
    return AskedRoot(folder=tmp_path / "asked")


def test_every_question_is_asked_once_and_answers_stand_in_its_order(root):
    chain = root.run()
    assert root.asked() == dict.fromkeys(root.keys, 1)
    assert table_of(answers_of(chain))["key"].to_list() == root.keys
    assert all(captions and captions[0].startswith("It says") for captions in chosen_of(chain).values())
    again = root.run(retry_failed=True)
    assert answers_of(again).digest == answers_of(chain).digest
    assert sum(root.asked().values()) == len(root.keys)


def test_other_selection_asks_only_for_samples_without_an_answer(root):
    few = {"filter.image.rules": {"few": "min_side_px >= 8", "none": "min_side_px < 8"}}
    assert not answers_of(root.run(few)).counts.rows_in, "and an engine with nothing to do is not asked"
    root.write_shard(2, ["02000", "02001"])
    root.run({"sources.scenes.url": str(root.folder / "data")})
    root.forget()
    root.write_shard(1, root.keys[6:9])  # half of the shard is gone
    root.run()
    assert not root.asked()
    root.write_shard(1, [*root.keys[6:], "01999"])
    chain = root.run()
    assert root.asked() == {"01999": 1}
    assert len(chosen_of(chain)) == 15 and all(chosen_of(chain).values())


def test_other_cut_of_the_shards_gives_the_same_captions_and_asks_nothing(root):
    before = chosen_of(root.run())
    root.forget()
    for rows in (2, 5, 100):
        assert chosen_of(root.run({"execution.unit_rows": rows})) == before
    assert not root.asked()


def test_changed_metadata_is_asked_about_only_where_the_prompt_shows_it(root):
    root.run()
    root.forget()
    root.write_shard(1, root.keys[6:], licence="none")
    root.run()
    assert not root.asked()
    root.write_shard(1, root.keys[6:8], title="another")
    root.run()
    assert root.asked() == dict.fromkeys(root.keys[6:8], 1)


def test_renamed_column_asks_nothing_another_prompt_all_and_leaves_the_old_answers_alone(root):
    first = answers_of(root.run())
    old = {entry.path: entry.sha for entry in _files(first.folder)}
    root.forget()
    renamed = root.run({"caption.image": {"columns": {"other": root.column()}}})
    assert not root.asked()
    assert answers_of(renamed, "other").digest == first.digest
    changed = root.run({"caption.image.columns.dense.prompt": "Tell {metadata.title}"})
    assert root.asked() == dict.fromkeys(root.keys, 1)
    assert answers_of(changed).folder.path != first.folder.path
    assert {entry.path: entry.sha for entry in _files(first.folder)} == old


def test_column_beside_another_is_the_only_one_asked(root):
    root.run()
    root.forget()
    columns = {"dense": root.column(), "short": root.column(prompt="Shortly {metadata.title}")}
    chain = root.run({"caption.image": {"columns": columns}})
    assert root.asked() == dict.fromkeys(root.keys, 1)
    assert all(len(captions or ()) == 2 for captions in chosen_of(chain).values())


def test_samples_with_equal_bytes_or_keys_are_asked_each_by_itself(root):
    root.write_shard("more/00000.tar", ["00000", "00001"])  # a shard and keys that are there already
    chain = root.run({"caption.image.columns.dense": root.column(takes_pictures=True, prompt="What is it?")})
    assert root.asked() == dict.fromkeys(root.keys, 1) | {"00000": 2, "00001": 2}
    assert answers_of(chain).totals["questions"] == 14
    assert paid_in(answers_of(chain).folder)["questions"] == 14


def test_loose_pictures_that_move_between_units_keep_their_answers(root, monkeypatch):
    monkeypatch.setattr("tokenmill.pipelines.ingest.ALONE", ())
    monkeypatch.setattr(earlier_records, "ALONE", ())
    pictures = root.folder / "pictures"
    pictures.mkdir()

    def write(*names: str) -> None:
        for name in names:
            (pictures / f"{name}.png").write_bytes(PICTURES[0])

    changes = {
        "sources": {"scenes": {"kind": "images", "url": str(pictures)}},
        "execution.unit_bytes": 5 * len(PICTURES[0]),
        "caption.image.columns.dense.prompt": "Say {key}",
    }
    write(*(f"m{number}" for number in range(12)))
    before = root.run(changes)
    assert len(before.ingest["scenes"].commits) > 2
    heads = [commit.inputs[0].name for commit in before.ingest["scenes"].commits]
    root.forget()
    write("a0", "m3x")
    (pictures / heads[0]).unlink()
    after = root.run(changes)
    moved = [commit.inputs[0].name for commit in after.ingest["scenes"].commits]
    assert moved != heads
    assert root.asked() == {"a0.png": 1, "m3x.png": 1}
    assert all(chosen_of(after).values())


def test_retry_asks_only_what_has_no_good_answer_by_the_checks_of_now(root):
    root.fail(**{"00001": "refuse", "00002": "empty", "01003": "fail", "01004": "pass"})
    first = root.run()
    counts = answers_of(first).counts
    assert (counts.kept, counts.failed) == (8, {"empty": 1, "http_400": 1, "http_503": 1, "refusal": 1})
    assert answers_of(first).totals["unanswered"] == 4
    assert {key for key, captions in chosen_of(first).items() if not captions} == {"00001", "00002", "01003", "01004"}
    root.run()
    assert sum(root.asked().values()) == 12, "a plain run asks for nothing that was asked"

    root.forget()
    root.fail(**{"00002": "empty"})
    second = root.run(retry_failed=True)
    assert root.asked() == dict.fromkeys(("00001", "00002", "01003", "01004"), 1)
    assert {key for key, captions in chosen_of(second).items() if not captions} == {"00002"}
    assert answers_of(second).counts.dropped == {"asked_again": 4}
    assert table_of(answers_of(second)).height == 16, "what was paid for is kept, good or bad"

    root.forget()
    root.fail()
    wide = {"caption.image.columns.dense.checks": {"max_chars": 40}}
    chars = {key: len((captions or [""])[0]) for key, captions in chosen_of(second).items()}
    root.run(wide, retry_failed=True)
    assert set(root.asked()) == {key for key, number in chars.items() if number > 40 or not number}


def test_bad_answer_of_another_unit_that_is_mended_there_is_used_here_after_a_retry(root):
    root.fail(**{"00001": "refuse"})
    first = root.run()
    other = {"filter.image.carry": ["min_side_px"], "execution.unit_rows": 6}
    root.fail()
    root.run(other)
    assert root.asked()["00001"] == 1
    root.run(other, retry_failed=True)
    assert root.asked()["00001"] == 2
    assert not chosen_of(root.run())["00001"]
    mended = root.run(retry_failed=True)
    assert root.asked()["00001"] == 2
    assert chosen_of(mended)["00001"]
    assert answers_of(mended).digest != answers_of(first).digest
    assert answers_of(root.run(retry_failed=True)).digest == answers_of(mended).digest


def test_totals_of_all_newest_records_are_what_the_engine_was_paid(root):
    prices = {"input_per_million": 2.0, "output_per_million": 10.0}
    changes = {"caption.image.columns.dense.prices": prices}
    root.fail(**{"00001": "fail", "00005": "empty"})
    root.run(changes)
    chain = root.run(changes, retry_failed=True)
    root.write_shard(1, [*root.keys[6:], "01900"])
    root.fail()
    chain = root.run(changes, retry_failed=True)
    asked = sum(root.asked().values())
    paid = paid_in(answers_of(chain).folder)
    assert asked == 12 + 2 + 2 + 1
    assert paid["questions"] == asked
    assert paid["requests"] == asked + 2 * 2, "the one that failed took three requests, twice"
    assert paid["retried.http_503"] == 2 * 2
    answered = asked - 2
    assert paid["output_tokens"] == 7 * answered
    assert paid["input_tokens"] == len("Say no. 00000") * answered
    assert paid["cost_millionths"] == 2 * paid["input_tokens"] + 10 * paid["output_tokens"]
    assert answers_of(chain).totals["unanswered"] == 0


def test_prompt_that_needs_a_field_some_samples_lack_is_a_reason_and_no_question(root):
    root.write_shard(2, ["02000"], title="")
    chain = root.run()
    assert "02000" not in root.asked()
    assert answers_of(chain).counts.failed == {"no_field": 1}
    assert answers_of(chain).totals["questions"] == 12
    again = root.run(retry_failed=True)
    assert answers_of(again).digest == answers_of(chain).digest, "and a retry changes nothing"


def test_prompt_that_no_sample_can_fill_stops_the_run_before_anything_is_asked(root):
    wrong = {
        "caption.image.columns.dense.prompt": "Say {metadata.titel}",
        "execution.failure_budget": 3,
        "execution.unit_rows": 6,
    }
    with pytest.raises(RunError, match=r"caption scenes dense: 4 questions in a row .*titel.*run it again"):
        root.run(wrong)
    assert not root.asked()


def test_model_that_refuses_everything_stops_the_run_and_is_not_asked_again_under_other_checks(root):
    root.fail(**dict.fromkeys(root.keys, "refuse"))
    strict = {"execution.failure_budget": 3, "execution.unit_rows": 6}
    with pytest.raises(RunError, match=r"caption scenes dense: 4 questions in a row .*refusal.*checks.*run it again"):
        root.run(strict)
    asked = set(root.asked())
    assert len(asked) == 4
    root.forget()
    loose = {"caption.image.columns.dense.checks": {"refusals": False}}
    chain = root.run(loose | strict)
    assert set(root.asked()) == set(root.keys) - asked
    assert all(chosen_of(chain).values())
    assert paid_in(answers_of(chain).folder)["questions"] == 12


def test_retry_does_not_end_at_answers_that_stay_bad(root):
    root.fail(**dict.fromkeys(root.keys, "refuse"))
    root.run()
    chain = root.run({"execution.failure_budget": 3, "execution.unit_rows": 6}, retry_failed=True)
    assert root.asked() == dict.fromkeys(root.keys, 2)
    root.fail(**dict.fromkeys(root.keys, "fail"))
    with pytest.raises(RunError, match="4 questions in a row"):
        root.run({"execution.failure_budget": 3, "execution.unit_rows": 6}, retry_failed=True)
    assert answers_of(chain).totals["unanswered"] == 12


def test_server_that_was_down_is_asked_again_when_the_run_goes_on(root):
    root.fail(**dict.fromkeys(root.keys, "pass"))
    with pytest.raises(RunError, match="http_503"):
        root.run({"execution.failure_budget": 3, "execution.unit_rows": 6})
    root.fail()
    chain = root.run()
    assert all(chosen_of(chain).values())
    assert answers_of(chain).totals["questions"] == 16


def test_engine_that_skips_a_question_leaves_a_reason_behind(root):
    root.fail(**{"00003": "skip"})
    chain = root.run()
    assert answers_of(chain).counts.failed == {"no_answer": 1}
    root.fail()
    assert all(chosen_of(root.run(retry_failed=True)).values())
    assert root.asked()["00003"] == 2


def test_end_of_the_stage_tells_how_many_have_no_answer_and_what_to_do(root, capsys):
    root.fail(**{"00001": "refuse", "01004": "pass"})
    root.run({"execution.unit_rows": 6})
    root.run()  # other units of the same samples
    assert main(["caption", str(root.write())]) == 0
    assert "; 2 have no good answer, --retry-failed asks them again" in capsys.readouterr().out


def test_record_of_another_schema_of_table_is_not_mixed_in(root):
    snapshot = answers_of(root.run())
    columns = pl.read_parquet(Path(root.root) / snapshot.folder.path / snapshot.commits[0].rows.name).columns
    assert columns[:7] == ["key", "piece", "pieces", "start_seconds", "end_seconds", "request", "asked"]
    assert snapshot.folder.config.settings["engine"] == NAME


class _Digested:
    def __init__(self, path: str, sha: str) -> None:
        self.path, self.sha = path, sha


def _files(folder):
    return [_Digested(e.path, sha256_hex(folder.store.read_bytes(e.path))) for e in folder.store.files(folder.path)]


def test_gc_keeps_what_was_paid_for_whatever_the_selection_and_lets_it_go_only_by_name(root):
    snapshot = answers_of(root.run())
    answers = {one.path for one in _files(snapshot.folder) if one.path.endswith(".parquet") and "snap" not in one.path}
    journal = snapshot.folder.at("journal/00000-0/gone-1.jsonl")
    snapshot.folder.store.put(journal, journal_line({"asked": "gone-1-1", "key": "k"}))
    fewer = {"execution.unit_rows": 6}
    root.run(fewer)
    at_once = GcOptions(older_than_s=0, old_settings=True)
    collect(root.recipe(fewer), at_once, apply_it=True)
    assert answers <= {one.path for one in _files(snapshot.folder)}
    assert snapshot.folder.store.exists(journal)
    other = {"caption.image.columns.dense.prompt": "Tell {metadata.title}"}
    root.run(other)
    sweep = collect(root.recipe(other), at_once, apply_it=True)
    assert any("--old-captions" in note for note in sweep.notes)
    assert answers <= {one.path for one in _files(snapshot.folder)}
    root.forget()
    root.run()
    assert not root.asked()
    collect(root.recipe(other), replace(at_once, old_captions=True), apply_it=True)
    assert not _files(snapshot.folder)
    assert faults_in(snapshot.folder.store) == []


def test_takedown_takes_a_samples_answers_out_and_leaves_those_of_the_others(root, capsys):
    root.fail(**{"00001": "refuse"})
    root.run()
    root.fail()
    chain = root.run(retry_failed=True)
    folder = answers_of(chain).folder
    rows = table_of(answers_of(chain)).to_dicts()
    folder.store.put(folder.at("journal/00000-0/u-1.jsonl"), b"".join(map(journal_line, rows)))
    (root.folder / "keys.txt").write_text("00001\n01002\n")
    gone = {key for key in root.keys if int(key) % 1000 % len(PICTURES) in (1, 2)}  # exact copies go, too
    before = paid_in(folder)["questions"]
    assert main(["takedown", str(root.write()), "--keys", str(root.folder / "keys.txt"), "--rewrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewritten"]["answers"] == 4
    told = b"\n".join(
        pl.read_parquet(path).write_ndjson().encode() if path.suffix == ".parquet" else path.read_bytes()
        for path in Path(root.root).rglob("*")
        if path.is_file() and path.relative_to(root.root).parts[0] == "caption"
    )
    assert not [key for key in gone if f'{key}"'.encode() in told or f"no. {key}".encode() in told]
    assert b"no. 00000" in told and {row["key"] for row in journaled_in(folder)} == set(root.keys) - gone
    assert faults_in(folder.store) == []
    assert paid_in(folder)["questions"] == before
    root.forget()
    after = root.run()
    assert not root.asked()
    assert set(chosen_of(after)) == set(root.keys) - gone and all(chosen_of(after).values())


def test_numbers_that_are_none_are_null_in_questions():
    row = {
        "key": "a",
        "sha256": "0" * 64,
        "caption": None,
        "metadata": '{"x": NaN, "y": [1e999]}',
        "sharpness": math.nan,
    }
    asking = Asking.of(CaptionColumn(), "image", "web")
    (question,) = asking.questions(pl.DataFrame([row], schema_overrides={"caption": pl.String}), ["sharpness"])
    assert question.sample["metadata"] == {"x": None, "y": [None]}
    assert question.sample["scores"] == {"sharpness": None}
