"""Sampling: the grammar is never left, a sample does not depend on its batch, answers stop, pictures come back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.generate.continuation import Continuation
from tokenmill.generate.decoding import draw, uniforms
from tokenmill.generate.grammar import VisionGrammar, allowed_mask
from tokenmill.generate.model import load_model
from tokenmill.generate.pictures import decode_ids, parse_pictures, save_png
from tokenmill.generate.prompts import drawing_prompt, question_prompt, seeing_prompt
from tokenmill.generate.sample import generate_text, generate_vision
from tokenmill.generate.sampling import Sampling
from tokenmill.tokenize.documents import TextSegment, VisionSegment, assemble
from tokenmill.tokenize.vocabulary import byte_vocabulary

VOCABULARY = byte_vocabulary(32)
V = VOCABULARY
PROMPTS = ["a red circle", "two", "", "eine sehr lange Beschreibung eines Bildes"]


def tiny_model(seed: int = 0, context: int = 512) -> Emu3ForCausalLM:
    """A random model with wide logits, so that every forbidden id is somewhere the favourite."""
    torch.manual_seed(seed)
    config = Emu3TextConfig(
        vocab_size=V.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
        pad_token_id=V.pad,
        bos_token_id=V.bos,
        eos_token_id=V.eos,
    )
    return Emu3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> Emu3ForCausalLM:
    return tiny_model()


def released_rule(offset: int, height: int, width: int) -> str:
    """EMU3.md §4, literally; it contradicts itself below width 3."""
    if offset % (width + 1) == 0:
        return "eol"
    past = offset - (width + 1) * height
    return {1: "eof", 2: "eov", 3: "eos"}.get(past, "code" if past < 0 else "pad")


def test_codes_that_the_tokenizer_does_not_have_are_never_drawn(model):
    documents = generate_vision(model, V, PROMPTS, 3, 4, temperature=2.0, guidance=1.0, top_k=0, num_codes=5)
    drawn = np.concatenate([parse_pictures(ids, V)[0].codes_thw.ravel() for ids in documents])
    assert set(drawn.tolist()) == set(range(5))
    documents = generate_vision(model, V, PROMPTS, 3, 4, temperature=2.0, guidance=1.0, top_k=0, num_codes=99)
    assert max(parse_pictures(ids, V)[0].codes_thw.max() for ids in documents) > 5


@pytest.mark.parametrize(("height", "width"), [(1, 4), (2, 3), (5, 5), (7, 4)])
def test_grammar_of_an_image_is_the_released_rule(height, width):
    grammar = VisionGrammar(V, height, width)
    names = {V.eol: "eol", V.eof: "eof", V.eov: "eov", V.eos: "eos", V.pad: "pad"}
    for offset in range(1, grammar.num_ids + 1):
        allowed = grammar.allowed(offset)
        found = "code" if allowed == range(V.vision_base, V.size) else names[allowed.start]
        assert found == released_rule(offset, height, width), offset
    assert list(grammar.allowed(grammar.num_ids + 1)) == [V.pad]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_grammar_of_any_grid_accepts_exactly_the_assembled_document(frames, height, width):
    clip = (8.0, 1.0) if frames > 1 else ()
    picture = VisionSegment(frames, height, width, 0, *clip)
    codes = np.arange(picture.num_codes) % 32
    ids = assemble([picture], np.zeros(0, np.uint32), codes, "unconditional", V).ids
    behind_sot = ids[np.flatnonzero(ids == V.sot)[0] + 1 :]
    schedule = VisionGrammar(V, height, width, frames).schedule()
    assert len(schedule) == len(behind_sot)
    assert all(index in allowed for index, allowed in zip(behind_sot.tolist(), schedule, strict=True))


def test_grammar_mask_of_a_batch_with_different_grids_equals_each_alone():
    offsets, frames = np.array([1, 3, 5, 40]), np.array([1, 1, 2, 1])
    heights, widths = np.array([2, 2, 1, 2]), np.array([2, 2, 3, 3])
    mask = allowed_mask(V, offsets, frames, heights, widths)
    for row, grid in enumerate(zip(offsets, heights, widths, frames, strict=True)):
        allowed = VisionGrammar(V, *map(int, grid[1:])).allowed(int(grid[0]))
        assert np.flatnonzero(mask[row]).tolist() == list(allowed)


def parse_slowly(ids: list[int], height: int, width: int, frames: int) -> bool:
    """An independent reading of what stands behind SOT, one id at a time."""
    rest = iter(ids)
    for _ in range(frames):
        for _ in range(height):
            if not all(V.vision_base <= next(rest) < V.size for _ in range(width)) or next(rest) != V.eol:
                return False
        if next(rest) != V.eof:
            return False
    return [*rest] == [V.eov, V.eos]


@pytest.mark.parametrize(("height", "width", "frames"), [(1, 1, 1), (2, 3, 1), (3, 2, 3)])
@pytest.mark.parametrize(("guidance", "temperature", "top_k"), [(3.0, 1.5, 0), (1.0, 0.0, 5), (5.0, 1.0, 4)])
def test_vision_from_an_untrained_model_never_leaves_the_grammar(
    model, height, width, frames, guidance, temperature, top_k
):
    clip = {"fps": 8.0, "seconds": 1.5} if frames > 1 else {}
    documents = generate_vision(
        model,
        V,
        PROMPTS,
        height,
        width,
        frames,
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        batch_size=3,
        **clip,
    )
    assert len(documents) == len(PROMPTS)
    for text, ids in zip(PROMPTS, documents, strict=True):
        prompt = drawing_prompt(V, text, VisionSegment(frames, height, width, 0, *clip.values()))
        assert ids[: len(prompt)].tolist() == prompt.tolist()
        assert parse_slowly(ids[len(prompt) :].tolist(), height, width, frames)
        assert [picture.codes_thw.shape for picture in parse_pictures(ids, V)] == [(frames, height, width)]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_vision_of_one_prompt_is_the_same_in_any_batch(model, guidance):
    together = generate_vision(model, V, PROMPTS, 3, 3, guidance=guidance, seed=[7, 8, 9, 10], batch_size=4)
    alone = [
        generate_vision(model, V, [text], 3, 3, guidance=guidance, seed=[seed])[0]
        for text, seed in zip(PROMPTS, [7, 8, 9, 10], strict=True)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_vision_with_other_seeds_differs_and_with_the_same_does_not(model):
    first, again, other = (generate_vision(model, V, ["x"], 4, 4, seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_guidance_of_one_equals_no_guidance(model):
    plain = generate_vision(model, V, PROMPTS, 3, 4, guidance=1.0)
    guided = generate_vision(model, V, PROMPTS, 3, 4, guidance=1.0 + 1e-9)
    assert all(np.array_equal(a, b) for a, b in zip(plain, guided, strict=True))


def test_guidance_against_another_prompt_changes_the_picture(model):
    empty, negative = (generate_vision(model, V, ["x"], 4, 4, negative=text)[0] for text in ("", "blurry"))
    assert not np.array_equal(empty, negative)


def test_each_prompt_is_led_away_from_its_own_negative_prompt(model):
    negatives = ["blurry", "", "two", "dark"]
    together = generate_vision(model, V, PROMPTS, 3, 3, negative=negatives, seed=[1, 2, 3, 4])
    for text, negative, seed, ids in zip(PROMPTS, negatives, (1, 2, 3, 4), together, strict=True):
        assert np.array_equal(generate_vision(model, V, [text], 3, 3, negative=negative, seed=seed)[0], ids)


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_draw_stays_within_the_best_k(seed, top_k):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 12, generator=generator)
    index = draw(logits, uniforms(range(seed, seed + 6), 1)[:, 0], Sampling(top_k=top_k, temperature=1.5))
    best = logits.topk(top_k).indices
    assert all(int(index[row]) in best[row].tolist() for row in range(6))


def test_draw_follows_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20_000, 1)
    uniform = uniforms([0], 20_000)[0]
    index = draw(logits, uniform, Sampling(top_k=0))
    shares = np.bincount(index.numpy(), minlength=4) / 20_000
    assert np.allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    warm = draw(logits, uniform, Sampling(top_k=2))
    assert np.allclose(np.bincount(warm.numpy(), minlength=4) / 20_000, [0.625, 0.375, 0, 0], atol=0.015)


@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.integers(0, 12), st.floats(0.3, 2.0))
@settings(max_examples=60, deadline=None)
def test_draw_stays_within_the_nucleus_of_the_best_k_and_reaches_all_of_it(seed, top_p, top_k, temperature):
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
    best = logits[0].argsort(descending=True)[: top_k or 12]
    shares = (logits[0, best] / temperature).double().softmax(-1).tolist()
    reached = np.cumsum([0.0, *shares])
    nucleus = {int(at) for at, before in zip(best, reached, strict=False) if before < top_p * (1 - 1e-9)}
    uniform = torch.linspace(0, 1, 4_000, dtype=torch.float64)[:-1]
    sampling = Sampling(top_k=top_k, top_p=top_p, temperature=temperature)
    found = set(draw(logits.repeat(len(uniform), 1), uniform, sampling).tolist())
    assert found <= nucleus
    assert found == nucleus or shares[len(nucleus) - 1] < 1e-3  # too seldom for so many draws


def test_draw_from_a_nucleus_that_holds_one_id_takes_the_likeliest():
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    found = draw(logits, uniforms([0], 50)[0], Sampling(top_p=1e-6, temperature=2.0))
    assert torch.equal(found, logits.argmax(-1))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_draw_at_the_ends_of_the_unit_interval_takes_a_possible_id(uniform):
    logits = torch.tensor([[-50.0, 1.0, 2.0, -60.0]])
    index = draw(logits, torch.tensor([uniform], dtype=torch.float64), Sampling(top_k=2))
    assert int(index) in (1, 2)


def test_answer_from_an_untrained_model_holds_text_alone(model):
    prompts = [seeing_prompt(V, np.zeros((1, 2, 2), np.uint32)), question_prompt(V, "What?")]
    answers = generate_text(model, V, prompts, max_new=24, temperature=1.0, seed=5)
    assert all(len(answer) <= 24 and (answer < V.text.size).all() for answer in answers)
    alone = [generate_text(model, V, [p], max_new=24, temperature=1.0, seed=[5 + i])[0] for i, p in enumerate(prompts)]
    assert all(np.array_equal(a, b) for a, b in zip(answers, alone, strict=True))


def test_answer_that_must_say_something_does():
    ended, prompts = tiny_model(), [question_prompt(V, "What?")]
    with torch.inference_mode():
        first = Continuation(ended, prompts, 1, V.pad).start()[0].clone()
    with torch.no_grad():
        ended.lm_head.weight[V.eos] = 100 * first  # ends at once, if it may
    lengths = [len(generate_text(ended, V, prompts, max_new=5, min_new=least)[0]) for least in (0, 1, 5)]
    assert lengths[0] == 0
    assert lengths[1] >= 1
    assert lengths[2] == 5


def test_answers_of_different_length_in_a_batch_are_those_of_each_alone():
    ended = tiny_model(5)
    prompts = [question_prompt(V, text) for text in ("What?", "How many red circles?", "a", "b", "c")]
    with torch.no_grad():
        ended.lm_head.weight[V.eos] *= 2  # an end is likely at any place
    asked = {"max_new": 60, "temperature": 1.0, "seed": list(range(5))}
    together = generate_text(ended, V, prompts, batch_size=5, **asked)
    alone = [generate_text(ended, V, [one], **asked | {"seed": seed})[0] for seed, one in enumerate(prompts)]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
    assert len({len(ids) for ids in together}) > 2


def test_question_prompt_ends_where_the_answer_begins():
    codes = np.array([[[1, 2]]], np.uint32)
    text_ids = np.array(V.text.encode("What?a cat"), np.uint32)
    segments = [VisionSegment(1, 1, 2, 0), TextSegment(0, 5, "user"), TextSegment(5, 10, "assistant")]
    document = assemble(segments, text_ids, codes.reshape(-1), "chat", V).ids.tolist()
    prompt = question_prompt(V, "What?", codes).tolist()
    assert document == [*prompt, *V.text.encode("a cat"), V.eos]


def test_picture_that_the_context_cannot_hold_is_refused():
    with pytest.raises(RecipeError, match="context holds 20"):
        generate_vision(tiny_model(context=20), V, ["a"], 4, 4)


@pytest.mark.parametrize(
    "wrong",
    [{"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": -0.1}, {"temperature": float("nan")},
     {"guidance": float("inf")}, {"seed": [1, 2]}, {"negative": ["a", "b"]}, {"batch_size": 0}],
)  # fmt: skip
def test_sampling_settings_that_make_no_sense_are_refused(model, wrong):
    with pytest.raises(RecipeError):
        generate_vision(model, V, ["a"], 1, 1, **wrong)


def test_model_with_damaged_weights_ends_the_run():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[V.vision_base + 3] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        generate_vision(model, V, ["a"], 1, 1)


class GreyDecoder:
    """A vision tokenizer's decoding half that is easy to check: code c is an 8×8 patch of grey c."""

    def decode_images(self, codes_Bhw):
        grey = codes_Bhw.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        return np.stack([grey] * 3, axis=-1)

    def decode_video(self, codes_Bthw):
        return np.stack([self.decode_images(codes.repeat(4, axis=0)) for codes in codes_Bthw])


