"""The estimate against what is there: every tensor alive on two ranks, every tensor that autograd saves.

Run as a script, this file is one of the two ranks.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill.cli import main
from tokenmill.errors import RecipeError
from tokenmill.settings_train import Checkpointing, ModelSettings, TrainSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.attention import Documents
from tokenmill.train.devices import device_of, named_device
from tokenmill.train.engine import deepspeed_config
from tokenmill.train.estimate import Machines, Workload, estimate, logits_bytes
from tokenmill.train.estimate_activations import SavedTensors, activation_bytes
from tokenmill.train.estimate_state import heaviest_rank, state_bytes
from tokenmill.train.model import (
    Batch,
    build_model,
    described_config,
    embedding_dropout,
    model_config,
    weightless,
)
from tokenmill.train.world import sequence_group

VOCABULARY = byte_vocabulary(33)
CONTEXT = 128
SIZES = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48}
CASES = [  # ZeRO stage, precision, that of sums of gradients where it is not the usual one, what is offloaded
    (0, "fp32", None, "none"), (1, "fp32", None, "none"), (2, "fp32", None, "none"), (3, "fp32", None, "none"),
    (1, "bf16", None, "none"), (2, "bf16", None, "none"), (3, "bf16", None, "none"), (2, "bf16", "bf16", "none"),
    (1, "bf16", None, "optimizer"), (2, "bf16", "bf16", "optimizer"), (3, "bf16", None, "parameters"),
]  # fmt: skip
KEY_HEADS = (2, 1)  # of a model whose sequence two ranks share
SMALLEST_BYTES = 33  # Adam's step counts and rotary frequencies lie below
MICRO_STEPS = 2


@pytest.mark.slow
def test_state_bytes_are_those_of_all_tensors_alive_on_two_ranks(tmp_path: Path) -> None:
    ranks = [_start(rank, tmp_path) for rank in (0, 1)]
    outputs = [rank.communicate()[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-3000:]

    for rank in (0, 1):
        rows = json.loads((tmp_path / f"alive-{rank}.json").read_text())
        assert len(rows) == len(CASES)
        for row in rows:
            settings = _settings(*row["case"])
            model = weightless(model_config(settings.model, VOCABULARY, CONTEXT))
            found = state_bytes(model, deepspeed_config(settings, MICRO_STEPS), ranks=2, rank=rank)
            lasting = found.weights + found.optimizer + found.host + (found.bucket if settings.zero_stage == 3 else 0)
            bucket = found.bucket if settings.zero_stage == 1 else 0  # ZeRO 1 gives it back with the last backward,
            late = bucket if row["case"][1:3] == ["bf16", None] else 0  # or, where it sums in fp32, with the step
            assert row["alive"] == {
                "between_micro_steps": lasting + bucket + found.gradients.between_micro_steps,
                "for_step": lasting + late + found.gradients.for_step,
                "between_steps": lasting + found.gradients.between_steps,
            }, (rank, row["case"])
        for heads, saved in json.loads((tmp_path / f"saved-{rank}.json").read_text()).items():
            config = described_config(ModelSettings(**SIZES | {"kv_heads": int(heads)}), VOCABULARY, CONTEXT)
            found_half = activation_bytes(config, 0.0, torch.float32, CONTEXT // 2, cuda=False, shared_by=2)
            assert found_half.kept("none") == pytest.approx(saved, rel=0.15), (rank, heads)


@pytest.mark.parametrize("checkpointing", ["none", "device"])
@pytest.mark.parametrize(
    ("precision", "sizes"),
    [("fp32", {}), ("bf16", {"kv_heads": 4}), ("bf16", {"dropout": 0.1}), ("fp32", {"hidden": 96, "ffn": 64})],
)
def test_activations_are_within_15_percent_of_what_hooks_count(
    precision: str, sizes: dict[str, Any], checkpointing: Checkpointing
) -> None:
    settings, length = (
        ModelSettings(**({"hidden": 64, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 160} | sizes)),
        384,
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build_model(settings, VOCABULARY, length, checkpointing=checkpointing).to(dtype).train()
    saved = SavedTensors(model)
    with saved.counting():
        model.hidden(_batch(length, (0, 100, 300, 384)))

    config = described_config(settings, VOCABULARY, length)
    found = activation_bytes(config, embedding_dropout(config, settings), dtype, length, cuda=False)

    assert found.kept(checkpointing) == pytest.approx(saved.bytes, rel=0.15)
    if checkpointing == "none":
        assert found.kept("none") == saved.bytes


def test_activations_on_cuda_are_fewer_than_on_a_cpu_and_one_layer_is_recomputed() -> None:
    config = described_config(ModelSettings(dropout=0.1), VOCABULARY, 256)

    cpu, cuda = (activation_bytes(config, 0.1, torch.bfloat16, 256, cuda=cuda) for cuda in (False, True))

    assert cuda.layer < cpu.layer
    assert cuda.recomputed("device") == cuda.layer and cuda.recomputed("none") == 0
    assert cuda.kept("cpu") < cuda.kept("device") < cuda.kept("none")
    assert cuda.on_host("cpu") == 5 * 256 * 192 * 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_bytes_are_about_what_the_loss_holds_at_most(precision: str) -> None:
    settings = TrainSettings(precision=precision, loss_chunk_tokens=64, model=ModelSettings(**SIZES))  # type: ignore[arg-type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build_model(settings.model, VOCABULARY, CONTEXT, loss_chunk_tokens=64).to(dtype)
    batch = _batch(CONTEXT, (0, CONTEXT))
    hidden = model.hidden(batch).detach().requires_grad_()
    output = model.causal.get_output_embeddings()

    peak = _peak_bytes(lambda: output(hidden, batch.labels, batch.loss_weight))

    assert peak == pytest.approx(logits_bytes(settings, model.causal.config, CONTEXT), rel=0.15)


def test_estimate_of_an_8b_llama_on_8_h100_is_near_what_was_measured() -> None:
    model = {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "ffn": 14336}
    llama = byte_vocabulary(128_256 - 266)
    given = {"precision": "bf16", "zero_stage": 3, "global_packs_per_step": 8, "model": model}
    measured = 6667.0  # torchtitan's, with some layers recomputed (PEERS.md §3)
    work, h100 = Workload(context=8192, tokens=8192, squares=8192**2), Machines(device=named_device("H100"), gpus=8)

    plain, recomputing = (
        estimate(TrainSettings.model_validate(given | {"activation_checkpointing": on}), llama, work, h100).to_json()
        for on in (False, True)
    )

    assert recomputing["tokens_per_s_of_a_gpu"] < measured < plain["tokens_per_s_of_a_gpu"]
    assert plain["tokens_per_s_of_a_gpu"] == pytest.approx(measured, rel=0.2)
    assert plain["mfu"] == pytest.approx(0.4)
    assert recomputing["fits"]


def test_estimate_more_memory_where_a_corner_of_the_embedding_is_kept() -> None:
    model = weightless(model_config(ModelSettings(preset="emu3-8b"), byte_vocabulary(184_000), 5120))
    settings = TrainSettings(precision="bf16", zero_stage=2)

    found = heaviest_rank(model, deepspeed_config(settings, 1), ranks=64)

    assert found.gradients.for_step > 2 * 184_000 * 4096
    assert found.gradients.for_step > 10 * 2 * sum(one.numel() for one in model.parameters()) / 64


def test_estimate_more_gpus_than_packs_refused() -> None:
    work = Workload(context=64, tokens=64, squares=64**2)
    with pytest.raises(RecipeError, match="17 GPUs cannot share 16 packs"):
        estimate(TrainSettings(), VOCABULARY, work, Machines(device=named_device("h100"), gpus=17))


@pytest.mark.parametrize(
    ("name", "device"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100-PCIe"), ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
     ("NVIDIA A100 80GB PCIe", "A100"), ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("NVIDIA L40S", "L40S"),
     ("NVIDIA B200", "B200")],
)  # fmt: skip
def test_device_is_found_by_its_drivers_name(name: str, device: str) -> None:
    found = device_of(name)
    assert found is not None and found.name == device
    assert named_device(device) is found


def test_device_nobody_knows_has_no_peak_and_is_refused_by_name() -> None:
    assert device_of("NVIDIA GeForce GTX 970") is None
    with pytest.raises(RecipeError, match=r"--gpu GTX-970: known are .*H100"):
        named_device("GTX-970")


def test_train_estimate_without_data_tells_from_the_recipe_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"root: {tmp_path / 'root'}\nsources: {{a: {{kind: images, url: {tmp_path / 'none'}}}}}\n"
        "plan: {context: 512}\ntrain: {steps: 100, global_packs_per_step: 18, zero_stage: 3}\n"
    )

    assert main(["train", str(recipe), "--estimate", "--gpu", "A100", "--gpus", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpu"], found["gpus"], found["steps"], found["micro_steps"]) == ("A100", 4, 100, 5)
    assert found["tokens"] == 100 * 18 * 512
    assert found["days"] == pytest.approx(100 * found["step_s"] / 86_400)
    assert found["idle"] == pytest.approx(0.1)
    parts = found["memory_bytes"]
    alternatives = parts["logits"], parts["recomputed_layer"]
    assert parts["total"] == sum(parts.values()) - parts["total"] - min(alternatives)
    assert not (tmp_path / "root").exists()

    assert main(["train", str(recipe), "--estimate", "train.steps=null"]) == 0
    told = capsys.readouterr().out
    assert "days: unknown" in told and "fits" in told

    phases = ["plan.phases={a: {}, b: {context: 1024}}", "train.phases={a: {steps: 5}, b: {zero_stage: 1}}"]
    assert main(["train", str(recipe), "--estimate", "--json", *phases]) == 0
    both = json.loads(capsys.readouterr().out)
    assert [one["steps"] for one in both["phases"].values()] == [5, 100]
    assert both["days"] == pytest.approx(sum(one["days"] for one in both["phases"].values()))
    assert main(["train", str(recipe), "--estimate", *phases]) == 0
    assert "phase b:" in capsys.readouterr().out

    assert main(["train", str(recipe), "--gpus", "4"]) == 2
    assert "--gpus: goes with --estimate" in capsys.readouterr().err


def test_train_estimate_of_emu3s_vocabulary_needs_no_file_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[1] / "train/recipes/8b-phase2.yaml"

    assert main(["train", str(recipe), "--estimate", "--gpus", "64", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == pytest.approx(8.49e9, rel=1e-3)
    assert found["memory_bytes"]["weights"] == 2 * found["parameters"]


def _batch(length: int, borders: tuple[int, ...]) -> Batch:
    ids = torch.randint(0, VOCABULARY.size, (2, length), generator=torch.Generator().manual_seed(0))
    return Batch(ids[0].clone(), ids[1].clone(), torch.ones(length), torch.arange(length), Documents.at(borders))


def _peak_bytes(work: Callable[[], object]) -> int:
    """Run something and return the most memory that torch held beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


