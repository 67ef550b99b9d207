"""lmms-eval itself, run as users run it, on small files in the formats of the twelve sets and on tasks of our own.

The model is taught the answers, three of them wrong, word for word as the harness puts its questions. So every score is
known beforehand, and a prompt that differs in a letter, a picture out of its place or an answer cut wrongly shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.lmms_sets import Document, SmallSet, picture, shown, small_sets, write_set
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.generate.clip_frames import clip_frames
from tokenmill.generate.conversing import Turn, conversation_prompts
from tokenmill.generate.seeing import Area, Seen, look_at
from tokenmill.generate.understanding_sets import SETS, read_scores
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(2048)
AREAS = {"image": [1024, 1024, 3.0], "video": [256, 256, 3.0]}
TAUGHT_WRONG = {("pope", 1): "yes", ("gqa", 1): "no", ("mmmu_val", 1): "4"}
TAUGHT_OTHERWISE = {("chartqa", 1): "7.3", ("ai2d", 0): "C. stem", ("mmvet", 0): "one\n\ntwo"}
EXPECTED = {"POPE": 200 / 3, "GQA": 50.0, "MMMU": 50.0, "OCRBench": 2.0}
CHOICES = ("red", "blue", "green", "grey")

RUNNER = """
import json, sys
from lmms_eval.__main__ import cli_evaluate
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lmms-eval", *arguments]
    cli_evaluate()
"""
TASKS = {
    "rounds.yaml": """
task: rounds
dataset_path: own/rounds
test_split: test
output_type: generate_until_multi_round
doc_to_visual: !function own_tasks.picture_of
doc_to_text: !function own_tasks.round_text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 12}
process_results: !function own_tasks.rounds_right
metric_list: [{metric: both_rounds, aggregation: mean, higher_is_better: true}]
""",
    "clips.yaml": """
task: clips
dataset_path: own/clips
test_split: test
output_type: generate_until
doc_to_visual: !function own_tasks.clip_of
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "own_tasks.py": """
def picture_of(doc):
    return [doc["image"].convert("RGB")]

def clip_of(doc):
    return [doc["clip"]]

def round_text(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, previous_round_info=None):
    if not round_idx:
        return "Colour?"
    if round_idx == 1:
        return picture_of(doc), "And " + previous_output[-1] + " what?", False, previous_output, None
    return None, None, True, previous_output, None

def rounds_right(doc, results):
    said = results[0]
    return {"both_rounds": float(list(said) == ["red", "ball"])}
""",
}


