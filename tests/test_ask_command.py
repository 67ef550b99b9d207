"""`tokenmill ask`: a model that was taught some pictures says what it learned of them, file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.drawing_export import random_export
from tests.taught_model import CAPTIONS, QUESTIONS, clip, export_taught, pictures

from tokenmill.cli import main
from tokenmill.generate.write_video import mp4
from tokenmill.studio import open_studio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_taught(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The four pictures as files."""
    folder = tmp_path_factory.mktemp("files")
    for number, image in enumerate(pictures()):
        Image.fromarray(image).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(4)]


def test_pictures_are_told_one_a_line(model, files, capsys):
    assert main(["ask", str(model), *files, "--max-new", "24", "--batch-size", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{file}: {caption}" for file, caption in zip(files, CAPTIONS, strict=True)]


def test_question_is_answered_alone_or_about_each(model, files, capsys):
    for question, answer in QUESTIONS.items():
        assert main(["ask", str(model), files[2], "--question", question, "--max-new", "24"]) == 0
        assert capsys.readouterr().out == f"{answer}\n"
    assert main(["ask", str(model), *files, "--question", "Where?", "--max-new", "24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["question"] == "Where?"
    assert found["answers"] == [{"picture": file, "answer": "here", "is_whole": True} for file in files]


def test_clip_is_seen_by_some_of_its_frames(model, tmp_path, capsys):
    (tmp_path / "c.mp4").write_bytes(mp4(clip(), 1.0))
    assert main(["ask", str(model), str(tmp_path / "c.mp4"), "--frames", "12", "--max-new", "24"]) == 0
    assert capsys.readouterr().out == "it moves\n"
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(clip()):
        Image.fromarray(frame).save(folder / f"{number}.png")
    asked = [str(folder), "--fps", "1", "--frames", "12", "--max-new", "24"]
    assert main(["ask", str(model), *asked]) == 0
    assert capsys.readouterr().out == "it moves\n"


def test_damaged_picture_is_named_and_the_others_are_answered(model, files, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(Path(files[0]).read_bytes()[:200])
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    given = [str(tmp_path / "bad.png"), files[1], str(tmp_path / "text.jpg"), str(tmp_path / "gone.png")]
    assert main(["ask", str(model), *given, "--max-new", "24"]) == 1
    told = capsys.readouterr()
    assert told.out == f"{files[1]}: {CAPTIONS[1]}\n"
    errors = told.err.splitlines()
    assert len(errors) == 3
    assert "bad.png: truncated" in errors[0]
    assert "text.jpg: not_an_image" in errors[1]
    assert "gone.png: no such picture" in errors[2]
    assert main(["ask", str(model), given[0], "--json"]) == 1
    assert "truncated" in json.loads(capsys.readouterr().out)["answers"][0]["error"]


def test_answer_that_is_cut_off_says_so(model, files, capsys):
    assert main(["ask", str(model), files[3], "--max-new", "3"]) == 0
    assert capsys.readouterr().out == "som … (cut off by --max-new)\n"


def test_question_without_a_picture_needs_none(tmp_path, capsys):
    folder = random_export(tmp_path / "blind", vision=None, areas=None)
    assert main(["ask", str(folder), "--question", "Why?", "--max-new", "4", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["answers"][0]["answer"], str)


def refusal(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["ask", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_makes_no_sense_is_refused(model, files, tmp_path, capsys):
    assert "nothing to answer" in refusal(capsys, model)
    assert "--max-new 0" in refusal(capsys, model, files[0], "--max-new", 0)
    assert "temperature is -1" in refusal(capsys, model, files[0], "--temperature", -1)
    assert "cannot be used" in refusal(capsys, model, files[0], "--device", "cuda:9")
    blind = random_export(tmp_path / "blind", vision=None, areas=None)
    assert "trained without pictures" in refusal(capsys, blind, files[0])


def test_model_that_was_trained_with_another_tokenizer_sees_nothing(files, tmp_path, capsys):
    export = export_taught(tmp_path, {"vision_fingerprint": "0" * 64})
    assert "made by the vision tokenizer 0000000000000000" in refusal(capsys, export, files[0])


def test_python_answers_alike(model, files):
    studio = open_studio(model)
    assert [studio.ask(file, max_new=24) for file in files] == list(CAPTIONS)
    assert studio.ask(files[0], "What is it?", max_new=24) == "a thing"
    assert studio.ask(pictures()[1], max_new=24) == CAPTIONS[1]
    assert studio.ask(str(files[2]), "Where?", max_new=24) == "here"