def _settings(stage: int, precision: str, sums: str | None, offload: str) -> TrainSettings:
    small = {"reduce_bucket_size": 20_000, "stage3_param_persistence_threshold": 600}
    over = {"zero_optimization": small} | ({"data_types": {"grad_accum_dtype": sums}} if sums else {})
    return TrainSettings.model_validate({
        "device": "cpu", "zero_stage": stage, "precision": precision, "offload": offload, "model": SIZES,
        "deepspeed": over,
    })  # fmt: skip


def _start(rank: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "TOKENMILL_RENDEZVOUS": f"file://{folder / 'rendezvous'}",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _be_a_rank(folder: Path) -> None:
    from torch import distributed

    from tokenmill.train.engine import start_distributed

    start_distributed(_settings(*CASES[0]))
    gc.freeze()  # what libraries brought along is not looked at each time
    rows = [{"case": case, "alive": _alive_through_a_step(*case)} for case in CASES]
    (folder / f"alive-{distributed.get_rank()}.json").write_text(json.dumps(rows))
    saved = {heads: _saved_of_half_a_sequence(heads, distributed.get_rank()) for heads in KEY_HEADS}
    (folder / f"saved-{distributed.get_rank()}.json").write_text(json.dumps(saved))
    distributed.destroy_process_group()


def _saved_of_half_a_sequence(key_heads: int, rank: int) -> int:
    """Count what autograd saves on a rank that shares its sequence with the other."""
    model = build_model(ModelSettings(**SIZES | {"kv_heads": key_heads}), VOCABULARY, CONTEXT).train()
    whole, half = _batch(CONTEXT, (0, 100, CONTEXT)), slice(rank * CONTEXT // 2, (rank + 1) * CONTEXT // 2)
    parts = (whole.input_ids, whole.labels, whole.loss_weight, whole.position_ids)
    saved = SavedTensors(model)
    with saved.counting():
        model.hidden(Batch(*(part[half] for part in parts), whole.documents, sequence_group(2)))
    return saved.bytes


def _alive_through_a_step(*case: Any) -> dict[str, int]:
    """Train two steps; returns the bytes of all tensors that are alive at moments of the second."""
    from tokenmill.train.engine import start_engine

    settings, batch = _settings(*case), _batch(CONTEXT, (0, CONTEXT))
    before = _alive()
    model = build_model(settings.model, VOCABULARY, CONTEXT, loss_chunk_tokens=64)
    engine = start_engine(model, settings, MICRO_STEPS)
    found = {}
    for _step in range(2):
        for moment in ("between_micro_steps", "for_step"):
            total, losses = engine(batch)
            engine.backward(total, scale_wrt_gas=False)
            del total, losses
            found[moment] = _bytes_beside(before)
            engine.step()
    found["between_steps"] = _bytes_beside(before)
    return found


def _alive() -> dict[int, torch.UntypedStorage]:
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and not tensor.is_meta:
                    storage = tensor.untyped_storage()
                    found[storage._cdata] = storage
    return found


def _bytes_beside(before: dict[int, torch.UntypedStorage]) -> int:
    """Count the tensors that are alive and were not before, by storage."""
    sizes = (storage.nbytes() for key, storage in _alive().items() if key not in before)
    return sum(size for size in sizes if size >= SMALLEST_BYTES)


if __name__ == "__main__":
    _be_a_rank(Path(sys.argv[1]))
