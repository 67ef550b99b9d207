"""Post-training on stored tokens, as the loader gives it: what is supervised, told from the ids alone.

Expected weights come from a reading of the ids that knows markers and words and nothing of templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from tests import tiny_clip
from tests.conversations import conversations

from tokenmill.demo.tokens import Amounts, write_shards, write_token_source
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.plan import write_plan
from tokenmill.recipe import load_recipe
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.packs import NO_LABEL

RECIPES = Path(__file__).parents[1] / "train" / "recipes"
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


def plan_of(recipe: str, **changes: object) -> PlanSettings:
    """Return the plan of a shipped recipe, at a context and with templates for what these tests have."""
    return load_recipe(RECIPES / f"{recipe}.yaml").plan.model_copy(update=changes)


def loader_over(store: Store, snapshots: Sequence[Snapshot], settings: PlanSettings) -> PlanLoader:
    return PlanLoader(write_plan(store, snapshots, settings), VOCABULARY, global_packs=4, threads=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("store")))


def test_quality_tuning_supervises_pictures_alone_each_from_its_marker_to_its_end(store: Store) -> None:
    pictures = write_token_source(store, "pictures", VOCABULARY, Amounts(images=80, clips=20, shards=2))
    shares = {"generation": 0.8, "unconditional": 0.2}
    settings = plan_of("qft", context=640, templates={"image": shares, "video": shares})

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


def test_quality_recipe_trains_on_what_its_scores_chose_and_on_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    pictures = {
        name: Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "rocket", "cat")
    }
    with ArchiveWriter(tmp_path / "shards" / "00000.tar") as writer:
        for name, picture in pictures.items():
            for side in (740, 700):
                picture.resize((side + 60, side)).save(tmp_path / "one.jpg", quality=92)
                writer.add(f"{name}-{side}", {"jpg": (tmp_path / "one.jpg").read_bytes(), "txt": name.encode()})
    chain = Chain(recipe=load_recipe(RECIPES / "qft.yaml", small_enough(tmp_path)), options=ChainOptions(quiet=True))

    (selected,) = chain.select.values()
    rows = pl.concat(selected.folder.read_rows(commit) for commit in selected.commits)
    (scored,) = [one for one in chain.score["pictures"] if one.folder.config.settings["scorer"] == "clip_similarity"]
    scores = pl.concat(scored.folder.read_rows(commit) for commit in scored.commits)
    fits = {
        key for key, value in scores.select("key", "clip_similarity").iter_rows() if value is not None and value >= 0
    }
    reasons = dict(rows.select("key", "drop_reason").iter_rows())
    assert {reasons[key] for key in reasons if key.endswith("-700")} == {"resolution"}
    assert {key for key, reason in reasons.items() if reason is None} == fits
    assert 0 < len(fits) < len(pictures)

    loader = PlanLoader(chain.plan, byte_vocabulary(2048), global_packs=1, threads=0)
    read = [sample.key for step in loader.steps(0, loader.plan.num_packs) for sample in step.samples]
    assert sorted(read) == sorted(fits)


def small_enough(folder: Path) -> list[str]:
    """Change the recipe to a small CLIP with a head that likes everything, and to this project's own small codes."""
    import torch

    clip = tiny_clip.write_folder(folder / "clip")
    torch.save({"weight": torch.zeros(1, tiny_clip.DIMENSION), "bias": torch.tensor([6.5])}, folder / "head.pth")
    model = f"model: {clip}, when: min_side_px >= 720"
    return [
        f"root={folder / 'run'}", f"sources.pictures.url={folder / 'shards'}", "execution={executor: inline}",
        f"filter.image.scorers.aesthetic={{{model}, head: {folder / 'head.pth'}}}",
        f"filter.image.scorers.clip_similarity={{{model}}}",
        "filter.image.rules.quality=(aesthetic / 10 + clip_similarity / 0.35) / 2 >= 0.325",  # a similarity of 0
        "tokenize.vocabulary={name: bytes, codebook_size: 2048}", "tokenize.vision={name: scenes}",
        "tokenize.image.min_area=4096", "tokenize.image.max_area=4096", "plan.context=512",
    ]  # fmt: skip


def test_instruction_tuning_supervises_every_answer_and_nothing_of_questions_pictures_and_system(store: Store) -> None:
    chats = write_shards(
        store, "chats", VOCABULARY, [conversations(VOCABULARY, 40), conversations(VOCABULARY, 60)[40:]]
    )
    settings = plan_of("instruct", context=512)

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
    loader = loader_over(store, [pictures], plan_of("qft", context=256))

    for step in loader.steps(0, 3):
        given = sum(float(arrays.loss_weight.sum(dtype=np.float64)) for arrays in step.micro_batches)
        assert step.weight == pytest.approx(given)
