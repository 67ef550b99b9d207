"""One run, however it is shared: by ranks, by ranks that share each pack, by accumulation, under every ZeRO stage.

Run as a script, this file is the parent of all ranks: it loads torch and DeepSpeed once and forks them, for one, two
and four ranks.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.loader import PlanLoader
from tokenmill.train.samples import SampleReader

pytestmark = pytest.mark.slow

VOCABULARY = byte_vocabulary(33)
CONTEXT = 127  # neither 2 nor 4 ranks divide it
SETTINGS: Mapping[str, Any] = {
    "device": "cpu", "global_packs_per_step": 4, "micro_packs": 4, "schedule": "constant", "warmup_steps": 5,
    "tensorboard": False, "log_samples": True, "checkpoint_every": 1000, "z_loss": 1e-3,
    "evaluation": {"phase": "held_out", "every": 5, "packs": 3},
}  # fmt: skip
SHORT, LONG = 10, 50
FIGURES = ("loss", "loss_text", "loss_vision", "grad_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    ranks: int = 1
    stage: int = 0
    sequence: int = 1
    micro_packs: int = 4
    heads: tuple[int, int] = (4, 2)
    checkpointing: bool = False
    precision: str = "fp32"
    steps: int = SHORT
    run: str = ""

    @property
    def name(self) -> str:
        shape = f"heads{self.heads[0]}-{self.heads[1]}-{self.precision}"
        return self.run or f"ranks{self.ranks}-zero{self.stage}-sp{self.sequence}-micro{self.micro_packs}-{shape}"


REFERENCE = Case(steps=LONG)
CASES = [
    REFERENCE,
    Case(micro_packs=2, steps=LONG),
    *(Case(stage=stage) for stage in (1, 2, 3)),
    *(Case(ranks=2, stage=stage, steps=LONG if stage == 2 else SHORT) for stage in range(4)),
    *(Case(ranks=2, stage=stage, sequence=2, steps=LONG if stage == 3 else SHORT) for stage in range(4)),
    Case(ranks=2, stage=1, sequence=2, micro_packs=3, checkpointing=True),  # with fillers: 4 packs are no multiple of 3
    Case(ranks=4, stage=1, sequence=2, micro_packs=1, steps=5),
]
BFLOAT = [Case(ranks=2, stage=2, sequence=sequence, precision="bf16", steps=5) for sequence in (1, 2)]
MOVED = [Case(ranks=2, stage=2, sequence=2, steps=5, run="moved"), Case(ranks=4, stage=3, sequence=4, run="moved")]
LOGITS = [
    *(Case(ranks=2, stage=stage, sequence=sequence) for stage in range(4) for sequence in (1, 2)),
    *(Case(ranks=2, sequence=sequence, heads=(6, 3)) for sequence in (1, 2)),  # key heads that 2 ranks cannot share
]
LENGTHS = (40, 1, 30, 2, 50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as ranks:  # fmt: skip
        told, _ = ranks.communicate(json.dumps(made_plans(folder)), timeout=300)
    assert ranks.returncode == 0, told[-3000:]
    return folder


def made_plans(folder: Path) -> list[str]:
    """Write what is trained on, one sample of it broken, and what is evaluated on; the ranks load torch meanwhile."""
    store = open_store(str(folder / "store"))
    snapshot = write_token_source(store, "mixed", VOCABULARY, Amounts(images=30, texts=30, shards=1))
    plan = write_plan(store, [snapshot], PlanSettings(context=CONTEXT, held_out=0.2))
    held_out = PlanSettings(context=CONTEXT, held_out=0.2, part="held_out", phase="held_out")
    evaluated = write_plan(store, [snapshot], held_out)
    break_a_sample(plan, step=2)
    return [plan.folder.path, evaluated.folder.path]


def break_a_sample(plan: Plan, step: int) -> None:
    """Make a sample of a step unreadable: every rank that shares its pack sees that, and one of them counts it."""
    store = plan.folder.store
    victim = PlanLoader(plan, VOCABULARY, global_packs=4, threads=0).step(step).samples[0]
    row = SampleReader(store, plan.index_of).row(victim.shard, victim.sample)
    data = bytearray(store.read_bytes(victim.shard))
    data[row["text_offset"] : row["text_offset"] + 6] = b"broken"
    store.put(victim.shard, bytes(data))


@pytest.mark.parametrize("case", [*CASES[1:], MOVED[-1]], ids=lambda case: case.name)
def test_run_shared_otherwise_has_the_losses_gradients_and_samples_of_one_rank(trained: Path, case: Case) -> None:
    expected, found = rows_of(trained, REFERENCE)[: case.steps], rows_of(trained, case)

    assert len(found) == case.steps
    for ours, theirs in zip(found, expected, strict=True):
        tolerance = 1e-5 if ours["step"] <= SHORT else 1e-4
        figures = [name for name in FIGURES if theirs[name] is not None]  # a step may hold no picture
        expect = pytest.approx({name: theirs[name] for name in figures}, rel=tolerance)
        assert {name: ours[name] for name in figures} == expect, ours["step"]
    assert rows_of(trained, case, "samples") == rows_of(trained, REFERENCE, "samples")[: case.steps]


@pytest.mark.parametrize("case", [*CASES[1:], MOVED[-1]], ids=lambda case: case.name)
def test_held_out_losses_are_those_of_one_rank_however_packs_are_shared(trained: Path, case: Case) -> None:
    expected, found = (rows_of(trained, one, "evaluation") for one in (REFERENCE, case))

    assert len(found) == case.steps // 5
    for ours, theirs in zip(found, expected, strict=False):
        for figure in ("step", "packs", "weight", "unreadable", "loss", "loss_text", "loss_by_template"):
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-5 if ours["step"] <= SHORT else 1e-4), figure


def test_ranks_that_share_packs_in_bfloat16_lose_as_ranks_that_do_not(trained: Path) -> None:
    apart, together = ([row["loss"] for row in rows_of(trained, case)] for case in BFLOAT)

    assert together == pytest.approx(apart, rel=3e-3)


def test_unreadable_sample_is_counted_once_however_many_ranks_share_its_pack(trained: Path) -> None:
    expected = [row for row in rows_of(trained, REFERENCE, "unreadable") if row["step"] <= SHORT]
    counts = [row["unreadable"] for row in rows_of(trained, REFERENCE)]

    assert expected and sum(counts[:SHORT]) == len(expected)
    for case in [*CASES, MOVED[-1]]:
        assert [row for row in rows_of(trained, case, "unreadable") if row["step"] <= SHORT] == expected, case.name
        assert [row["unreadable"] for row in rows_of(trained, case)] == counts[: case.steps], case.name


@pytest.mark.parametrize("case", LOGITS, ids=lambda case: case.name)
def test_packed_documents_have_their_own_logits_in_every_engine(trained: Path, case: Case) -> None:
    packed, alone = (np.load(trained / f"{kind}-{case.name}.npy") for kind in ("packed", "alone"))
    on_one_rank = np.load(trained / f"packed-{replace(case, sequence=1).name}.npy")

    assert packed.shape == (sum(LENGTHS), VOCABULARY.size)
    assert np.ptp(packed) > 0.5
    assert np.abs(packed - alone).max() <= 1e-5
    assert np.abs(packed - on_one_rank).max() <= 1e-5


def test_ranks_that_share_packs_keep_half_of_what_the_backward_pass_needs(trained: Path) -> None:
    alone, shared = (json.loads((trained / f"saved-{case.name}.json").read_text()) for case in LOGITS[:2])

    assert 0.45 <= shared / alone <= 0.55


def rows_of(folder: Path, case: Case, kind: str = "metrics") -> list[dict[str, Any]]:
    lines = (folder / "store" / "checkpoints" / case.name / f"{kind}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _be_all_ranks(folder: Path) -> None:
    import deepspeed.runtime.zero.stage3  # noqa: F401
    import torch
    from transformers import Emu3ForCausalLM  # noqa: F401

    import tokenmill.train.loop  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # ZeRO 3 collects garbage with every engine it makes
    plans: list[str] = json.load(sys.stdin)
    for ranks in (1, 2, 4):
        children = [_forked(folder, plans, rank, ranks) for rank in range(ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(codes), f"{ranks} ranks ended with {codes}"


def _forked(folder: Path, plans: list[str], rank: int, ranks: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                       "TOKENMILL_RENDEZVOUS": f"file://{folder}/rendezvous-{ranks}"}  # fmt: skip
        _be_a_rank(folder, plans, ranks)
        code = 0
    finally:
        os._exit(code)


def _be_a_rank(folder: Path, plans: list[str], ranks: int) -> None:
    import traceback

    from torch import distributed

    from tokenmill.train.loop import train

    try:
        for case in [*CASES, *BFLOAT, *MOVED]:
            if case.ranks == ranks:
                assert train(_job(folder, plans, case)).finished
        for case in LOGITS:
            if case.ranks == ranks:
                _write_logits(folder, plans, case)
        distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        raise


def _job(folder: Path, plans: list[str], case: Case) -> Any:
    from tokenmill.settings_train import TrainSettings
    from tokenmill.train.job import TrainJob

    heads, kv_heads = case.heads
    own = {"run": case.name, "ranks": case.ranks, "zero_stage": case.stage, "sequence_parallel": case.sequence,
           "micro_packs": case.micro_packs, "steps": case.steps, "precision": case.precision,
           "activation_checkpointing": case.checkpointing,
           "model": {"hidden": 48, "layers": 2, "heads": heads, "kv_heads": kv_heads, "ffn": 48}}  # fmt: skip
    settings = TrainSettings.model_validate({**SETTINGS, **own})
    return TrainJob(root=str(folder / "store"), plan=plans[0], evaluation_plan=plans[1], settings=settings)


def _write_logits(folder: Path, plans: list[str], case: Case) -> None:
    """Compute the logits of packed documents, and of each document alone, through one engine."""
    import torch

    from tokenmill.train.training_run import start

    run = start(_job(folder, plans, case))
    run.engine.eval()
    saved = _saved_bytes(run)
    packed = _logits(run, LENGTHS)
    alone = torch.cat([_logits(run, (length,), number) for number, length in enumerate(LENGTHS)])
    if run.rank == 0:
        (folder / f"saved-{case.name}.json").write_text(json.dumps(saved))
        for kind, logits in (("packed", packed), ("alone", alone)):
            np.save(folder / f"{kind}-{case.name}.npy", logits.numpy())


def _saved_bytes(run: Any) -> int:
    """Count what a forward pass over a pack keeps on this rank for its backward pass, beside the weights."""
    import torch

    weights = {parameter.data_ptr() for parameter in run.model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        if tensor.data_ptr() not in weights:
            sizes[tensor.data_ptr()] = max(tensor.nbytes, sizes.get(tensor.data_ptr(), 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.model(_batch(run, (400, 100, 500)))
    return sum(sizes.values())


def _batch(run: Any, lengths: tuple[int, ...], first: int = 0) -> Any:
    from tokenmill.tokenize.documents import Assembled
    from tokenmill.train.model import Batch
    from tokenmill.train.packs import build_pack
    from tokenmill.train.sequence_parallel import part_of

    documents = []
    for number, length in enumerate(lengths, start=first):
        ids = np.random.default_rng(number).integers(0, VOCABULARY.size, length).astype(np.int32)
        documents.append(Assembled(ids, np.ones(length, np.float32)))
    pack = build_pack(documents, sum(lengths), VOCABULARY.pad)
    return Batch.of(part_of(pack, run.sequence, VOCABULARY.pad), run.device, run.sequence)


def _logits(run: Any, lengths: tuple[int, ...], first: int = 0) -> Any:
    import torch

    with torch.no_grad():
        mine = run.model.logits(_batch(run, lengths, first))
    parts = [torch.empty_like(mine) for _ in range(run.sequence.size)]
    if run.sequence.size > 1:
        torch.distributed.all_gather(parts, mine, group=run.sequence.group)
    return torch.cat(parts if run.sequence.size > 1 else [mine])[: sum(lengths)]


if __name__ == "__main__":
    _be_all_ranks(Path(sys.argv[1]))
