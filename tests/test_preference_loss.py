"""DPO through float weights: loss and gradients are those of the equations written down plainly."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import ManifestError, RecipeError
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_preference import PreferenceSettings
from tokenmill.settings_train import ModelSettings, PlanSettings, TrainSettings
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.model import Batch, PackedModel, build_model
from tokenmill.train.pair_places import pair_places, step_shares
from tokenmill.train.preference import Preference, StepPreference, check_preference
from tokenmill.train.preference_loss import PairMeasures
from tokenmill.train.reference import ReferenceFolder
from tokenmill.train.reference_pass import reference_rows, steps_of

V = byte_vocabulary(64)
G, BETA, NEXT = 4, 0.3, 0.7
CONTEXT = 200
SMALL = ModelSettings(hidden=32, layers=2, heads=4, kv_heads=2, ffn=48)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("pairs") / "root"))


@pytest.fixture(scope="module")
def plan(store: Store) -> Plan:
    snapshots = [
        write_token_source(store, "pairs", V, Amounts(pairs=30, side=4)),
        write_token_source(store, "rest", V, Amounts(texts=6, images=6, side=4)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=CONTEXT, window_documents=20))


@pytest.fixture(scope="module")
def loader(plan: Plan) -> PlanLoader:
    return PlanLoader(plan, V, global_packs=G, micro_packs=2)


def model(seed: int) -> PackedModel:
    return build_model(SMALL, V, CONTEXT, seed=seed, loss_chunk_tokens=100)


@pytest.fixture(scope="module")
def preference(store: Store, plan: Plan, loader: PlanLoader) -> Preference:
    """A reference by other weights than those that are trained, since all starts from z = 0 otherwise."""
    folder = ReferenceFolder(store, f"{plan.folder.path}/references/other")
    other = model(1).eval()
    assert folder.missing(range(plan.num_packs)) == [range(plan.num_packs)]
    rows = []
    for number in range(loader.steps_per_epoch):
        step = loader.step(number)
        for arrays, packs in zip(step.micro_batches, step.documents.packs.tolist(), strict=True):
            with torch.no_grad():
                _, losses = other(Batch.of(arrays, "cpu"))
            rows += reference_rows(arrays, pair_places(plan, packs), losses, is_whole=True)
    folder.publish(range(plan.num_packs), rows)
    folder.refresh()
    assert folder.missing(range(plan.num_packs)) == []
    settings = PreferenceSettings(beta=BETA, next_token_weight=NEXT)
    return Preference(settings=settings, plan=plan, reference=folder)


def gradients(trained: PackedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}


def taken(trained: PackedModel, paired: StepPreference) -> tuple[float, Tensor]:
    """What a step of the trainer does: loss of the surrogate backward, measures of the pairs."""
    loss = 0.0
    for number, arrays in enumerate(paired.step.micro_batches):
        batch = paired.batch(number, Batch.of(arrays, "cpu"))
        total, losses = trained(batch)
        (total / paired.step.weight).backward()
        paired.add(batch, losses)
        loss += float((losses * torch.from_numpy(arrays.loss_weight)).sum())
    return loss / paired.step.weight, paired.sums


def plainly(trained: PackedModel, other: PackedModel, plan: Plan, loader: PlanLoader, step: int) -> Tensor:
    """The equations as they stand in the paper, of whole logits and one document after the other."""
    dpo, next_token, weight, pairs = torch.zeros(()), torch.zeros(()), 0.0, 0
    packs = PlanLoader(plan, V, global_packs=1)
    for pack in loader.packs_of(step):
        (arrays,), documents = packs.step(pack).micro_batches, plan.documents(pack)
        batch = Batch.of(arrays, "cpu")
        with torch.no_grad():
            before = F.log_softmax(other.logits(batch), dim=-1)
        now = F.log_softmax(trained.logits(batch), dim=-1)
        waiting = None
        for placed, (begin, end) in zip(documents, pairwise(arrays.cu_seqlens.tolist()), strict=False):
            here = slice(begin, end)
            labels = torch.from_numpy(arrays.labels[here])
            learned = labels >= 0
            chosen = labels.clamp(min=0)[:, None]
            ratio = (now[here] - before[here]).gather(1, chosen).squeeze(1)[learned].sum()
            is_pair = placed.template == PREFERENCE
            if is_pair and placed.start:
                dpo = dpo - F.logsigmoid(BETA * (waiting - ratio))
                pairs += 1
                continue
            waiting = ratio
            weights = torch.from_numpy(arrays.loss_weight[here])
            next_token = next_token - (weights * now[here].gather(1, chosen).squeeze(1))[learned].sum()
            weight += float(weights.sum())
    assert pairs > 0
    return dpo / pairs + NEXT * next_token / weight


def test_preference_loss_and_gradients_are_those_of_the_plain_equations(plan, loader, preference):
    trained, other = model(0), model(1).eval()
    for number in (0, loader.steps_per_epoch - 1):
        trained.zero_grad()
        expected = plainly(trained, other, plan, loader, number)
        expected.backward()
        plain = gradients(trained)
        trained.zero_grad()
        paired = preference.of(loader.step(number), loader.packs_of(number))
        next_token, sums = taken(trained, paired)
        row = paired.told(next_token, PairMeasures(*sums))
        assert row["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
        assert row["pairs"] == paired.shares.pairs > 0
        ours = gradients(trained)
        assert ours.keys() == plain.keys()
        for name, gradient in ours.items():
            assert torch.allclose(gradient, plain[name], rtol=1e-5, atol=1e-5 * float(plain[name].abs().max())), name


def test_preference_step_divides_by_what_the_plan_says_of_all_ranks(plan, loader, preference):
    alone = preference.of(loader.step(0), loader.packs_of(0))
    trained = model(0)
    _, whole = taken(trained, alone)
    expected = gradients(trained)
    trained.zero_grad()
    sums = torch.zeros(6, dtype=torch.float64)
    for rank in (0, 1):
        one = PlanLoader(plan, V, global_packs=G, rank=rank, world=2)
        paired = preference.of(one.step(0), one.packs_of(0))
        assert paired.shares == alone.shares
        sums += taken(trained, paired)[1]
    assert sums.tolist() == pytest.approx(whole.tolist(), rel=1e-5)
    for name, gradient in gradients(trained).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


def test_pair_that_could_not_be_read_does_not_count_and_its_chosen_half_is_still_learned(loader, preference):
    step = loader.step(0)
    places = pair_places(loader.plan, step.documents.packs[0].tolist())
    begin, end = int(places.begins[0, 1]), int(places.ends[0, 1])
    for arrays, value in ((step.micro_batches[0].labels, -100), (step.micro_batches[0].loss_weight, 0.0)):
        arrays[begin:end] = value
    whole = preference.of(loader.step(0), loader.packs_of(0))
    paired = preference.of(step, loader.packs_of(0))
    batch = paired.batch(0, Batch.of(paired.step.micro_batches[0], "cpu"))
    assert batch.pairs.counts.tolist() == [False, *[True] * (len(places) - 1)]
    chosen = slice(int(places.begins[0, 0]), int(places.ends[0, 0]))
    weights = batch.pairs.weights(batch.loss_weight, torch.ones(len(batch.labels)))
    assert torch.equal(weights[chosen], batch.loss_weight[chosen])
    assert float(batch.loss_weight[chosen].sum()) > 0
    assert paired.shares == whole.shares


def test_reference_that_lacks_a_pair_or_was_damaged_is_refused_by_name(tmp_path, plan, loader, preference):
    places = pair_places(plan, loader.step(0).documents.packs[0].tolist())
    assert len(places)
    folder = ReferenceFolder(open_store(str(tmp_path)), "references/other")
    with pytest.raises(ManifestError, match="no reference for the pair of pack"):
        folder.of(places)
    folder.publish(range(plan.num_packs), [(0, 0, -1.0, -2.0, 3, 4)])
    folder.refresh()
    (name,) = (tmp_path / "references/other").iterdir()
    name.write_bytes(name.read_bytes()[:-9] + b"xxxxxxxxx")
    with pytest.raises(ManifestError, match="packs-00000000"):
        folder.of(places)


def test_reference_of_an_unreadable_sample_is_none_and_of_a_weightless_answer_refused(loader, preference):
    arrays = loader.step(0).micro_batches[0]
    places = pair_places(loader.plan, loader.step(0).documents.packs[0].tolist())
    arrays.labels[int(places.begins[0, 0]) : int(places.ends[0, 0])] = -100
    losses = torch.ones(len(arrays.labels))
    rows = reference_rows(arrays, places, losses, is_whole=False)
    assert rows[0][2] is None and rows[0][4] == 0 and math.isfinite(rows[0][3])
    with pytest.raises(RecipeError, match=r"an answer whose ids weigh nothing; see plan\.vision_weight"):
        reference_rows(arrays, places, losses, is_whole=True)


def test_reference_parts_are_computed_by_the_steps_that_read_them(loader):
    parts = [range(8), range(8, 16), range(32, 33)]
    assert steps_of(loader, parts) == [range(4), range(8, 9)]


def test_plan_with_pairs_and_recipe_without_preference_are_refused_and_the_other_way_round(plan, store):
    check_preference(PreferenceSettings(), plan)
    with pytest.raises(RecipeError, match=r"holds preference pairs.*set train\.preference\.beta"):
        check_preference(None, plan)
    words = write_plan(store, [write_token_source(store, "words", V, Amounts(texts=9))], PlanSettings(context=CONTEXT))
    check_preference(None, words)
    with pytest.raises(RecipeError, match="holds no preference pairs"):
        check_preference(PreferenceSettings(), words)


def test_step_shares_are_sums_over_windows_of_the_plan(plan):
    assert len(plan.windows) > 1
    everything = step_shares(plan, range(plan.num_packs))
    rows = [row for pack in range(plan.num_packs) for row in plan.documents(pack)]
    rejected = [row for row in rows if row.template == PREFERENCE and row.start]
    assert everything.pairs == len(rejected) == 30
    assert everything.rejected_weight == pytest.approx(sum(row.weight for row in rejected))
    assert everything.next_token_weight == pytest.approx(sum(row.weight for row in rows if row not in rejected))
    assert np.isclose(everything.rejected_weight + everything.next_token_weight,
                      plan.costs(0, plan.num_packs).weight.sum())  # fmt: skip


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"sequence_parallel": 2}, "a pair has to be whole on a rank; sequence_parallel is 2"),
        ({"z_loss": 1e-4}, "z_loss would weigh less than nothing on rejected answers"),
        ({"preference": {"beta": 0}}, "greater than 0"),
    ],
)
def test_preference_recipe_that_cannot_be_trained_is_refused(said, told):
    with pytest.raises(ValidationError, match=told):
        TrainSettings.model_validate({"preference": {}, "ranks": 2} | said)
