"""Tables of questions as a stage: answers are rows with their ids, bad rows have a reason, all lies in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.drawing_jobs import write_export
from tests.test_pipelines_generation import V

from tokenmill.captions.captioner import Request, build_captioner
from tokenmill.cli import main
from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import motion, render_motion
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.drawing_jobs import READ_ONLY
from tokenmill.pipelines.question_jobs import Answered, answer_jobs, answered_rows
from tokenmill.recipe import check_recipe
from tokenmill.verification import verify_path

ASKED = "Is there a box?"
ROWS: list[Any] = [
    {"question": ASKED, "image": "one.png", "answer": "yes", "category": "existence", "key": "q1"},
    {"question": "What moves?", "clip": "clips/move.mp4"},
    {"question": ASKED, "image": "none.png"},
    {"question": ASKED, "image": "../../etc/passwd"},
    {"question": ASKED, "image": "broken.png"},
    {"question": ASKED},
    {"question": " ", "image": "one.png"},
    {"question": "x" * 250, "image": "one.png"},
    {"question": ASKED, "image": "two.png", "system": "Say yes."},
]
FAILED = {
    "bad_path": 1, "empty_prompt": 1, "missing_file": 1, "no_picture": 1, "not_an_image": 1, "too_long": 1,
}  # fmt: skip


def value(folder: Path, **job: Any) -> dict[str, Any]:
    asked = {"questions": str(folder / "questions.jsonl"), "max_new": 6, "unit_rows": 4, "batch_size": 3, "frames": 4}
    return {
        "root": str(folder / "root"),
        "sources": {"photos": {"kind": "images", "url": str(folder)}},
        "execution": {"executor": "inline"},
        "generate": {"questions": {"pope": asked | job}, "evaluate_documents": 0},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with questions, two pictures and a clip, below it a root with a model that has answered them."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for number, name in enumerate(("one", "two")):
        (folder / f"{name}.png").write_bytes(tiny.picture(number, 32))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "clips").mkdir()
    encode_mp4(folder / "clips/move.mp4", render_motion(motion(0), 12, 32), 12)
    areas = {"image": [1024, 1024, 3.0], "video": [256, 256, 3.0]}
    write_export(folder / "root", folder / "model")
    described = folder / "root/checkpoints/main/export/tokenmill.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"areas": areas}))
    (folder / "recipe.yaml").write_text(json.dumps(value(folder)))
    assert main(["generate", str(folder / "recipe.yaml")]) == 0
    return folder


def answers_of(folder: Path) -> list[Answered]:
    return list(answered_rows(answer_jobs(check_recipe(value(folder), "test"), options=READ_ONLY)["pope"]))


def test_answers_come_back_with_their_row_and_are_those_of_the_captioner_of_that_model(folder):
    found = answers_of(folder)
    assert [one.row for one in found] == [ROWS[0], ROWS[1], ROWS[8]]
    assert [one.prompt_key for one in found] == ["q1", "000001", "000008"]
    captioner = build_captioner("tokenmill", {"model": str(folder / "root/checkpoints/main/export"), "max_new": 6})
    asked = [
        Request(
            index=number, sample={}, prompt=ASKED, system=str(ROWS[row].get("system", "")),
            frames=decode_image((folder / str(ROWS[row]["image"])).read_bytes(), max_pixels=10**6)[None],
        )
        for number, row in enumerate((0, 8))
    ]  # fmt: skip
    for one, (answer,) in zip(
        (found[0], found[2]), (next(captioner.answers([request])) for request in asked), strict=True
    ):
        assert one.answer == answer.texts[0]
    for one in found:
        assert V.text.decode(one.ids.tolist()) == one.answer and 0 < len(one.ids) <= 6
        assert one.finish_reason == ("length" if len(one.ids) == 6 else "stop")


def test_questions_that_cannot_be_asked_are_rows_with_a_reason_and_all_verifies(folder, capsys):
    snapshot = answer_jobs(check_recipe(value(folder), "test"), options=READ_ONLY)["pope"]
    assert (snapshot.counts.rows_in, snapshot.counts.kept) == (9, 3)
    assert dict(snapshot.counts.failed) == FAILED
    assert verify_path(str(folder / "root"), {}, deep=True).faults == []
    assert main(["status", str(folder / "recipe.yaml"), "--json"]) == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out)["stages"] if row["stage"] == "answer")
    assert (row["done"], row["total"], row["counts"]["failed"]) == (3, 3, FAILED)


def test_batch_decides_no_answer_and_pictures_may_lie_elsewhere(folder, tmp_path):
    first = answers_of(folder)
    (tmp_path / "questions.jsonl").write_bytes((folder / "questions.jsonl").read_bytes())
    again = value(tmp_path, media=str(folder), batch_size=1) | {"root": str(folder / "root")}
    second = list(answered_rows(answer_jobs(check_recipe(again, "test"))["pope"]))
    assert [one.answer for one in second] == [one.answer for one in first]
    assert all(np.array_equal(one.ids, two.ids) for one, two in zip(first, second, strict=True))
    assert open_store(str(folder / "root")).folders("answer") == ["pope"]
