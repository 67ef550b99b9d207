"""What is used of all answers to a sample: which captions, which pairs, why none; and what that costs to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.asked_captioner import install
from tests.asking import AskedRoot, chosen_of

from tokenmill.captions.captioner import Answer
from tokenmill.errors import SampleError
from tokenmill.manifests.records import Counts, InputRef
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.answers import SCHEMA, answer_row, table_of
from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.choose import ChooseWorker
from tokenmill.pipelines.column_answers import ColumnAnswers, Said
from tokenmill.pipelines.fates import fates_of
from tokenmill.pipelines.jobs import Job, Target, Unit, UnitOutput, publish
from tokenmill.pipelines.questions import Asking, Question
from tokenmill.settings_caption import CaptionColumn, CaptionSettings


@pytest.fixture
def asked(tmp_path: Path) -> AskedRoot:
    """Two shards of six samples; the same captions are asked for, and the source's own is the other column."""
    root = AskedRoot(folder=tmp_path)
    mixed = {"dense": root.column(), "original": {"engine": "metadata", "fields": ["caption"]}}
    root.changes["caption.image"] = {"columns": mixed}
    return root


@pytest.fixture(autouse=True)
def _logged_captioner(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


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


def test_choice_of_a_slice_of_which_nothing_is_kept_is_an_empty_table(asked: AskedRoot) -> None:
    chain = asked.run({"filter.image.rules": {"none": "min_side_px >= 9999"}})
    assert rows_of(chain) == {}
    assert chain.choose["scenes"].counts.rows_in == 0


CLIPS = pl.DataFrame(
    {
        "key": ["short", "long"],
        "caption": ["a film", "a film"],
        "metadata": ["{}", "{}"],
        "sha256": ["a" * 64, "b" * 64],
        "start_frame": [0, 120],
        "end_frame": [120, 840],
        "start_seconds": [0.0, 5.0],
        "end_seconds": [5.0, 35.0],
        "fps": [24.0, 24.0],
        "width_px": [64, 64],
        "height_px": [64, 64],
    }
)


class Clips:
    """A selection of the two clips."""

    def read(self) -> pl.DataFrame:
        return CLIPS

    def carried(self) -> list[str]:
        return []


def answered(folder: Path, asking: Asking, texts: Callable[[Question], list[str] | None]) -> tuple[StageDir, Any]:
    """Publish answers to all questions about the clips; None stands for a fault."""
    config = StageConfig(stage="caption", version=2, schema=SCHEMA, settings=asking.identity)
    stage = StageDir(store=open_store(str(folder)), source="clips", config=config)
    rows = []
    for number, question in enumerate(asking.questions(CLIPS)):
        found = texts(question)
        error = SampleError("http_400", "no") if found is None else None
        answer = Answer(index=0, texts=tuple(found or ()), error=error, finish_reason="stop")
        rows.append(answer_row(question, answer, error, f"asking-{number}"))
    job = Job(unit=Unit(inputs=(InputRef(name="film", digest="c" * 64),)), targets=(Target(folder=stage),))
    publish(job, job.targets[0], UnitOutput(rows=table_of(rows), counts=Counts(rows_in=3, kept=3, out=3)))
    return stage, [(job.unit.name, 0)]


def choose_clips(
    folder: Path, texts: Callable[[Question], list[str] | None], **changes: Any
) -> dict[str, dict[str, Any]]:
    """Choose among answers to both clips: of the long one two stretches of 15 s are asked about."""
    column = {"engine": "logged", "log": "log", "takes_pictures": True, "prompt": "What is seen?", **changes}
    settings = CaptionSettings.model_validate({"columns": {"dense": column, "own": {"engine": "metadata"}},
                                               "use": ["dense"]})  # fmt: skip
    dense = Asking.of(settings.columns["dense"], "video", "clips")
    own = Asking.of(settings.columns["own"], "video", "clips")
    answers = {"dense": answered(folder, dense, texts), "own": answered(folder, own, lambda _: ["a film"])}
    stage = StageDir(
        store=open_store(str(folder)), source="clips", config=StageConfig(stage="choose", version=1, schema=1)
    )
    unit = Unit(inputs=(InputRef(name="film", digest="c" * 64),), payload={"part": Clips(), "answers": answers})
    (commit,) = ChooseWorker(settings, "video", "clips")(Job(unit=unit, targets=(Target(folder=stage),))).commits
    return {row["key"]: row for row in stage.read_rows(commit).iter_rows(named=True)}


def test_long_clip_s_caption_is_made_of_its_stretches_which_are_kept_with_their_times(tmp_path: Path) -> None:
    rows = choose_clips(tmp_path, lambda question: [f"Stretch {question.piece} is seen.", "Another wording."])
    assert rows["short"]["captions"] == ["Stretch 0 is seen.", "Another wording."]
    assert rows["short"]["pieces"] == []
    assert rows["long"]["captions"] == ["Stretch 0 is seen. Stretch 1 is seen."]
    assert rows["long"]["pieces"] == [
        {"variant": 0, "start_seconds": 0.0, "end_seconds": 15.0, "text": "Stretch 0 is seen."},
        {"variant": 0, "start_seconds": 15.0, "end_seconds": 30.0, "text": "Stretch 1 is seen."},
    ]


def test_long_clip_of_which_a_stretch_failed_fails_with_its_reason(tmp_path: Path) -> None:
    rows = choose_clips(tmp_path, lambda question: None if question.piece == 1 else ["It is seen."])
    assert rows["short"]["captions"] == ["It is seen."]
    assert (rows["long"]["captions"], rows["long"]["fail_reason"]) == (None, "http_400")


def said(answers: list[tuple[list[str] | None, str | None]], **checks: Any) -> Said:
    """Return what a column says of a sample whose question was answered several times: (texts, recorded reason)."""
    column = CaptionColumn.model_validate({"engine": "logged", "log": "log", "prompt": "Say it", "checks": checks})
    asking = Asking.of(column, "image", "photos")
    (question,) = asking.questions(CLIPS.head(1))
    rows = []
    for number, (texts, reason) in enumerate(answers):
        error = SampleError(reason, "no") if reason else None
        answer = Answer(index=0, texts=tuple(texts or ()), error=error if texts is None else None, finish_reason="stop")
        rows.append(answer_row(question, answer, error, f"asking-{number}"))
    return ColumnAnswers(asking=asking)._part(question, list(table_of(rows).iter_rows(named=True)))


def test_question_answered_often_takes_the_newest_answer_that_today_s_checks_let_through() -> None:
    one, two, refusal = ["One thing."], ["Two things."], ["I'm sorry, but I can't help with that."]
    assert said([(one, None), (two, None)]).texts == ("Two things.",)
    assert said([(one, None), (refusal, None)]).texts == ("One thing.",)
    assert said([(refusal, "refusal"), (None, "timeout")], refusals=False).texts == tuple(refusal)
    error = said([(refusal, "refusal"), (None, "timeout")]).error
    assert error is not None and error.reason == "refusal"
    error = said([]).error
    assert error is not None and error.reason == "not_asked"
