"""Conversations with pictures and clips, answered and weighed: what stands between a harness and a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.lmms_sets import picture
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.clip_frames import clip_frames
from tokenmill.generate.conversing import Turn, conversation_prompt, conversation_prompts
from tokenmill.generate.likelihood import answer_likelihoods
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.prompts import question_prompt
from tokenmill.generate.replying import Manner, Posed, Replier, before_any, likelihoods, manner_of, replies
from tokenmill.generate.seeing import Seen
from tokenmill.generate.text import generate_text
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(2048)
CONTEXT = 160


@pytest.fixture(scope="module")
def replier() -> Replier:
    """A model that was never trained."""
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=V.size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=V.pad, bos_token_id=V.bos,
        eos_token_id=V.eos, initializer_range=0.3,
    )  # fmt: skip
    model = ExportedModel(model=Emu3ForCausalLM(config).eval(), vocabulary=V, vision={})
    return Replier(model=model, vision=load_vision_tokenizer("scenes"))


def seen(number: int) -> Seen:
    return Seen(frames=picture(number)[None])


def user(*parts: str | Seen) -> Turn:
    return Turn(speaker="user", parts=parts)


def read(ids: np.ndarray) -> str:
    """Read a prompt: text as it is, a picture as its meta text in brackets."""
    text, shown = "", False
    for one in ids.tolist():
        if one == V.sov:
            text, shown = text + "[", True
        elif one == V.sot:
            shown, text = False, text + "]"
        elif one == V.eos:
            text += "/"
        elif one < V.text.size:
            text += V.text.decode([one])
    assert not shown
    return text


def test_one_question_about_one_picture_is_the_prompt_that_captions_are_asked_with(replier):
    [prompt] = conversation_prompts([[user(seen(0), "What is it?")]], V, replier.vision)
    codes = replier.vision.encode_images(picture(0)[None])
    np.testing.assert_array_equal(prompt, question_prompt(V, "What is it?", codes))


def test_pictures_stand_where_the_words_have_them_and_turns_end(replier):
    turns = [
        Turn(speaker="system", parts=("Be brief.",)),
        user("Of", seen(0), "and", seen(1)),
        Turn(speaker="assistant", parts=("the first",)),
        user("Why?"),
    ]
    [prompt] = conversation_prompts([turns], V, replier.vision)
    assert read(prompt) == "Be brief. USER: Of[4*4]and[4*4]. ASSISTANT:the first/ USER: Why?. ASSISTANT:"
    codes = replier.vision.encode_images(np.stack([picture(0), picture(1)])).reshape(-1)
    held = prompt[(prompt >= V.vision_base) & (prompt < V.vision_base + V.codebook_size)] - V.vision_base
    np.testing.assert_array_equal(held, codes)


def test_codes_of_many_conversations_go_to_their_own(replier):
    conversations = [[user(seen(0), "a")], [user("b")], [user(seen(1), seen(2), "c")]]
    together = conversation_prompts(conversations, V, replier.vision)
    alone = [conversation_prompts([one], V, replier.vision)[0] for one in conversations]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("turns", [[], [user("")], [user("Hm?"), Turn(speaker="assistant", parts=("Ha.",))]])
def test_a_conversation_without_a_question_is_refused(turns):
    with pytest.raises(SampleError, match="what the user says"):
        conversation_prompt(turns, [], V)


def test_a_picture_alone_is_a_question(replier):
    [prompt] = conversation_prompts([[user(seen(0))]], V, replier.vision)
    assert read(prompt).endswith(" USER: [4*4]. ASSISTANT:")


def whole_forward(model: Any, prompt: np.ndarray, answer: list[int]) -> tuple[float, bool]:
    """Compute log p the plain way: the model's own logits over prompt and answer in one pass."""
    ids = torch.tensor([[*prompt.tolist(), *answer]])
    with torch.inference_mode():
        log_p = model(input_ids=ids).logits[0].double().log_softmax(dim=-1)
    before = log_p[len(prompt) - 1 : -1]
    allowed = torch.cat([before[:, : V.text.size], before[:, V.eos, None]], dim=1).argmax(dim=1)
    return before[torch.arange(len(answer)), answer].sum().item(), allowed.tolist() == answer


def test_likelihoods_are_those_of_one_pass_over_prompt_and_answer(replier):
    model = replier.model.model
    prompt = question_prompt(V, "Which?", replier.vision.encode_images(picture(0)[None]))
    greedy = generate_text(model, V, [prompt], max_new=5, min_new=5)[0].tolist()
    answers = [V.text.encode("yes"), V.text.encode("nothing of it"), V.text.encode("B"), greedy, greedy[:2]]
    found = answer_likelihoods(model, V, prompt, [np.array(one, np.int32) for one in answers])
    expected = [whole_forward(model, prompt, one) for one in answers]
    np.testing.assert_allclose([one.logprob for one in found], [one[0] for one in expected], rtol=2e-6)
    assert [one.is_greedy for one in found] == [one[1] for one in expected] == [False, False, False, True, True]
    assert [one.num_ids for one in found] == [3, 13, 1, 5, 2]


def test_an_empty_answer_is_certain_and_one_beyond_the_context_refused(replier):
    model = replier.model.model
    prompt = question_prompt(V, "Which?")
    empty = np.zeros(0, np.int32)
    [alone] = answer_likelihoods(model, V, prompt, [empty])
    beside = answer_likelihoods(model, V, prompt, [empty, np.array([5, 6], np.int32)])[0]
    assert alone.logprob == beside.logprob == 0.0
    with pytest.raises(RecipeError, match="context holds 160"):
        answer_likelihoods(model, V, prompt, [np.zeros(CONTEXT, np.int32)])