def document_of(*pictures: tuple[VisionSegment, list[int]]) -> np.ndarray:
    codes = np.array([code for _, values in pictures for code in values])
    return assemble([segment for segment, _ in pictures], np.zeros(0, np.uint32), codes, "interleaved", V).ids


def test_decoding_a_document_gives_its_pictures_and_the_frames_of_its_clips():
    ids = document_of(
        (VisionSegment(1, 1, 2, 0), [5, 6]),
        (VisionSegment(2, 2, 1, 2, 8.0, 1.0), [1, 2, 3, 4]),
    )
    frames = decode_ids(ids, V, GreyDecoder())
    assert [frame.shape for frame in frames] == [(8, 16, 3)] + [(16, 8, 3)] * 8
    assert frames[0][0, 0].tolist() == [5, 5, 5]
    assert frames[0][0, 8].tolist() == [6, 6, 6]
    assert [int(frame[8, 0, 0]) for frame in frames[1:]] == [2] * 4 + [4] * 4


GOOD = document_of((VisionSegment(1, 2, 2, 0), [1, 2, 3, 4])).tolist()
FIRST = GOOD.index(V.sot) + 1


@pytest.mark.parametrize(
    "broken",
    [
        [*GOOD[:FIRST], *GOOD[FIRST + 1 :]],  # a code is missing
        [*GOOD[:FIRST], GOOD[FIRST], *GOOD[FIRST:]],  # one too many
        [*GOOD[:FIRST], V.eol, *GOOD[FIRST + 1 :]],  # a marker where a code stands
        [V.text.encode("9")[0] if index == ord("2") else index for index in GOOD],  # another grid
        [index for index in GOOD if index != V.eov],
        [index for index in GOOD if index != V.sot],
        [index if index != ord("*") else ord("x") for index in GOOD],
    ],
)
def test_document_that_left_the_grammar_is_refused(broken):
    with pytest.raises(SampleError, match="off_grammar"):
        parse_pictures(broken, V)


