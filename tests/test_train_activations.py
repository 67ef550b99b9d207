"""What the forward pass keeps, where, and that gradients do not hang on it; compiling, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tokenmill.errors import RecipeError
from tokenmill.recipe import check_recipe
from tokenmill.settings_train import ModelSettings, TrainSettings
from tokenmill.tokenize.documents import Assembled
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.activations import SMALLEST_BYTES, Checkpointing, keep_activations
from tokenmill.train.compiling import check_compiler, compile_layers
from tokenmill.train.engine import deepspeed_config
from tokenmill.train.model import Batch, PackedModel, build_model
from tokenmill.train.packs import build_pack

VOCABULARY = byte_vocabulary(64)
CONTEXT, HIDDEN, LAYERS = 512, 48, 3
SIZES = ModelSettings(hidden=HIDDEN, layers=LAYERS, heads=4, kv_heads=2, ffn=64, dropout=0.1)


def batch_on(device: str = "cpu", lengths: tuple[int, ...] = (200, 90, 222)) -> Batch:
    rng = np.random.default_rng(0)
    documents = [
        Assembled(rng.integers(0, VOCABULARY.size, n).astype(np.int32), np.ones(n, np.float32)) for n in lengths
    ]
    return Batch.of(build_pack(documents, CONTEXT, VOCABULARY.pad), device)


def gradients(model: PackedModel, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(batch)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def layer_outputs_alive(model: PackedModel, batch: Batch) -> list[bool]:
    """Run forward, and tell of each layer's output whether its memory is still held."""
    held: list[StorageWeakRef] = []
    hooks = [
        layer.register_forward_hook(
            lambda _layer, _inputs, output: held.append(StorageWeakRef(output.untyped_storage()))
        )
        for layer in model.causal.get_decoder().layers
    ]
    total, _losses = model(batch)
    alive = [not reference.expired() for reference in held]
    for hook in hooks:
        hook.remove()
    del total
    return alive


def test_gradients_are_the_same_bits_whatever_is_kept_and_where() -> None:
    models = {
        where: build_model(SIZES, VOCABULARY, CONTEXT, checkpointing=where) for where in ("none", "device", "cpu")
    }
    found = {where: gradients(model.train(), batch_on()) for where, model in models.items()}

    assert len(found["none"]) > 20
    for where in ("device", "cpu"):
        assert all(torch.equal(found["none"][name], found[where][name]) for name in found["none"]), where


@pytest.mark.parametrize(("where", "alive"), [("none", True), ("device", True), ("cpu", False)])
def test_outputs_of_layers_are_let_go_of_only_if_the_host_keeps_them(where: Checkpointing, alive: bool) -> None:
    model = build_model(SIZES, VOCABULARY, CONTEXT, checkpointing=where).train()

    assert layer_outputs_alive(model, batch_on())[:-1] == [alive] * (LAYERS - 1)


def test_host_gets_what_enters_each_layer_and_no_weight() -> None:
    causal = build_model(SIZES, VOCABULARY, CONTEXT).causal.train()
    host = keep_activations(causal, "cpu")
    assert host is not None
    hidden = torch.randn(1, CONTEXT, HIDDEN, requires_grad=True)
    batch = batch_on()

    outputs = causal.get_decoder()(
        inputs_embeds=hidden * 1.0, position_ids=batch.position_ids[None], use_cache=False, documents=batch.documents
    )
    one = CONTEXT * HIDDEN * 4
    norms = host.moved_bytes - LAYERS * one
    outputs.last_hidden_state.sum().backward()

    assert one > SMALLEST_BYTES
    assert 0 <= norms <= 3 * one  # what the last norm keeps
    assert norms % one == 0
    assert hidden.grad is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler asks for it and hides what it is told
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no compiler")
def test_compiled_layers_give_the_gradients_of_others_and_serve_packs_of_all_borders() -> None:
    plain = build_model(SIZES, VOCABULARY, CONTEXT, checkpointing="cpu").train()
    compiled = build_model(SIZES, VOCABULARY, CONTEXT, checkpointing="cpu").train()
    batches = [batch_on(lengths=lengths) for lengths in ((200, 90, 222), (30, 80), (CONTEXT,))]
    expected = [gradients(plain, batch) for batch in batches]

    compile_layers(compiled.causal)
    counts = []
    for batch, wanted in zip(batches, expected, strict=True):
        found = gradients(compiled, batch)
        assert all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5) for name in wanted)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] >= 4
    assert set(counts) == {counts[0]}


def test_evaluation_between_a_forward_and_its_backward_disturbs_nothing() -> None:
    model = build_model(SIZES, VOCABULARY, CONTEXT, checkpointing="cpu").train()
    expected = gradients(model, batch_on())

    torch.manual_seed(1)
    model.zero_grad()
    total, _losses = model(batch_on())
    with torch.no_grad():
        model(batch_on())
    model(batch_on())[0].backward(retain_graph=False)
    model.zero_grad()
    total.backward()

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_memory_is_less_with_activations_on_the_host() -> None:
    sizes = ModelSettings(hidden=1024, layers=12, heads=8, kv_heads=2, ffn=2048)
    peaks, found = {}, {}
    for where in ("device", "cpu"):
        model = build_model(sizes, VOCABULARY, CONTEXT, checkpointing=where).to("cuda", torch.bfloat16).train()
        batch = batch_on("cuda")
        gradients(model, batch)
        torch.cuda.reset_peak_memory_stats()
        found[where] = gradients(model, batch)
        peaks[where] = torch.cuda.max_memory_allocated()
        del model
    assert peaks["cpu"] < peaks["device"]
    assert all(torch.equal(found["cpu"][name], found["device"][name]) for name in found["cpu"])


def test_checkpointing_said_as_a_flag_means_on_the_device() -> None:
    assert TrainSettings(activation_checkpointing=True).activation_checkpointing == "device"
    assert TrainSettings(activation_checkpointing=False).activation_checkpointing == "none"


def test_offload_is_what_deepspeed_is_told() -> None:
    def parts(**changes: object) -> set[str]:
        config = deepspeed_config(TrainSettings.model_validate({"device": "cpu", **changes}), 1)["zero_optimization"]
        return {name for name in config if name.startswith("offload") and config[name]["device"] == "cpu"}

    assert parts() == set()
    assert parts(zero_stage=1, offload="optimizer") == {"offload_optimizer"}
    assert parts(zero_stage=3, offload="parameters") == {"offload_optimizer", "offload_param"}


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"offload": "optimizer", "zero_stage": 0}, "offload optimizer needs zero_stage 1 or more, found 0"),
        ({"offload": "parameters", "zero_stage": 2}, "offload parameters needs zero_stage 3 or more, found 2"),
        ({"compile": True, "zero_stage": 3}, "compile with zero_stage 3"),
        ({"activation_checkpointing": "disk"}, "activation_checkpointing: Input should be 'none', 'device' or 'cpu'"),
        ({"timeout_s": 0}, "timeout_s: Input should be greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(train: dict[str, object], told: str) -> None:
    recipe = {"root": "r", "sources": {"a": {"kind": "jsonl", "url": "u"}}, "train": train}

    with pytest.raises(RecipeError, match=told):
        check_recipe(recipe, "my.yaml")


def test_compiling_without_a_compiler_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"train.compile: needs a compiler \(g\+\+ or clang\+\+; CXX names another\)"):
        check_compiler("cpu")
    (tmp_path / "my-cxx").write_text("#!/bin/sh\n")
    (tmp_path / "my-cxx").chmod(0o755)
    monkeypatch.setenv("CXX", "my-cxx")
    check_compiler("cpu")
