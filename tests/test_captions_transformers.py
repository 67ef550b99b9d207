"""The engine that runs a vision-language model in this process, on real models of two thin layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny
from tests.asking import table_of
from tests.tiny_vlm import IMAGE, write_tiny_blip, write_tiny_git, write_tiny_qwen, write_tiny_vlm

from tokenmill.captions.captioner import Answer, Captioner, Request, build_captioner
from tokenmill.captions.room import Room
from tokenmill.captions.vision_model import VisionModel
from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.scenes import motion, render, render_motion, scene
from tokenmill.errors import RecipeError, RunError
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe

WRITERS = {"llava": write_tiny_vlm, "qwen": write_tiny_qwen, "blip": write_tiny_blip, "git": write_tiny_git}
CHATS = ("llava", "qwen")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name) for name, write in WRITERS.items()}


def captioner(folder: Path, **settings: Any) -> Any:
    return build_captioner("transformers", {"model": str(folder), "max_new_tokens": 12, "device": "cpu", **settings})


def question(number: int, prompt: str = "", **changes: Any) -> Request:
    """Return a question about a drawn scene, 64 or 48 pixels wide; prompts of three lengths unless one is given."""
    prompt = prompt or ("What is in this picture?", "a picture of", "Describe it in two words.")[number % 3]
    frames = render(scene(number), 64 if number % 2 else 48)[None]
    return Request(**{"index": number, "sample": {}, "prompt": prompt, "seed": number, "frames": frames, **changes})


def asked(engine: Captioner, *requests: Request) -> list[Answer]:
    """Return the answers in the order of the questions, each of which must come once."""
    found = [answer for some in engine.answers(requests) for answer in some]
    assert sorted(answer.index for answer in found) == sorted(request.index for request in requests)
    return sorted(found, key=lambda answer: answer.index)


def said(answer: Answer) -> tuple[Any, ...]:
    return answer.texts, answer.finish_reason, answer.usage, str(answer.error)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", WRITERS)
def test_answer_of_a_question_alone_is_the_one_it_gets_in_a_batch(folders, name, temperature):
    engine = captioner(folders[name], batch_size=4, temperature=temperature)
    questions = [question(number) for number in range(6)]
    together = asked(engine, *questions)
    assert [said(answer) for answer in together] == [said(asked(engine, one)[0]) for one in questions]
    assert len({answer.texts for answer in together}) > 2
    assert {answer.error for answer in together} == {None}


@pytest.mark.parametrize("name", CHATS)
def test_answer_depends_on_picture_prompt_and_system(folders, name):
    engine = captioner(folders[name])
    first, *others = asked(
        engine, question(1, "What?"), question(2, "What?", frames=render(scene(2), 64)[None]),
        question(3, "Where?", frames=question(1).frames),
        question(4, "What?", frames=question(1).frames, system="Short!"),
    )  # fmt: skip
    assert first.texts not in [answer.texts for answer in others]
    assert len({answer.texts for answer in others}) == 3


def test_sampled_answer_follows_its_seed_and_the_likeliest_does_not(folders):
    warm, cold = captioner(folders["llava"], temperature=1.0), captioner(folders["llava"])
    same = [question(1, index=index, seed=seed) for index, seed in enumerate((3, 3, 4, -1, 2**80))]
    one, again, *others = asked(warm, *same)
    assert one.texts == again.texts
    assert one.texts not in [answer.texts for answer in others]
    assert len({answer.texts for answer in asked(cold, *same)}) == 1


def test_sampled_answer_from_a_tiny_top_p_is_the_likeliest(folders):
    greedy, narrow = captioner(folders["llava"]), captioner(folders["llava"], temperature=1.0, top_p=1e-6)
    questions = [question(number) for number in range(4)]
    assert [said(one) for one in asked(narrow, *questions)] == [said(one) for one in asked(greedy, *questions)]


def test_choice_by_seed_draws_tokens_as_often_as_they_are_likely():
    from tokenmill.captions.seeded_choice import SeededChoice

    logits, number = torch.tensor([0.0, 2.0, 1.0, -torch.inf]), 20_000
    choice = SeededChoice(range(number), steps=1, temperature=2.0, top_p=1.0)
    scores = choice(torch.zeros((number, 5), dtype=torch.int64), logits.repeat(number, 1))
    shares = scores.argmax(dim=-1).bincount(minlength=4) / number
    assert torch.allclose(shares, torch.softmax(logits / 2.0, dim=-1), atol=0.015)
    assert choice.prompt_length == 5


def test_choice_by_seed_within_top_p_never_takes_the_unlikely_rest():
    from tokenmill.captions.seeded_choice import SeededChoice

    logits = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))
    choice = SeededChoice(range(500), steps=1, temperature=1.0, top_p=0.6)
    chosen = choice(torch.zeros((500, 1), dtype=torch.int64), logits.repeat(500, 1)).argmax(dim=-1)
    assert set(chosen.tolist()) == {1, 2}


def test_answer_counts_tokens_and_says_whether_it_was_cut_off(folders):
    (whole,) = asked(captioner(folders["llava"], max_new_tokens=40), question(1, "What?"))
    (cut,) = asked(captioner(folders["llava"], max_new_tokens=2), question(1, "What?"))
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert 2 < whole.usage.output_tokens < 40
    assert cut.usage.output_tokens == 2
    assert whole.usage.requests == 1
    assert whole.usage.input_tokens == 17 + 4 + len("What?")  # patches, markers, letters
    assert whole.model == "llava"
    assert whole.seconds > 0


@pytest.mark.parametrize("name", CHATS)
def test_question_without_a_picture_is_answered_beside_those_with_one(folders, name):
    engine = captioner(folders[name])
    questions = [question(1), question(2, frames=None), question(3), question(4, frames=None)]
    answers = asked(engine, *questions)
    assert [said(answer) for answer in answers] == [said(asked(engine, one)[0]) for one in questions]
    assert answers[1].usage.input_tokens < answers[0].usage.input_tokens


def test_clip_is_shown_as_pictures_or_as_a_video(folders):
    clips = [
        Request(index=n, sample={}, prompt="What moves?", frames=render_motion(motion(n), 4, 48), seconds=(1, 2, 3, 4))
        for n in range(2)
    ]
    pictures, video = captioner(folders["qwen"]), captioner(folders["qwen"], clips="video")
    several, one = asked(pictures, *clips), asked(video, *clips, question(2))
    assert [answer.error for answer in [*several, *one]] == [None] * 5
    assert several[0].usage.input_tokens - one[0].usage.input_tokens == 2 * 9 + 3  # half the patches, one marker of 4
    assert several[0].texts != several[1].texts
    assert said(one[2]) == said(asked(pictures, question(2))[0])


def test_clip_for_a_model_that_cannot_take_it_says_what_to_change(folders):
    clip = Request(index=0, sample={}, prompt="What?", frames=render_motion(motion(1), 4, 48))
    with pytest.raises(RunError, match="frames: 1"):
        asked(captioner(folders["blip"]), clip)
    with pytest.raises(RunError, match="clips: images"):
        asked(captioner(folders["llava"], clips="video"), clip)


def test_prompt_that_holds_a_control_token_is_words_to_the_model(folders):
    engine = captioner(folders["llava"])
    plain, odd = asked(engine, question(1, "What is < |image_pad|>?"), question(2, f"What is {IMAGE}?"))
    assert plain.error is None and odd.error is None
    assert plain.usage.input_tokens == odd.usage.input_tokens


@pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", ""])
def test_system_message_of_a_template_without_one_stands_before_the_prompt(folders, tmp_path, template):
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    path = folder / "chat_template.jinja"
    without = f"{{% if message.role == 'system' %}}{template}{{% else %}}<|{{{{ message.role"
    words = path.read_text().replace("<|{{ message.role", without).replace("<|end|>{%", "<|end|>{% endif %}{%")
    path.write_text(words)
    frames = question(1).frames
    separate, joined = asked(
        captioner(folder),
        question(1, "What?", system="Be brief."),
        question(2, "Be brief.\n\nWhat?", frames=frames),
    )
    assert separate.error is None
    assert separate.texts == joined.texts


def test_picture_that_the_processor_refuses_fails_alone(folders):
    engine = captioner(folders["qwen"], batch_size=4)
    stripe = np.zeros((1, 2, 500, 3), np.uint8)
    questions = [question(number, frames=stripe) if number == 2 else question(number) for number in range(6)]
    answers = asked(engine, *questions)
    assert [answer.index for answer in answers if answer.error] == [2]
    assert answers[2].error.reason == "model_failed"
    assert "aspect ratio" in answers[2].error.message
    assert said(answers[3]) == said(asked(engine, question(3))[0])


@pytest.mark.parametrize("name", ["git", "llava"])
def test_prompt_that_is_longer_than_the_model_reads_fails_alone(folders, name):
    long = "x " * (40 if name == "git" else 1100)
    answers = asked(captioner(folders[name]), question(0), question(1, long), question(2))
    assert [answer.error and answer.error.reason for answer in answers] == [None, "prompt_too_long", None]


def test_device_without_memory_for_a_batch_gets_halves_of_it(folders):
    engine = captioner(folders["llava"], batch_size=8)
    expected = asked(engine, *map(question, range(16)))
    sizes: list[int] = []

    def limited(module: Any, arguments: Any, keywords: Any) -> None:
        sizes.append(len(keywords["inputs_embeds"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    engine._loaded.model.model.language_model.register_forward_pre_hook(limited, with_kwargs=True)
    assert [said(answer) for answer in asked(engine, *map(question, range(16)))] == [said(one) for one in expected]
    assert sizes.count(8) == 1  # remembered for the second batch
    assert max(sizes[sizes.index(2) :]) == 2


def test_device_without_memory_for_one_question_fails_it_for_now(folders):
    engine = captioner(folders["llava"])

    def none(module: Any, arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    engine._loaded.model.register_forward_pre_hook(none)
    answers = asked(engine, *map(question, range(2)))
    assert [(answer.error.reason, answer.error.transient) for answer in answers] == [("out_of_memory", True)] * 2


def test_room_after_a_shortage_grows_again():
    room = Room(patience=2)
    room.was_short(8)
    room.was_short(4)
    assert room.rows == 2
    for rows in (2, 1, 2):
        room.was_enough(rows)
    assert room.rows == 4


@pytest.mark.parametrize(
    ("error", "ends_with"),
    [
        (MemoryError("no"), MemoryError),
        (ImportError("no"), ImportError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
        (RuntimeError("CUDA error: device-side assert triggered"), RunError),
    ],
)
def test_failure_that_is_no_sample_s_own_ends_the_run(folders, error, ends_with):
    engine = captioner(folders["llava"])

    def fails(*_: Any) -> None:
        raise error

    engine._loaded.model.register_forward_pre_hook(fails)
    with pytest.raises(ends_with):
        asked(engine, question(1))


def test_error_of_the_requests_comes_after_the_answers_before_it(folders):
    def broken() -> Iterator[Request]:
        yield from map(question, range(4))
        raise RunError("the store is gone")

    found: list[int] = []
    with pytest.raises(RunError, match="the store is gone"):
        for some in captioner(folders["llava"], batch_size=2).answers(broken()):
            found += [answer.index for answer in some]
    assert found == [0, 1, 2, 3]


def test_requests_are_pulled_two_batches_ahead_at_most(folders):
    pulled: list[int] = []

    def counted() -> Iterator[Request]:
        for number in range(20):
            pulled.append(number)
            yield question(number)

    answers = captioner(folders["llava"], batch_size=3).answers(counted())
    assert len(next(answers)) == 3
    assert len(pulled) <= 6 + 3
    answers.close()
    number = len(pulled)
    assert number < 20


def test_model_without_a_chat_template_need_not_be_asked_anything(folders):
    assert {name for name, folder in folders.items() if captioner(folder).needs_prompt} == set(CHATS)
    (answer,) = asked(captioner(folders["blip"]), Request(index=0, sample={}, frames=question(1).frames))
    assert answer.error is None and answer.texts[0]


def test_engine_without_questions_loads_nothing(tmp_path):
    assert asked(captioner(tmp_path / "nowhere")) == []


def test_engine_after_it_was_closed_loads_again(folders):
    engine = captioner(folders["llava"])
    before = asked(engine, question(1))
    engine.close()
    engine.close()
    assert "_loaded" not in vars(engine)
    assert said(asked(engine, question(1))[0]) == said(before[0])


def test_fingerprint_covers_content_and_settings_but_not_where_or_how_fast(folders, tmp_path):
    model = folders["llava"]
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    (moved / "README.md").write_text("what it is")
    base = captioner(model).fingerprint
    assert {captioner(moved).fingerprint, captioner(model, batch_size=3, device="auto", top_p=0.5).fingerprint} == {
        base
    }
    changes = [
        {"max_new_tokens": 13}, {"temperature": 0.5}, {"temperature": 0.5, "top_p": 0.5}, {"dtype": "bfloat16"},
        {"max_side_px": None}, {"clips": "video"},
    ]  # fmt: skip
    others = {captioner(model, **change).fingerprint for change in changes}
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer.json", "generation_config.json"):
        changed = shutil.copytree(model, tmp_path / name)
        path = changed / name
        path.write_text(path.read_text() + " ")
        others.add(captioner(changed).fingerprint)
    others.add(captioner(folders["qwen"]).fingerprint)
    assert len({base, *others}) == len(changes) + 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "lacks model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json that cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no model_type"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"model_type": "own", "auto_map": {"AutoConfig": "x.Y"}}'
            ),
            "code of its own .*never run",
        ),
    ],
)
def test_fingerprint_of_what_is_no_model_says_why(folders, tmp_path, change, says):
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    change(folder)
    with pytest.raises(RecipeError, match=f"captioner 'transformers': model .*{says}"):
        _ = captioner(folder).fingerprint


def _without(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if name not in key},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _as_language_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: _without(folder, "layers.1.mlp.down_proj"), "weights are missing.*down_proj"),
        (_as_language_model, "cannot be loaded as an image-text-to-text model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\x00"), "cannot be loaded"),
        (lambda folder: (folder / "processor_config.json").unlink(), "cannot be loaded"),
    ],
)
def test_model_that_cannot_be_loaded_ends_the_run(folders, tmp_path, change, says):
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    change(folder)
    with pytest.raises(RunError, match=says):
        asked(captioner(folder), question(1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "model"),
        ({"model": "x", "trust_remote_code": True}, "unknown setting 'trust_remote_code'"),
        ({"model": "x", "device": "tpu"}, "device"),
        ({"model": "x", "temperature": -1}, "temperature"),
        ({"model": "x", "top_p": 0}, "top_p"),
        ({"model": "x", "clips": "gif"}, "'images' or 'video'"),
    ],
)
def test_recipe_with_wrong_settings_is_refused_before_anything_is_loaded(settings, says):
    with pytest.raises(RecipeError, match=says):
        build_captioner("transformers", settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", WRITERS)
def test_answer_on_a_gpu_alone_is_the_one_it_gets_in_a_batch(folders, name):
    engine = captioner(folders[name], device="cuda", temperature=0.8)
    questions = [question(number) for number in range(6)]
    assert [said(one) for one in asked(engine, *questions)] == [said(asked(engine, one)[0]) for one in questions]


def test_stage_with_a_model_in_its_process_captions_pictures_and_long_clips_and_goes_on_where_it_ended(
    folders, tmp_path, monkeypatch
):
    asked_of: list[int] = []
    breaks_at = 5

    def noting(model: VisionModel, inputs: Any, seeds: Any, sampling: Any) -> Any:
        if len(asked_of) >= breaks_at:
            raise RunError("the device is gone")
        asked_of.extend(seeds)
        return write(model, inputs, seeds, sampling)

    write = VisionModel.write
    monkeypatch.setattr(VisionModel, "write", noting)
    data = tmp_path / "data"
    tiny.write_pictures(data)
    (data / "clips").mkdir()
    encode_mp4(data / "clips" / "long.mp4", render_motion(motion(7), 44, 32), 2)  # of 22 s
    told = {"engine": "transformers", "max_new_tokens": 40, "batch_size": 2, "prompt": "What is it?"}
    changes = {
        "caption.image": {"columns": {"seen": told | {"model": str(folders["llava"])}}},
        "caption.video": {"columns": {"moving": told | {"model": str(folders["qwen"]), "clips": "video"}}},
        "filter.video.scenes": {"max_seconds": 60},
    }
    recipe = check_recipe(tiny.recipe(data, str(tmp_path / "root"), changes, sources=["scenes", "photos", "clips"]), "")
    with pytest.raises(RunError, match="the device is gone"):
        _ = Chain(recipe=recipe, options=ChainOptions(quiet=True)).choose
    before, breaks_at = len(asked_of), 10**6
    chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
    _ = chain.choose
    answers = {column: table_of(snapshot) for column, snapshot in chain.caption.items()}
    pictures = [*answers["scenes", "seen"]["key"], *answers["photos", "seen"]["key"]]
    assert 0 < before < len(pictures) == len(set(pictures)) == 13
    clip = answers["clips", "moving"]
    assert clip["pieces"].to_list() == [2, 2] and clip["texts"].null_count() == 0
    assert len(asked_of) == 13 + 2