def test_png_holds_the_pixels_and_the_prompt_and_the_same_bytes_each_time(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    for name in ("a.png", "b.png"):
        save_png(tmp_path / name, image, {"prompt": "ein rotes Ö", "seed": "3"})
    with Image.open(tmp_path / "a.png") as read:
        assert np.array_equal(np.asarray(read), image)
        assert read.info["prompt"] == "ein rotes Ö"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_exported_model_opens_with_its_vocabulary_and_draws_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenmill.json").write_text(json.dumps({"vocabulary": V.spec, "vision": {"name": "x"}}))
    opened = load_model(tmp_path)
    assert opened.vocabulary.fingerprint == V.fingerprint
    assert opened.vision == {"name": "x"}
    mine, theirs = (generate_vision(m, V, ["a"], 2, 2)[0] for m in (model, opened.model))
    assert np.array_equal(mine, theirs)


@pytest.mark.parametrize(
    "description",
    [
        None,
        "{",
        "{}",
        json.dumps({"vocabulary": byte_vocabulary(64).spec}),
        json.dumps({"vocabulary": V.spec, "vocabulary_fingerprint": "0" * 64}),
    ],
)
def test_exported_model_whose_vocabulary_does_not_fit_is_refused(model, tmp_path, description):
    model.save_pretrained(tmp_path)
    if description is not None:
        (tmp_path / "tokenmill.json").write_text(description)
    with pytest.raises(RecipeError):
        load_model(tmp_path)
