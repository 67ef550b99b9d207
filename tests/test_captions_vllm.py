"""The engine that runs vLLM in this process: what can be held without vLLM and a GPU, and one test that needs both."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_vlm import write_tiny_qwen

from tokenmill.captions.captioner import Answer, Request, build_captioner
from tokenmill.captions.vllm_engine import messages
from tokenmill.demo.scenes import motion, render, render_motion, scene
from tokenmill.errors import RecipeError, RunError

RUNS = torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None


class Countdown:
    """Answers every question at the third step after it was added, and refuses those without words."""

    def __init__(self) -> None:
        self.steps_left: dict[int, int] = {}
        self.most = self.num_steps = 0

    @property
    def num_waiting(self) -> int:
        return len(self.steps_left)

    def add(self, request: Request) -> list[Answer]:
        if not request.prompt:
            return [Answer(index=request.index)]
        self.steps_left[request.index] = 3
        self.most = max(self.most, self.num_waiting)
        return []

    def step(self) -> list[Answer]:
        self.num_steps += 1
        self.steps_left = {index: left - 1 for index, left in self.steps_left.items()}
        done = [index for index, left in self.steps_left.items() if not left]
        return [Answer(index=index, texts=(str(self.steps_left.pop(index)),)) for index in done]

    def drop(self) -> None:
        self.steps_left.clear()

    def shutdown(self) -> None:
        self.drop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen(tmp_path_factory.mktemp("models") / "qwen")


def question(number: int, prompt: str = "What is this?") -> Request:
    return Request(index=number, sample={}, prompt=prompt, frames=render(scene(number), 48)[None], seed=number)


def with_engine(engine: Any, **settings: Any) -> Any:
    captioner = build_captioner("vllm", {"model": "any", **settings})
    vars(captioner)["_engine"] = engine
    return captioner


def test_engine_holds_no_more_than_its_batch_and_every_question_is_answered_once():
    engine = Countdown()
    questions = [question(number, "" if number % 7 == 3 else "What?") for number in range(50)]
    found = [answer.index for some in with_engine(engine, batch_size=8).answers(questions) for answer in some]
    assert sorted(found) == list(range(50))
    assert 1 < engine.most <= 8
    assert engine.num_waiting == 0


def test_slow_requests_do_not_keep_the_engine_from_answering():
    """The second question comes only after the first was answered: an engine that waited to be full would hang."""
    engine = Countdown()
    answered: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(4):
            while number and number - 1 not in answered:
                pass
            yield question(number)

    for some in with_engine(engine, batch_size=8).answers(requests()):
        answered += [answer.index for answer in some]
    assert answered == [0, 1, 2, 3]


def test_answers_that_are_given_up_leave_nothing_in_the_engine():
    engine = Countdown()
    pulled: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(100):
            pulled.append(number)
            yield question(number)

    answers = with_engine(engine, batch_size=4).answers(requests())
    next(answers)
    answers.close()
    assert engine.num_waiting == 0
    assert len(pulled) <= 4 + 4 + 4 + 1  # answered, waiting, decoded ahead


def test_question_for_vllm_is_a_chat_with_pictures_before_the_words():
    frames = render_motion(motion(1), 3, 32)
    clip = Request(index=0, sample={}, prompt="What <|end|>?", system="Be brief.", frames=frames)
    system, user = messages(clip, frozenset({"<|end|>"}))
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["image_pil"] * 3 + ["text"]
    assert np.array_equal(np.asarray(user["content"][1]["image_pil"]), frames[1])
    assert user["content"][-1]["text"] == "What < |end|>?"
    (only,) = messages(Request(index=0, sample={}, prompt="Say it."), frozenset())
    assert only == {"role": "user", "content": [{"type": "text", "text": "Say it."}]}


def test_worker_without_vllm_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RunError, match=r"pip install 'tokenmill\[vllm\]'"):
        next(build_captioner("vllm", {"model": str(folder)}).answers([question(1)]))


def test_vllm_without_questions_is_not_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert list(build_captioner("vllm", {"model": "nowhere"}).answers([])) == []


def test_model_for_vllm_that_is_none_is_told_before_vllm_is_needed(tmp_path):
    captioner = build_captioner("vllm", {"model": str(tmp_path)})
    with pytest.raises(RecipeError, match=r"captioner 'vllm': model .* lacks config.json"):
        next(captioner.answers([question(1)]))


def test_fingerprint_covers_content_and_settings_but_not_how_it_is_run(folder, tmp_path):
    def fingerprint(**settings: Any) -> str:
        return build_captioner("vllm", {"model": str(folder), **settings}).fingerprint

    running = {
        "batch_size": 3, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "max_model_len": 512,
        "limit_mm_per_prompt": {"image": 1}, "top_p": 0.5,
    }  # fmt: skip
    assert {fingerprint(), fingerprint(**running), fingerprint(model=str(shutil.copytree(folder, tmp_path / "b")))} == {
        fingerprint()
    }
    changes = [
        {"quantization": "fp8"}, {"dtype": "bfloat16"}, {"max_new_tokens": 9}, {"temperature": 1},
        {"temperature": 1, "top_p": 0.5}, {"max_side_px": 100},
    ]  # fmt: skip
    same_model = build_captioner("transformers", {"model": str(folder)}).fingerprint
    assert len({fingerprint(), same_model, *(fingerprint(**change) for change in changes)}) == len(changes) + 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "x", "trust_remote_code": True}, "unknown setting 'trust_remote_code'"),
        ({"model": "x", "limit_mm_per_prompt": {"audio": 1}}, "limit_mm_per_prompt"),
        ({"model": "x", "gpu_memory_utilization": 2}, "gpu_memory_utilization"),
        ({"model": "x", "tensor_parallel_size": 0}, "tensor_parallel_size"),
    ],
)
def test_recipe_with_wrong_settings_for_vllm_is_refused(settings, says):
    with pytest.raises(RecipeError, match=says):
        build_captioner("vllm", settings)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not RUNS, reason="no CUDA device, or no vllm beside it")
def test_real_vllm_answers_every_question_and_names_what_it_cannot(folder):
    settings = {"model": str(folder), "max_model_len": 512, "max_new_tokens": 12, "batch_size": 8}
    captioner = build_captioner("vllm", settings)
    long = question(40, "word " * 600)
    answers = {answer.index: answer for some in captioner.answers([*map(question, range(40)), long]) for answer in some}
    captioner.close()
    assert sorted(answers) == list(range(41))
    assert [index for index, answer in answers.items() if answer.error] == [40]
    assert all(answers[index].usage.output_tokens <= 12 for index in range(40))
