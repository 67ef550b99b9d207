"""Post-training on stored tokens, as the loader gives it: what is supervised, told from the ids alone.

Expected weights come from a reading of the ids that knows markers and words and nothing of templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenmill.demo.tokens import Amounts, TokenSample, write_shards, write_token_source
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.segments import Segment, TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.packs import NO_LABEL

VOCABULARY = byte_vocabulary(64)
Weights = NDArray[np.float32]
Ids = NDArray[np.int64]


def documents_of(loader: PlanLoader) -> Iterator[tuple[Ids, Weights]]:
    """Give ids and weights of every document of an epoch, the weight standing at the id that it is about."""
    for step in loader.steps(0, -(-loader.plan.num_packs // loader.global_packs)):
        for arrays in step.micro_batches:
            assert (arrays.loss_weight[arrays.labels == NO_LABEL] == 0).all()
            for start, end in pairwise(arrays.cu_seqlens.tolist()):
                ids = arrays.input_ids[start:end]
                if (ids == VOCABULARY.pad).all():
                    assert (arrays.loss_weight[start:end] == 0).all()
                    continue
                taught = arrays.labels[start : end - 1] != NO_LABEL
                assert (arrays.labels[start : end - 1][taught] == ids[1:][taught]).all()
                assert arrays.labels[end - 1] == NO_LABEL
                yield ids, np.r_[np.float32(0), arrays.loss_weight[start : end - 1]]


def is_shown(ids: Ids) -> NDArray[np.bool_]:
    """Tell of each id whether it belongs to a picture or clip: from SOV to EOV, and the EOS right behind."""
    opened, closed = np.cumsum(ids == VOCABULARY.sov), np.cumsum(ids == VOCABULARY.eov)
    inside = opened > np.r_[0, closed[:-1]]
    return inside | ((ids == VOCABULARY.eos) & (np.r_[0, ids[:-1]] == VOCABULARY.eov))


def is_answer(ids: Ids) -> NDArray[np.bool_]:
    """Tell of each id whether it belongs to an answer: from behind `. ASSISTANT:` to its EOS."""
    words = np.array(VOCABULARY.encode_literal(". ASSISTANT:"))
    found = np.zeros(len(ids), bool)
    for start in range(len(ids) - len(words) + 1):
        if (ids[start : start + len(words)] == words).all():
            first = start + len(words)
            found[first : first + int(np.argmax(ids[first:] == VOCABULARY.eos)) + 1] = True
    return found


def loader_over(store: Store, snapshots: Sequence[object], settings: PlanSettings) -> PlanLoader:
    return PlanLoader(write_plan(store, snapshots, settings), VOCABULARY, global_packs=4, threads=0)


def conversations(count: int) -> list[TokenSample]:
    """Conversations about a picture, of one to three turns; every third opens with words of its own for the system."""
    rng = np.random.default_rng(3)
    samples: list[TokenSample] = []
    for number in range(count):
        texts = [("system", "Be short.")] if number % 3 == 0 else []
        for turn in range(1 + number % 3):
            texts += [("user", f"What is at {turn}, {number}?"), ("assistant", f"A box of {number + turn}, I think.")]
        segments: list[Segment] = []
        ids: list[int] = []
        for role, text in texts:
            encoded = list(VOCABULARY.text.encode(text))
            if role == "user" and not any(isinstance(one, VisionSegment) for one in segments):
                segments.append(VisionSegment(1, 4, 4, 0, learn=False, role="user"))
            segments.append(TextSegment(len(ids), len(ids) + len(encoded), role, learn=role == "assistant"))  # type: ignore[arg-type]
            ids += encoded
        codes = rng.integers(0, VOCABULARY.codebook_size, 16).astype(np.uint16)
        samples.append((f"chat-{number:04d}", "document", segments, np.array(ids, np.uint32), codes))
    return samples


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("store")))


def test_quality_tuning_supervises_pictures_alone_each_from_its_marker_to_its_end(store: Store) -> None:
    pictures = write_token_source(store, "pictures", VOCABULARY, Amounts(images=80, clips=20, shards=2))
    shares = {"generation": 0.8, "unconditional": 0.2}
    settings = PlanSettings(context=640, text_weight=0.0, vision_weight=1.0,
                            templates={"image": shares, "video": shares})  # fmt: skip

    seen = list(documents_of(loader_over(store, [pictures], settings)))
    captioned = 0
    for ids, weights in seen:
        shown = is_shown(ids)
        assert shown.any()
        assert np.array_equal(weights, shown.astype(np.float32))
        assert {VOCABULARY.sov, VOCABULARY.sot, VOCABULARY.eol, VOCABULARY.eof, VOCABULARY.eov, VOCABULARY.eos} <= set(
            ids[weights > 0].tolist()
        )
        captioned += int((~shown).sum() > 1)  # more than BOS
    assert len(seen) == 100
    assert 60 <= captioned <= 95


def test_instruction_tuning_supervises_every_answer_and_nothing_of_questions_pictures_and_system(store: Store) -> None:
    chats = write_shards(store, "chats", VOCABULARY, [conversations(40), conversations(60)[40:]])
    settings = PlanSettings(context=512, vision_weight=0.0, templates={"document": {"chat": 1.0}})

    turns = []
    for ids, weights in documents_of(loader_over(store, [chats], settings)):
        answered = is_answer(ids)
        assert np.array_equal(weights, answered.astype(np.float32))
        assert not (answered & is_shown(ids)).any()
        assert (ids == VOCABULARY.sov).sum() == 1
        turns.append(int((answered & (ids == VOCABULARY.eos)).sum()))
    assert sorted(set(turns)) == [1, 2, 3]
    assert len(turns) == 60


def test_denominators_of_the_plan_are_the_weights_that_the_loader_gives(store: Store) -> None:
    pictures = write_token_source(store, "more", VOCABULARY, Amounts(images=30, texts=10, shards=1))
    loader = loader_over(store, [pictures], PlanSettings(context=256, text_weight=0.0, vision_weight=1.0))

    for step in loader.steps(0, 3):
        given = sum(float(arrays.loss_weight.sum(dtype=np.float64)) for arrays in step.micro_batches)
        assert step.weight == pytest.approx(given)
