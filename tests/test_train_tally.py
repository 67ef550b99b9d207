"""Losses by modality and template: what the plan says of a step's documents, and sums over its ids."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.packs import NO_LABEL, PackArrays
from tokenmill.train.step_documents import PADDING, TEMPLATE_NAMES
from tokenmill.train.tally import Tally, finite, losses_of

VOCABULARY = byte_vocabulary(64)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of several windows, whose borders lie within steps of 7 packs."""
    store = open_store(str(tmp_path_factory.mktemp("store")))
    snapshots = [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=60, shards=3)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=40)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=300, window_documents=30, window_packs=5))


@pytest.mark.parametrize(("world", "micro_packs"), [(1, 1), (2, 1), (3, 2), (2, 4)])
def test_documents_of_a_step_have_the_templates_of_its_samples(plan: Plan, world: int, micro_packs: int) -> None:
    loaders = [
        PlanLoader(plan, VOCABULARY, global_packs=7, rank=rank, world=world, micro_packs=micro_packs)
        for rank in range(world)
    ]
    assert plan.windows.height > 2
    for number in range(loaders[0].steps_per_epoch):
        for step in (loader.step(number) for loader in loaders):
            names = {name: place for place, name in enumerate(TEMPLATE_NAMES)}
            found = step.documents
            by_place = [
                [[names[d.template] for d in plan.documents(pack)] if pack >= 0 else [] for pack in packs]
                for packs in found.packs.tolist()
            ]
            assert found.packs[found.packs >= 0].tolist() == list(dict.fromkeys(s.pack for s in step.samples))
            for arrays, templates, expected in zip(step.micro_batches, found.templates, by_place, strict=True):
                assert len(templates) == len(arrays.cu_seqlens) - 1
                assert templates[templates != PADDING].tolist() == [one for pack in expected for one in pack]
                lengths = np.diff(arrays.cu_seqlens)
                assert int(lengths[templates != PADDING].sum()) == arrays.num_tokens
            assert found.weight.sum() == pytest.approx(step.weight)
    whole = [PlanLoader(plan, VOCABULARY, global_packs=7).step(number).documents.weight for number in range(2)]
    weights: Counter[str] = Counter()
    for pack in range(14):
        weights.update({d.template: 0.0 for d in plan.documents(pack)})
        for document in plan.documents(pack):
            weights[document.template] += document.weight
    assert dict(zip(TEMPLATE_NAMES, sum(whole), strict=True)) == pytest.approx(
        {name: weights.get(name, 0.0) for name in TEMPLATE_NAMES}
    )


def test_tally_of_a_step_is_what_its_documents_come_to_one_by_one(plan: Plan) -> None:
    step = PlanLoader(plan, VOCABULARY, global_packs=3, micro_packs=2).step(1)
    rng = np.random.default_rng(0)
    losses = [rng.random(len(arrays.input_ids)).astype(np.float32) for arrays in step.micro_batches]
    whole, in_parts = Tally(VOCABULARY), Tally(VOCABULARY)
    expected = np.zeros((2, len(TEMPLATE_NAMES), 2))
    for arrays, templates, loss in zip(step.micro_batches, step.documents.templates, losses, strict=True):
        whole.add(arrays, templates, torch.from_numpy(loss))
        add_in_parts(in_parts, arrays, templates, loss, 13)
        for number, template in enumerate(templates.tolist()):
            for place in range(arrays.cu_seqlens[number], arrays.cu_seqlens[number + 1]):
                weight = float(arrays.loss_weight[place])
                modality = int(VOCABULARY.vision_mask(arrays.labels[place : place + 1])[0])
                expected[:, template, modality] += (float(loss[place]) * weight, weight)

    assert whole.sums() == pytest.approx(expected)
    assert in_parts.sums() == pytest.approx(expected)
    assert expected[1].sum(axis=1) == pytest.approx(step.documents.weight)
    told = losses_of(whole.sums(), step.weight, step.documents.weight)
    assert told["loss"] == pytest.approx(expected[0].sum() / step.weight)
    assert told["loss_vision"] == pytest.approx(expected[0, :, 1].sum() / expected[1, :, 1].sum())
    assert (
        told["loss_by_template"].keys() == {"generation", "understanding", "language"} & told["loss_by_template"].keys()
    )
    assert len(told["loss_by_template"]) >= 2


def add_in_parts(
    tally: Tally, arrays: PackArrays, templates: NDArray[np.int64], loss: NDArray[np.float32], parts: int
) -> None:
    """Take in a micro-batch as ranks do that share its ids, filled up by a document of padding."""
    missing = -len(loss) % parts
    assert missing, "the case that needs padding"
    size = (len(loss) + missing) // parts
    filled = arrays._replace(
        labels=np.pad(arrays.labels, (0, missing), constant_values=NO_LABEL),
        loss_weight=np.pad(arrays.loss_weight, (0, missing)),
        cu_seqlens=np.append(arrays.cu_seqlens, np.int32(len(loss) + missing)),
    )
    loss = np.pad(loss, (0, missing))
    for first in range(0, size * parts, size):
        here = slice(first, first + size)
        part = filled._replace(labels=filled.labels[here], loss_weight=filled.loss_weight[here])
        tally.add(part, templates, torch.from_numpy(loss[here]), first_id=first)


def test_losses_of_what_is_not_there_are_left_out() -> None:
    sums = np.zeros((2, len(TEMPLATE_NAMES), 2))
    language = TEMPLATE_NAMES.index("language")
    sums[:, language, 0] = 6.0, 3.0

    told = losses_of(sums, 3.0, sums[1].sum(axis=1))

    assert told == {"loss": 2.0, "loss_text": 2.0, "loss_vision": None, "loss_by_template": {"language": 2.0}}


def test_row_of_a_loss_that_is_no_number_is_json(plan: Plan) -> None:
    step = PlanLoader(plan, VOCABULARY, global_packs=1).step(0)
    tally = Tally(VOCABULARY)
    losses = torch.full((len(step.micro_batches[0].labels),), torch.nan)
    tally.add(step.micro_batches[0], step.documents.templates[0], losses)

    row = losses_of(tally.sums(), step.weight, step.documents.weight) | {"step": 3}
    told = finite(row)

    assert np.isnan(row["loss"])
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["loss"] is None and set(told["loss_by_template"].values()) == {None}
