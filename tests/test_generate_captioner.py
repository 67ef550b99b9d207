"""The loop closes: a model exported by the trainer captions pictures and clips by the name of an engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import taught_model
from tests.films import shots
from tests.taught_model import CAPTIONS, QUESTIONS, V, clip, export_taught, pictures

from tokenmill.captions.captioner import Answer, Request, build_captioner
from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.generate.model import load_model
from tokenmill.generate.prompts import question_prompt, seeing_prompt
from tokenmill.generate.sample import generate_text
from tokenmill.generate.seeing import Area, look_at
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import byte_vocabulary

TICKS = tuple(0.5 + step for step in range(12))


@pytest.fixture(scope="module")
def vision() -> Any:
    return load_vision_tokenizer("scenes")


@pytest.fixture(scope="module")
def shown() -> list[tuple[Any, ...]]:
    return taught_model.shown()


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return export_taught(tmp_path_factory.mktemp("root"))


def engine(export: Path | str, **settings: Any) -> Any:
    return build_captioner("tokenmill", {"model": str(export), "max_new": 24, **settings})


def requests(prompt: str = "", **more: Any) -> list[Request]:
    """Ask about the four pictures and the clip."""
    stills = [image[None] for image in pictures()]
    asked = [(frames, ()) for frames in stills] + [(clip(), TICKS)]
    return [
        Request(index=number, sample={"key": str(number)}, prompt=prompt, frames=frames, seconds=seconds, **more)
        for number, (frames, seconds) in enumerate(asked)
    ]


def answered(captioner: Any, asked: Sequence[Request]) -> list[Answer]:
    found = sorted((one for some in captioner.answers(iter(asked)) for one in some), key=lambda one: one.index)
    captioner.close()
    return found


def texts(answers: Sequence[Answer]) -> list[str]:
    return [one.texts[0] if one.error is None else one.error.reason for one in answers]


def test_exported_model_says_what_it_learned_of_pictures_and_of_a_clip(export):
    found = answered(engine(export), requests())
    assert texts(found) == [*CAPTIONS, "it moves"]
    assert {one.finish_reason for one in found} == {"stop"}
    assert {one.model.split("@")[0] for one in found} == {"tiny"}
    assert [one.usage.output_tokens for one in found] == [len(text.encode()) for text in (*CAPTIONS, "it moves")]
    assert all(one.usage.requests == 1 and one.seconds > 0 for one in found)


def test_prompt_is_asked_by_the_chat_template(export):
    for question, answer in QUESTIONS.items():
        assert texts(answered(engine(export), requests(question))) == [answer] * 5


def test_answers_and_tokens_are_those_of_the_model_asked_by_hand(export, shown):
    loaded = load_model(export)
    prompts = [seeing_prompt(V, *one) for one in shown]
    asked = [*requests(seed=3), *requests("Why?", system="Be brief.", seed=7)]
    prompts += [question_prompt(V, "Why?", *one, system="Be brief.") for one in shown]
    expected = generate_text(
        loaded.model, V, prompts, max_new=24, min_new=1, temperature=2.0, top_k=60, seed=[3] * 5 + [7] * 5, batch_size=1
    )
    found = answered(engine(export, temperature=2.0, top_k=60, batch_size=4), asked[:5])
    found += answered(engine(export, temperature=2.0, top_k=60), asked[5:])
    assert texts(found) == [V.text.decode(ids.tolist()) for ids in expected]
    assert [one.usage.input_tokens for one in found] == [len(prompt) for prompt in prompts]
    assert [one.usage.output_tokens for one in found] == [len(ids) for ids in expected]
    assert [one.finish_reason for one in found] == ["length" if len(ids) == 24 else "stop" for ids in expected]


def test_answer_is_the_same_in_any_company(export):
    asked = [one for seed in range(3) for one in requests(seed=seed)]
    asked += requests("What is it?", seed=9)
    mixed = [Request(**{**_fields(one), "index": number}) for number, one in enumerate(asked)]
    alone = texts(answered(engine(export, temperature=3.0, batch_size=1), mixed))
    assert texts(answered(engine(export, temperature=3.0, batch_size=7), mixed)) == alone
    assert texts(answered(engine(export, temperature=3.0, batch_size=20), mixed[::-1])) == alone
    assert len(set(alone)) > 12


def _fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in Request.__slots__}


def test_system_is_what_the_chat_opens_with():
    opened = V.text.decode([index for index in question_prompt(V, "Why?", system="Be brief.") if index < 256])
    assert opened == "Be brief. USER: Why?. ASSISTANT:"
    assert V.text.decode(question_prompt(V, "Why?")[1:].tolist()).startswith("You are a helpful assistant. USER: Why?")


def test_no_more_is_pulled_than_a_batch(export):
    pulled: list[int] = []

    def counted() -> Iterator[Request]:
        for one in requests() * 2:
            pulled.append(one.index)
            yield one

    captioner = engine(export, batch_size=2)
    answers = captioner.answers(counted())
    assert pulled == []
    for batch in range(1, 4):
        assert len(next(answers)) == 2
        assert len(pulled) == 2 * batch
    captioner.close()


def test_what_cannot_be_asked_has_its_reason_and_costs_nobody_else_anything(export):
    good = requests()[0]
    nothing = np.zeros((0, 8, 8, 3), np.uint8)
    odd: list[tuple[Any, tuple[float, ...]]] = [
        (None, ()),
        (nothing, ()),
        (np.zeros((1, 4, 90, 3), np.uint8), ()),
        (np.zeros((1, 32, 320, 3), np.uint8), ()),
        (clip()[:3], TICKS[:3]),
        (clip(), (1.0,) * 12),
        (clip(), ()),
    ]
    bad = [Request(index=number, sample={}, frames=one, seconds=at) for number, (one, at) in enumerate(odd, 1)]
    found = answered(engine(export), [good, *bad])
    assert texts(found) == [
        CAPTIONS[0], "no_picture", "no_picture", "too_small", "aspect_too_large", "clip_too_short", "absurd_times",
        "absurd_times",
    ]  # fmt: skip
    assert all(isinstance(one.error, SampleError) and not one.error.transient for one in found[1:])
    assert found[1].usage.requests == 0


def test_prompt_beyond_the_context_is_too_long_and_the_others_are_answered(export):
    many = requests("What is it?" * 20)[0]
    found = answered(engine(export), [many, Request(**{**_fields(requests()[1]), "index": 1})])
    assert texts(found) == ["too_long", CAPTIONS[1]]
    assert "256 in the model's context" in found[0].error.message
    assert texts(answered(engine(export, max_new=250), requests())) == ["too_long"] * 5


def test_answer_that_is_cut_off_says_so(export):
    (found,) = answered(engine(export, max_new=3), requests()[3:4])
    assert (found.texts, found.finish_reason, found.usage.output_tokens) == (("som",), "length", 3)


@pytest.mark.parametrize(("count", "taken"), [(4, 4), (7, 4), (12, 12), (14, 12)])
def test_clip_of_any_length_fills_whole_windows_evenly(vision, count, taken):
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    frames[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    seconds = [5 + 8 / count * (number + 0.5) for number in range(count)]  # of a stretch of 8 s
    seen = look_at(frames, seconds, Area(min_area=256, max_area=256, max_aspect=2), vision)
    numbers = seen.frames[:, 0, 0, 0].astype(int)
    assert len(numbers) == taken
    assert np.ptp(np.diff(numbers)) <= 1
    assert seen.fps == round(taken / 8, 3)
    assert seen.seconds == pytest.approx(8, abs=0.01)
    told = look_at(frames, seconds, Area(min_area=256, max_area=256, max_aspect=2), vision, fps=24)
    assert (told.fps, told.seconds) == (24, round(taken / 24, 3))


def test_sizes_are_the_trained_ones_unless_the_recipe_says_others(export, tmp_path):
    assert engine(export)._area("image") == (1024, 1536, 3.0)
    assert engine(export, max_area=4096)._area("video") == (256, 4096, 3.0)
    assert engine(export, max_area=512)._area("image") == (512, 512, 3.0)
    assert engine(export, min_area=2048, max_aspect=1.5)._area("image") == (2048, 2048, 1.5)
    older = described(export, tmp_path, areas=None)
    assert engine(older)._area("image") == (512 * 512, 512 * 512, 5.0)


def described(export: Path, target: Path, **changes: Any) -> Path:
    """Copy an export with another description."""
    folder = Path(shutil.copytree(export, target / "export"))
    about = json.loads((folder / "tokenmill.json").read_text()) | changes
    (folder / "tokenmill.json").write_text(json.dumps({key: one for key, one in about.items() if one is not None}))
    return folder


def test_fingerprint_is_of_what_decides_about_answers(export, tmp_path):
    own = engine(export).fingerprint
    same = [{"batch_size": 3}, {"storage": {}}, {"top_k": 9}]
    assert {engine(export, **one).fingerprint for one in same} == {own}
    others = [
        {"max_new": 25}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 9}, {"max_area": 2048}, {"fps": 8},
        {"dtype": "bfloat16"}, {"max_side_px": 512},
    ]  # fmt: skip
    assert len({own, *(engine(export, **one).fingerprint for one in others)}) == 8
    moved = described(export, tmp_path)
    assert engine(moved).fingerprint == own
    weights = json.loads((moved / "tokenmill.json").read_text())["files"] | {"model.safetensors": "0" * 64}
    (tmp_path / "other").mkdir()
    assert engine(described(export, tmp_path / "other", files=weights)).fingerprint != own


def test_fingerprint_is_told_without_torch(export):
    program = (
        "import sys; from tokenmill.captions.captioner import build_captioner; "
        f"one = build_captioner('tokenmill', {{'model': {str(export)!r}, 'max_new': 24}}); "
        "print(one.fingerprint, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [engine(export).fingerprint, "False", "False"]


def test_model_of_another_store_is_fetched_and_says_the_same(export):
    store = open_store("memory://models")
    for path in export.iterdir():
        store.put(f"checkpoints/tiny/export/{path.name}", path.read_bytes())
    remote = engine("memory://models/checkpoints/tiny/export")
    assert remote.fingerprint == engine(export).fingerprint
    assert texts(answered(remote, requests()[:2])) == list(CAPTIONS[:2])


def test_building_touches_nothing_and_a_folder_that_is_no_export_is_refused_by_name(tmp_path):
    captioner = engine(tmp_path / "nowhere")
    assert (captioner.takes, captioner.asks, captioner.max_side_px) == ("pixels", True, None)
    with pytest.raises(RecipeError, match="no exported model; give checkpoints/<run>/export"):
        _ = captioner.fingerprint
    with pytest.raises(RecipeError, match="nowhere"):
        list(captioner.answers(iter(())))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vision": None}, "without pictures"),
        ({"vocabulary": None}, "names no vocabulary"),
        ({"vocabulary": byte_vocabulary(4096).spec}, "the model has 2314 ids"),
        ({"vocabulary_fingerprint": "0" * 64}, "trained with vocabulary"),
        ({"vision": {"name": "/no/such/tokenizer"}}, "/no/such/tokenizer"),
    ],
)
def test_export_that_does_not_fit_is_refused(export, tmp_path, changes, told):
    with pytest.raises(RecipeError, match=told):
        answered(engine(described(export, tmp_path, **changes)), requests())


def test_export_with_damaged_weights_is_refused(export, tmp_path):
    folder = described(export, tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x10" + bytes(50))
    with pytest.raises(RecipeError, match="weights cannot be opened"):
        answered(engine(folder), requests())


def test_device_that_is_not_there_ends_the_run(export):
    with pytest.raises(RunError, match="device cuda:99"):
        answered(engine(export, device="cuda:99"), requests())


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"max_new": 0}, {"dtype": "int8"}, {"beams": 4}, {"fps": 0}])
def test_setting_that_makes_no_sense_is_refused_by_name(export, wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        engine(export, **wrong)


def test_recipe_names_the_engine_and_gets_captions_of_pictures_and_of_stretches_of_a_clip(export, tmp_path):
    photos, films = tmp_path / "photos", tmp_path / "films"
    photos.mkdir()
    films.mkdir()
    for number, image in enumerate(pictures()):
        Image.fromarray(image).save(photos / f"{number}.png")
    (photos / "none.png").write_bytes(b"no picture")
    shots(films / "long.mp4", [25], fps=4)
    asked = {"engine": "tokenmill", "model": str(export), "max_new": 24, "checks": {"loops": False, "cut_off": False}}
    value = {
        "root": str(tmp_path / "root"),
        "execution": {"executor": "inline", "decode_threads": 1},
        "sources": {
            "photos": {"kind": "images", "url": str(photos)},
            "films": {"kind": "videos", "url": str(films)},
        },
        "filter": {"video": {"scenes": {"max_seconds": 60}}},
        "caption": {
            "image": {"columns": {"seen": asked, "what": asked | {"prompt": "What is it?"}}},
            "video": asked | {"long_seconds": 10},
        },
    }
    chain = Chain(recipe=check_recipe(value, "test"), options=ChainOptions(quiet=True))
    seen, what, film = (
        chain.caption[place] for place in (("photos", "seen"), ("photos", "what"), ("films", "caption"))
    )
    (answers,) = (seen.folder.read_rows(commit) for commit in seen.commits)
    assert answers.sort("key")["texts"].to_list() == [*([text] for text in CAPTIONS), None]
    assert answers["fail_reason"].drop_nulls().to_list() == ["not_an_image"]
    assert set(answers["model"]) == {f"tiny@{engine(export)._export.fingerprint[:8]}", ""}
    assert what.totals["output_tokens"] == 4 * len("a thing")
    (stretches,) = (film.folder.read_rows(commit) for commit in film.commits)
    assert stretches["piece"].to_list() == [0, 1, 2]
    assert stretches["input_tokens"].max() - stretches["input_tokens"].min() <= 2  # three windows each, of like rates
    assert stretches["fail_reason"].null_count() == 3
