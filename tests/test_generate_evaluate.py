"""Evaluation tells a model that learned from one that did not, and its baselines are honest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.generate.evaluate import (
    Sample,
    assembled_ids,
    caption_gain,
    heldout_loss,
    kinds_of,
    ngram_table,
    shuffle_captions,
)
from tokenmill.generate.ngrams import ngram_loss, plugin_entropy
from tokenmill.generate.pictures import parse_pictures
from tokenmill.generate.prompts import seeing_prompt
from tokenmill.generate.sample import generate_text, generate_vision
from tokenmill.tokenize.documents import TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(16)
WORDS = ["red", "green", "blue", "white"]


def sample(word: int, seed: int) -> Sample:
    """A 2×2 picture of which the caption tells three codes; the fourth is noise of two."""
    noise = 12 + np.random.default_rng(seed).integers(2)
    text_ids = np.array(V.text.encode(WORDS[word]), np.uint32)
    segments = [TextSegment(0, len(text_ids), "caption"), VisionSegment(1, 2, 2, 0)]
    return Sample(segments, text_ids, np.array([word, word + 4, word + 8, noise], np.uint16))


TRAIN = [sample(index % 4, index) for index in range(40)]
HELDOUT = [sample(index % 4, 1000 + index) for index in range(24)]


def new_model() -> Emu3ForCausalLM:
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=V.size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=0.0,
        pad_token_id=V.pad,
        bos_token_id=V.bos,
        eos_token_id=V.eos,
    )
    return Emu3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trained() -> Emu3ForCausalLM:
    """A model that overfitted drawing and naming the four kinds of picture (a few seconds)."""
    model = new_model()
    documents = [ids for template in ("generation", "understanding") for ids in assembled_ids(TRAIN, template, V)]
    documents += assembled_ids(TRAIN[:8], "unconditional", V)  # few: behind its EOV stands EOS, where answers begin
    longest = max(map(len, documents))
    ids = torch.tensor(np.stack([np.pad(d, (0, longest - len(d)), constant_values=V.pad) for d in documents])).long()
    labels = ids.masked_fill(ids == V.pad, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_trained_model_draws_what_it_was_asked_for(trained):
    documents = generate_vision(trained, V, WORDS, 2, 2, guidance=2.0, temperature=0)
    for word, ids in enumerate(documents):
        codes = parse_pictures(ids, V)[0].codes_thw.reshape(-1)
        assert codes[:3].tolist() == [word, word + 4, word + 8]


def test_trained_model_names_what_it_sees_and_stops(trained):
    prompts = [seeing_prompt(V, item.codes.astype(np.uint32).reshape(1, 2, 2)) for item in HELDOUT[:4]]
    answers = generate_text(trained, V, prompts, max_new=40)
    assert [V.text.decode(answer) for answer in answers] == WORDS


def test_trained_model_is_below_the_ngrams_and_the_untrained_one_is_not(trained):
    train, heldout = (assembled_ids(samples, "generation", V) for samples in (TRAIN, HELDOUT))
    codes = ngram_table(train, heldout, V)["codes"]
    assert heldout_loss(trained, heldout, V).mean("codes") < codes["bigram_loss"] < codes["unigram_loss"]
    assert heldout_loss(new_model(), heldout, V).mean("codes") > codes["unigram_loss"]


def test_caption_gain_shows_in_a_model_that_reads_captions_alone(trained):
    learned = caption_gain(trained, HELDOUT, V)
    assert learned["gain"] > 5 * learned["gain_error"] > 0
    assert learned["gain"] == pytest.approx(learned["shuffled"] - learned["true"])
    untrained = caption_gain(new_model(), HELDOUT, V)
    assert abs(untrained["gain"]) < 0.05


def test_heldout_loss_equals_the_models_own_loss_document_by_document(trained):
    documents = assembled_ids(HELDOUT[:5], "generation", V)
    batched = heldout_loss(trained, documents, V, ids_per_batch=64)
    for row, ids in enumerate(documents):
        whole = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            expected = float(trained(input_ids=whole, labels=whole).loss) * (len(ids) - 1)
        assert sum(batched.sums[kind][row] for kind in batched.sums) == pytest.approx(expected, rel=1e-4)
        assert sum(batched.counts[kind][row] for kind in batched.counts) == len(ids) - 1
    assert set(batched.by_kind()) == {"text", "codes", "markers"}


def test_kinds_split_every_id_once_and_count_the_meta_as_marker():
    ids = assembled_ids(HELDOUT[:1], "generation", V)[0]
    kinds = kinds_of(ids, V)
    assert np.array_equal(sum(mask.astype(int) for mask in kinds.values()), np.ones(len(ids), int))
    assert V.text.decode(ids[kinds["text"]].tolist()) == WORDS[0]
    assert kinds["codes"].sum() == 4


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_shuffled_captions_keep_the_multiset_and_nobody_keeps_his_own_words(words, seed):
    samples = [sample(word, index) for index, word in enumerate(words)]
    shuffled = shuffle_captions(samples, seed=seed)
    before = [V.text.decode(item.text_ids.tolist()) for item in samples]
    after = [V.text.decode(item.text_ids.tolist()) for item in shuffled]
    assert sorted(before) == sorted(after)
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(samples, shuffled, strict=True))
    if max(before.count(word) for word in before) <= len(before) // 2:
        assert all(a != b for a, b in zip(before, after, strict=True))


def test_captions_of_a_single_sample_cannot_be_shuffled():
    with pytest.raises(ValueError, match="two samples"):
        shuffle_captions(HELDOUT[:1])


def test_plugin_entropy_of_known_streams_is_exact():
    coin = np.array([9, 0, 1, 0, 1])
    assert plugin_entropy([coin], 1) == pytest.approx(math.log(2))
    assert plugin_entropy([coin], 2) == pytest.approx(0)
    split = [np.array([5, 0]), np.array([5, 1]), np.array([6, 2])]
    assert plugin_entropy(split, 2) == pytest.approx(2 / 3 * math.log(2))
    where = [np.array([False, True]), np.array([False, True]), np.array([False, False])]
    assert plugin_entropy(split, 1, where) == pytest.approx(math.log(2))


def test_plugin_entropy_never_pairs_ids_of_two_streams():
    apart = plugin_entropy([np.array([0, 1]), np.array([0, 1])], 2)
    assert apart == pytest.approx(0)
    with pytest.raises(ValueError, match="no id"):
        plugin_entropy([np.array([1]), np.array([2])], 2)


@given(st.lists(st.integers(0, 7), min_size=3, max_size=80), st.sampled_from([1, 2]))
@settings(max_examples=100, deadline=None)
def test_ngram_probabilities_of_all_ids_add_up_to_one_at_most(ids, order):
    """Over every id once the mean of -log p is at least ln V, whatever p, if p adds up to one (Gibbs)."""
    everything = [np.array([ids[0], index]) for index in range(8)]
    assert ngram_loss([np.array(ids)], everything, order, 8) >= math.log(8) - 1e-9


def test_ngram_loss_approaches_the_source_that_made_the_ids():
    random = np.random.default_rng(0)
    step = random.integers(1, 3, 20_000)  # each id is the last plus 1 or 2: ln 2 nats given the last, ln 8 without
    ids = np.cumsum(step) % 8
    train, heldout = [ids[:16_000]], [ids[16_000:]]
    assert ngram_loss(train, heldout, 1, 8) == pytest.approx(math.log(8), abs=0.01)
    assert ngram_loss(train, heldout, 2, 8) == pytest.approx(math.log(2), abs=0.01)


def test_ngram_order_above_two_is_refused():
    with pytest.raises(ValueError, match="order 3"):
        plugin_entropy([np.array([0, 1])], 3)
