"""What the benchmark of the trainer compares: the same documents for everybody, and figures from real runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import train
from benchmarks.train_runs.made_up import MadeUp, whole_documents, write_documents
from benchmarks.train_runs.padding import NO_LABEL, Documents, padded

from tokenmill.manifests.plans import Plan

MADE_UP = MadeUp(documents=60, side=4, words=10, context=96, codebook=33)
SIZES = {"codebook": 33, "side": 8, "step_ids": 256}
MODEL = {"hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 24}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return MADE_UP.write(tmp_path / "store")


def test_documents_for_the_peer_are_those_of_the_plan(plan: Plan, tmp_path: Path) -> None:
    documents = list(whole_documents(plan, MADE_UP.vocabulary))
    supervised = write_documents(tmp_path / "documents.npz", iter(documents))

    costs = plan.costs(0, plan.num_packs)
    pieces = int(costs.documents.sum())
    assert len(documents) == MADE_UP.documents < pieces  # some are cut in the plan
    assert sum(len(document.ids) for document in documents) == costs.tokens.sum()
    assert supervised == round(costs.weight.sum()) + pieces - len(documents)  # nothing predicts a piece's first id


def test_padded_batch_supervises_what_its_documents_do(plan: Plan, tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.npz", whole_documents(plan, MADE_UP.vocabulary))
    documents = Documents(str(tmp_path / "documents.npz"))
    chosen = [documents[number] for number in (0, 7, 59)]
    batch = padded(chosen, pad=5)

    longest = max(len(document["input_ids"]) for document in chosen)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(batch, (3, longest))
    for row, document in enumerate(chosen):
        length = len(document["input_ids"])
        assert batch["attention_mask"][row].sum() == length
        assert (batch["input_ids"][row, length:] == 5).all()
        assert (batch["labels"][row, :length] == document["labels"]).all()
        assert (batch["labels"][row, length:] == NO_LABEL).all()


@pytest.mark.slow
def test_sweep_of_devices_gives_speed_share_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    said = json.dumps({"model": MODEL, "precision": "fp32", "zero_stage": 0})
    arguments = ["--sweep", "--models", "tiny", "--contexts", "64", "--steps", "4", "--warm-up-steps", "2",
                 "--peak-tflops", "0.05", "--set", said, "--sizes", json.dumps(SIZES), "--json"]  # fmt: skip
    train.main(arguments)

    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["model"] == "tiny"
    assert row["settings"]["global_packs_per_step"] == 4
    assert row["supervised"] <= row["ids"] <= 2 * 4 * 64
    assert row["tokens_per_s"] == pytest.approx(row["ids"] / row["seconds"])
    assert np.isclose(row["mfu"], row["tflops_per_s"] / 0.05)
    assert row["tflops_per_s"] * 1e12 * row["seconds"] >= 6 * row["ids"] * 16 * 299
    assert row["memory_gib"] > 0.1
