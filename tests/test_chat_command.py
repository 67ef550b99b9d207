"""`tokenmill chat`: turns as training's chat template has them, pictures shown and drawn, streamed text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.taught_model import QUESTIONS, V, export_taught, pictures

from tokenmill.cli import main
from tokenmill.errors import RecipeError
from tokenmill.generate.conversation import Turn, chat_prompt
from tokenmill.generate.prompts import Shown, question_prompt
from tokenmill.generate.streaming import TextStream
from tokenmill.studio import Shape, Studio, open_studio
from tokenmill.tokenize.documents import TextSegment, VisionSegment, assemble


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_taught(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def studio(model: Path) -> Studio:
    return open_studio(model)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "face.png"
    Image.fromarray(pictures()[0]).save(path)
    return str(path)


@pytest.fixture
def talk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Pipe lines into the command; returns exit code, stdout and stderr."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["chat", str(model), "--max-new", "24", "--out", str(tmp_path / "out"), *options])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def turn(speaker: Any, text: str, *shown: Shown) -> Turn:
    return Turn(speaker=speaker, text=text, ids=V.encode(text).tolist(), shown=shown)


def test_prompt_of_one_question_is_that_of_training(studio):
    codes = studio.shown(pictures()[0]).codes
    asked = chat_prompt(V, [turn("user", "Why?", Shown(codes=codes))], system="Be brief.")
    assert asked.tolist() == question_prompt(V, "Why?", codes, system="Be brief.").tolist()
    assert chat_prompt(V, [turn("user", "Why?")]).tolist() == question_prompt(V, "Why?").tolist()


def test_prompt_of_many_turns_is_the_start_of_the_document_that_training_would_see():
    rng = np.random.default_rng(0)
    grids = [(1, 2, 3), (2, 2, 2), (1, 4, 2)]
    codes = [rng.integers(0, 2048, grid).astype(np.uint32) for grid in grids]
    turns = [
        turn("user", "one", Shown(codes=codes[0]), Shown(codes=codes[1], fps=8.0, seconds=1.0)),
        turn("assistant", "two"),
        turn("user", "draw it"),
        turn("assistant", "", Shown(codes=codes[2])),
        turn("user", "three"),
    ]
    text = np.array(V.text.encode("onetwodraw itthreefour"), np.uint32)
    segments = [
        VisionSegment(*grids[0], 0, role="user"), VisionSegment(*grids[1], 6, 8.0, 1.0, role="user"),
        TextSegment(0, 3, "user"), TextSegment(3, 6, "assistant"), TextSegment(6, 13, "user"),
        VisionSegment(*grids[2], 14, role="assistant"), TextSegment(13, 18, "user"), TextSegment(18, 22, "assistant"),
    ]  # fmt: skip
    whole = assemble(segments, text, np.concatenate([one.reshape(-1) for one in codes]), "chat", V).ids.tolist()
    prompt = chat_prompt(V, turns).tolist()
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) :] == [*V.text.encode("four"), V.eos]


def test_piped_lines_are_answered_about_the_picture(talk, picture):
    code, out, err = talk(f"/image {picture}", "What is it?", "/reset", f"/image {picture}", "Where?")
    assert (code, err) == (0, "")
    assert out == "[face.png is shown]\na thing\n[face.png is shown]\nhere\n"


def test_what_is_drawn_is_part_of_the_chat_and_can_be_saved(talk, tmp_path, studio):
    saved = tmp_path / "chat.json"
    code, out, err = talk("/draw a face", "What is it?", f"/save {saved}", options=("--json",))
    assert (code, err) == (0, "")
    drawn, said = (json.loads(line) for line in out.splitlines())
    told = json.loads(saved.read_text())
    assert [(one["speaker"], one["text"]) for one in told] == [
        ("user", "a face"), ("assistant", ""), ("user", "What is it?"), ("assistant", said["answer"]),
    ]  # fmt: skip
    assert told[1]["shown"] == [{"name": "drawn", "grid": [1, 4, 4]}]
    assert Image.open(drawn["drawn"]).size == (32, 32)


def test_line_that_cannot_be_done_is_told_and_the_talk_goes_on(talk, picture):
    wrong = ["/image nowhere.png", "/image", "/fly", "/draw", "/save /no/such/folder/x"]
    code, out, err = talk(*wrong, f"/image {picture}", "Where?", "/quit", "Where?")
    assert code == 1
    assert out.endswith("\nhere\n")
    assert len(err.splitlines()) == len(wrong)
    assert "no command /fly" in err


def test_question_with_nothing_said_is_left_out(talk):
    assert talk("", "   ") == (0, "", "")


def test_answers_come_in_pieces_that_are_the_answer(studio, picture):
    pieces: list[str] = []
    for question, answer in QUESTIONS.items():
        pieces.clear()
        chat = studio.chat(max_new=24)
        assert chat.say(question, picture, on_text=pieces.append) == answer
        assert "".join(pieces) == answer
        assert len(pieces) == len(answer)


def test_letter_of_several_ids_is_shown_whole():
    shown: list[str] = []
    stream = TextStream(V.text, shown.append)
    for index in "aé中".encode():
        stream.add(index)
    stream.add(0xE4)
    stream.end(V.text.decode([*"aé中".encode(), 0xE4]))
    assert shown == ["a", "é", "中", "\ufffd"]


def test_history_decides_about_the_answer_and_is_forgotten_on_reset(studio, picture):
    chat = studio.chat(max_new=12)
    first = chat.say("Where?", picture)
    chat.say("And now?")
    asked = [one.text for one in chat.conversation.turns]
    assert asked[:3] == ["Where?", first, "And now?"]
    chat.conversation.reset()
    assert chat.conversation.turns == []
    assert chat.say("Where?", picture) == first


def test_conversation_beyond_the_context_is_refused_and_stays_as_it_was(studio, picture):
    chat = studio.chat(max_new=24)
    chat.say("Where?", picture)
    with pytest.raises(RecipeError, match=r"the model's context holds 256: no room for an answer; begin anew"):
        chat.say("x" * 250, picture)
    assert len(chat.conversation.turns) == 2
    assert chat.conversation.waiting == []
    with pytest.raises(RecipeError, match="nothing is said"):
        chat.say("  ")


def test_drawing_in_a_chat_is_what_the_model_draws_of_the_prompt(studio):
    chat = studio.chat()
    drawn = chat.draw("a rocket", Shape(size=(32, 40)), seed=4)
    (alone,) = studio.draw("a rocket", Shape(size=(32, 40)), seed=4)
    assert drawn.data() == alone.data()
    assert chat.conversation.turns[1].shown[0].codes.shape == (1, 4, 5)