class Judge(BaseHTTPRequestHandler):
    """A judge over OpenAI's protocol: 1.0 where the ground truth is in the prediction."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        truth, prediction = request["messages"][0]["content"].split(" | ", 1)[1].rsplit(" |", 1)[0].split(" | ")[-2:]
        verdict = "1.0" if truth.strip() in prediction else "0.0"
        answer = {"choices": [{"message": {"content": verdict}}], "model": "judge", "usage": None}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    server.shutdown()
    server.server_close()


def user(*parts: str | int | Seen) -> Turn:
    return Turn(
        speaker="user", parts=tuple(Seen(frames=picture(one)[None]) if isinstance(one, int) else one for one in parts)
    )


def taught(clip: Path, vision: Any) -> list[tuple[Sequence[Turn], str]]:
    """Give every conversation that the harness will have, and the answer it shall get."""
    told: dict[tuple[str, int], str] = TAUGHT_WRONG | TAUGHT_OTHERWISE
    pairs: list[tuple[Sequence[Turn], str]] = [
        ([user(*document.asked)], told.get((one.task, at), document.right))
        for one in small_sets()
        for at, document in enumerate(one.documents)
    ]
    pairs += [([user(0, "Colour?")], "red"), ([user(0, "And red what?")], "ball")]
    frames, seconds = clip_frames(clip, 8)
    seen = look_at(frames, seconds, Area(min_area=256, max_area=256, max_aspect=3.0), vision)
    pairs.append(([user(seen, "Where to?")], "right"))
    return pairs + [([user(at, "Which colour? Answer :")], answer) for at, answer in ((0, "blue"), (1, "grey"))]


def taught_model(pairs: Sequence[tuple[Sequence[Turn], str]], vision: Any) -> Emu3ForCausalLM:
    """Teach a model of 64 numbers the answers by heart (some seconds)."""
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=V.size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=400, attention_dropout=0.0, pad_token_id=V.pad,
        bos_token_id=V.bos, eos_token_id=V.eos,
    )  # fmt: skip
    model = Emu3ForCausalLM(config)
    prompts = conversation_prompts([turns for turns, _ in pairs], V, vision)
    answers = [[*V.text.encode(said), V.eos] for _, said in pairs]
    documents = [[*prompt.tolist(), *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, documents))
    ids = torch.tensor([one + [V.pad] * (longest - len(one)) for one in documents])
    labels = torch.full_like(ids, -100)
    for row, (document, answer) in enumerate(zip(documents, answers, strict=True)):
        labels[row, len(document) - len(answer) : len(document)] = torch.tensor(answer)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    for _ in range(120):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][labels[:, 1:] != -100]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][labels[:, 1:] != -100])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05
    return model.eval()


def own_sets(clip: Path) -> list[SmallSet]:
    answered = Document(row={"image": shown(0), "answer": "ball"}, asked=(), right="")
    of_clip = Document(row={"clip": str(clip), "question": "Where to?", "answer": "right"}, asked=(), right="")
    return [
        SmallSet(task="rounds", repository="own/rounds", split="test", documents=[answered]),
        SmallSet(task="clips", repository="own/clips", split="test", documents=[of_clip]),
    ]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, judge: str) -> Path:
    """Run the harness twice in one process: all as chat, then by probability and in rounds as a simple model."""
    if find_spec("lmms_eval") is None:
        pytest.skip("no lmms-eval: make setup installs it (requirements-nodeps.lock)")
    folder = tmp_path_factory.mktemp("lmms")
    clip = folder / "clip.mp4"
    encode_mp4(clip, np.stack([np.roll(picture(3), 2 * step, axis=1) for step in range(12)]), 4)
    vision = load_vision_tokenizer("scenes")
    model = taught_model(taught(clip, vision), vision)
    model.save_pretrained(folder / "export")
    description = {"vocabulary": V.spec, "vision": {"name": "scenes"}, "areas": AREAS}
    (folder / "export/tokenmill.json").write_text(json.dumps(description))
    for one in [*small_sets(), *own_sets(clip)]:
        write_set(folder / "sets", one)
    for name, text in TASKS.items():
        (folder / "tasks").mkdir(exist_ok=True)
        (folder / "tasks" / name).write_text(text)
    common = [
        "--model", "tokenmill", "--model_args", f"pretrained={folder / 'export'},max_new_tokens=20", "--device", "cpu",
        "--batch_size", "3", "--include_path", str(folder / "tasks"), "--log_samples",
    ]  # fmt: skip
    twelve = [one.tasks[0] for one in SETS]
    runs = [
        [*common, "--tasks", ",".join([*twelve, "rounds", "clips"]), "--output_path", str(folder / "chat")],
        [*common, "--tasks", "seedbench_ppl,pope,rounds", "--output_path", str(folder / "simple"), "--force_simple"],
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "HF_DATASETS_CACHE": str(folder / "home/sets"),
               "OPENAI_API_KEY": "none", "OPENAI_API_URL": judge, "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(runs)], cwd=folder / "sets", env=os.environ | offline,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def results(folder: Path) -> dict[str, Any]:
    [file] = folder.glob("*export/*_results.json")
    return dict(json.loads(file.read_text())["results"])


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    [file] = folder.glob(f"*export/*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def test_the_harness_scores_all_twelve_sets_as_the_model_was_taught(outcome):
    found = {score.set.name: score.value for score in read_scores([outcome / "chat"])}
    assert found == pytest.approx({one.name: EXPECTED.get(one.name, 100.0) for one in SETS})


def test_answers_are_those_that_were_taught_and_a_blank_line_ends_none(outcome):
    told: dict[tuple[str, int], str] = (
        TAUGHT_WRONG | TAUGHT_OTHERWISE | {("ai2d", 0): "C"}
    )  # its filter takes the letter
    for one in small_sets():
        expected = [told.get((one.task, at), document.right) for at, document in enumerate(one.documents)]
        assert [row["filtered_resps"] for row in samples(outcome / "chat", one.task)] == expected, one.task


def test_rounds_go_on_with_what_was_said_in_both_kinds(outcome):
    assert results(outcome / "chat")["rounds"]["both_rounds,none"] == 1.0
    assert results(outcome / "simple")["rounds"]["both_rounds,none"] == 1.0


def test_a_clip_of_a_path_is_seen(outcome):
    assert results(outcome / "chat")["clips"]["exact_match,none"] == 1.0


def test_multiple_choice_by_probability_takes_the_likeliest(outcome):
    assert results(outcome / "simple")["seedbench_ppl"]["acc,none"] == 1.0
    for row, right in zip(samples(outcome / "simple", "seedbench_ppl"), ("blue", "grey"), strict=True):
        losses = dict(zip(CHOICES, (float(pair[0]) for pair in row["filtered_resps"]), strict=True))
        assert losses[right] < 0.1 < min(loss for choice, loss in losses.items() if choice != right)
        assert [pair[1] == "True" for pair in row["filtered_resps"]] == [choice == right for choice in CHOICES]


def test_a_simple_model_gets_the_same_question_of_one_picture(outcome):
    assert results(outcome / "simple")["pope"] == results(outcome / "chat")["pope"]