def posed(name: str, *parts: Any, manner: Manner | None = None, seed: int = 0) -> Posed:
    return Posed(name=name, turns=lambda: [user(*parts)], manner=manner or Manner(max_new=6), seed=seed)


def test_replies_come_in_order_and_do_not_hang_on_the_batch(replier):
    short, drawn = Manner(max_new=3), Manner(max_new=6, temperature=1.0, top_k=9)
    asked = [posed(str(at), seen(at % 3), "What?", manner=(short, drawn)[at % 2], seed=at) for at in range(5)]
    together = replies(replier, asked, batch_size=4)
    assert together == [replies(replier, [one], batch_size=1)[0] for one in asked]
    assert [one.num_new <= 3 for one in together[::2]] == [True] * 3
    assert (
        len({one.text for one in replies(replier, [posed("x", "What?", manner=drawn, seed=at) for at in range(4)], 4)})
        > 1
    )


def test_one_that_cannot_be_asked_is_named_and_costs_no_other(replier, caplog):
    def broken() -> Any:
        raise SampleError("undecodable", "no picture")

    asked = [
        posed("a/test/0", seen(0), "What?"),
        Posed(name="a/test/1", turns=broken, manner=Manner(max_new=6)),
        posed("a/test/2", "w" * CONTEXT),
        posed("a/test/3", seen(1), "What?"),
    ]
    done: list[int] = []
    found = replies(replier, asked, 4, done.append)
    assert [one.error and one.error.reason for one in found] == [None, "undecodable", "too_long", None]
    assert found[0] == replies(replier, [asked[0]], 1)[0] and found[3].num_prompt > 0
    assert done == [4]
    assert "a/test/1 cannot be asked: undecodable" in caplog.text and "160 in the model's context" in caplog.text


def test_an_answer_gets_the_room_that_its_own_prompt_leaves(replier):
    long = Manner(max_new=1024)
    asked = [posed("a", "What?", manner=long), posed("b", seen(0), "w" * 60, manner=long)]
    together = replies(replier, asked, 2)
    assert [one.num_prompt + one.num_new for one in together] == [CONTEXT, CONTEXT]
    assert together == [replies(replier, [one], 1)[0] for one in asked]


def test_likelihoods_of_a_question_are_those_of_its_prompt(replier):
    [prompt] = conversation_prompts([[user(seen(0), "Which?")]], V, replier.vision)
    found = likelihoods(replier, posed("q", seen(0), "Which?"), ["yes", "no"])
    plain = [whole_forward(replier.model.model, prompt, V.text.encode(one))[0] for one in ("yes", "no")]
    assert not isinstance(found, SampleError)
    np.testing.assert_allclose([one.logprob for one in found], plain, rtol=2e-6)
    assert isinstance(likelihoods(replier, posed("q", "w" * CONTEXT), ["yes"]), SampleError)


def test_settings_of_harnesses_become_a_manner():
    settings = {"max_new_tokens": 16, "temperature": 0.2, "do_sample": False, "top_p": 0.9, "num_beams": 1,
                "until": ["ASSISTANT:", "\n\n"], "image_aspect_ratio": "original"}  # fmt: skip
    assert manner_of(settings, max_new=256) == Manner(max_new=16, until=("ASSISTANT:",))
    assert manner_of({"until": "\n\n"}, max_new=9, blank_line_ends=True) == Manner(max_new=9, until=("\n\n",))
    assert manner_of({"temperature": 0.7, "top_k": 50, "top_p": 0.9}, max_new=9) == Manner(
        max_new=9, temperature=0.7, top_k=50, top_p=0.9
    )


@pytest.mark.parametrize(
    ("settings", "told"), [({"num_beams": 3}, "num_beams 3"), ({"penalty_alpha": 0.6}, "penalty_alpha")]
)
def test_settings_that_would_change_answers_are_refused(settings, told):
    with pytest.raises(RecipeError, match=told):
        manner_of(settings, max_new=9)


def test_an_answer_ends_before_the_first_end():
    assert before_any("one. two; three", (";", ".")) == "one"
    assert before_any("one", (";",)) == "one"


def test_frames_of_a_clip_are_spread_over_it_and_over_a_stretch_of_it(tmp_path):
    path = tmp_path / "clip.mp4"
    frames = np.stack([np.full((32, 48, 3), 10 * at, np.uint8) for at in range(20)])
    encode_mp4(path, frames, 10)
    taken, seconds = clip_frames(path, 4)
    assert seconds == pytest.approx((0.2, 0.7, 1.2, 1.7))
    assert np.abs(taken.mean(axis=(1, 2, 3)) - [20, 70, 120, 170]).max() < 6
    assert clip_frames(path, 2, 1.0, 1.4)[1] == pytest.approx((1.1, 1.3))
    assert len(clip_frames(path, 99)[1]) == 20


def test_a_file_that_is_no_clip_or_a_stretch_without_frames_is_told(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no film")
    with pytest.raises(SampleError, match=r"x\.mp4"):
        clip_frames(tmp_path / "x.mp4", 4)
    encode_mp4(tmp_path / "y.mp4", np.zeros((4, 32, 32, 3), np.uint8), 10)
    with pytest.raises(SampleError, match="no frame between 5 s"):
        clip_frames(tmp_path / "y.mp4", 4, 5.0)
