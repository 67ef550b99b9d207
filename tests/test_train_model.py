"""Model, attention and loss: packed equals separate, chunked equals plain, and what comes out opens in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tokenmill.errors import RecipeError
from tokenmill.settings_train import ModelSettings, TrainSettings
from tokenmill.tokenize.documents import Assembled
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.attention import Documents, packed_attention
from tokenmill.train.loss import plain_loss
from tokenmill.train.model import Batch, PackedModel, build_model, named_parameters, parameter_groups
from tokenmill.train.packs import build_pack, filler_pack
from tokenmill.train.schedule import learning_rate

VOCABULARY = byte_vocabulary(64)
SMALL = ModelSettings(hidden=32, layers=2, heads=4, kv_heads=2, ffn=64)


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return build_model(SMALL, VOCABULARY, 128, loss_chunk_tokens=24)


def documents(*lengths: int, seed: int = 0) -> list[Assembled]:
    rng = np.random.default_rng(seed)
    return [
        Assembled(rng.integers(0, VOCABULARY.size, n).astype(np.int32), np.r_[0, rng.random(n - 1)].astype(np.float32))
        for n in lengths
    ]


@torch.no_grad()
def test_packed_documents_have_the_logits_they_have_alone(model: PackedModel) -> None:
    model.eval()
    parts = documents(40, 1, 30, 2, 50)
    packed = model.logits(Batch.of(build_pack(parts, 128, VOCABULARY.pad), "cpu"))

    start = 0
    for part in parts:
        alone = model.logits(Batch.of(build_pack([part], len(part.ids), VOCABULARY.pad), "cpu"))
        assert (packed[start : start + len(part.ids)] - alone).abs().max() <= 1e-5
        start += len(part.ids)


@torch.no_grad()
def test_changing_one_document_changes_no_other(model: PackedModel) -> None:
    model.eval()
    first, second, third = documents(40, 30, 50)
    (other,) = documents(30, seed=1)

    before = model.logits(Batch.of(build_pack([first, second, third], 128, VOCABULARY.pad), "cpu"))
    after = model.logits(Batch.of(build_pack([first, other, third], 128, VOCABULARY.pad), "cpu"))

    assert torch.equal(before[:40], after[:40])
    assert torch.equal(before[70:120], after[70:120])
    assert not torch.allclose(before[40:70], after[40:70])


@torch.no_grad()
def test_model_agrees_with_transformers_own_attention(model: PackedModel, tmp_path: Path) -> None:
    from transformers import Emu3ForCausalLM

    model.eval()
    model.causal.save_pretrained(tmp_path)
    reference = Emu3ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    (document,) = documents(60)

    ours = model.logits(Batch.of(build_pack([document], 60, VOCABULARY.pad), "cpu"))
    theirs = reference(torch.from_numpy(document.ids.astype(np.int64))[None], use_cache=False).logits[0]

    assert (ours - theirs).abs().max() <= 1e-5


def test_attention_without_borders_is_refused_instead_of_leaking() -> None:
    heads = torch.zeros(1, 2, 8, 4)

    with pytest.raises(ValueError, match="borders"):
        packed_attention(nn.Module(), heads, heads, heads, None)
    with pytest.raises(ValueError, match="borders up to 4"):
        packed_attention(nn.Module(), heads, heads, heads, None, documents=Documents.at([0, 4]))


def test_chunked_loss_through_the_model_equals_plain_with_all_gradients(model: PackedModel) -> None:
    model.train()
    batch = Batch.of(build_pack(documents(40, 30, 50), 128, VOCABULARY.pad), "cpu")

    ours = gradients_of(model, model(batch)[0])
    theirs = gradients_of(
        model, plain_loss(model.hidden(batch), model.causal.lm_head.weight, batch.labels, batch.loss_weight)
    )

    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() <= 1e-5 * max(1.0, theirs[name].abs().max()) for name in ours)


def test_loss_of_a_filler_is_0_and_reaches_every_parameter(model: PackedModel) -> None:
    model.train()
    total, _ = model(Batch.of(filler_pack(VOCABULARY.pad), "cpu"))

    gradients = gradients_of(model, total)

    assert total.item() == 0
    assert len(gradients) == len(list(named_parameters(model)))
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_dropout_is_on_the_embeddings_in_training_alone() -> None:
    dropped = build_model(SMALL.model_copy(update={"dropout": 0.5}), VOCABULARY, 64)
    batch = Batch.of(build_pack(documents(60), 64, VOCABULARY.pad), "cpu")

    dropped.causal.model.layers = nn.ModuleList()
    dropped.causal.config.num_hidden_layers = 0
    assert torch.equal(dropped.eval().hidden(batch), dropped.eval().hidden(batch))
    zeros = (dropped.train().hidden(batch) == 0).float().mean()
    assert 0.4 < zeros < 0.6


def test_activation_checkpointing_changes_no_gradient(model: PackedModel) -> None:
    model.train()
    saving = build_model(SMALL, VOCABULARY, 128, loss_chunk_tokens=24, checkpointing="device").train()
    batch = Batch.of(build_pack(documents(40, 30, 50), 128, VOCABULARY.pad), "cpu")

    ours, theirs = gradients_of(saving, saving(batch)[0]), gradients_of(model, model(batch)[0])

    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_parameter_groups_decay_matrices_only(model: PackedModel) -> None:
    decayed, kept = (group["params"] for group in parameter_groups(model, 0.1))

    assert all(parameter.ndim == 2 for parameter in decayed)
    assert any(parameter is model.causal.get_input_embeddings().weight for parameter in kept)
    assert len(decayed) + len(kept) == len(list(model.parameters()))


def test_model_from_weights_of_another_vocabulary_is_refused(model: PackedModel, tmp_path: Path) -> None:
    model.causal.save_pretrained(tmp_path)

    again = build_model(ModelSettings.model_validate({"from": str(tmp_path)}), VOCABULARY, 128)
    assert torch.equal(again.causal.lm_head.weight, model.causal.lm_head.weight)
    with pytest.raises(
        RecipeError, match="has 330 ids and no tokenizer beside it, the plan's vocabulary bytes has 331"
    ):
        build_model(ModelSettings.model_validate({"from": str(tmp_path)}), byte_vocabulary(65), 128)


def test_emu3_8b_preset_has_the_published_size() -> None:
    from transformers import Emu3ForCausalLM

    from tokenmill.train.model import model_config

    config = model_config(ModelSettings(preset="emu3-8b"), VOCABULARY, 9216)
    config.vocab_size, config.pad_token_id = 184_622, 151_643
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Emu3ForCausalLM(config).parameters())

    assert round(parameters / 1e9, 2) == 8.49


def test_learning_rate_warms_up_and_ends_at_its_share() -> None:
    settings = TrainSettings(lr=1.0, warmup_steps=4, schedule="cosine", min_lr_share=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(101)]

    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.gpu
def test_varlen_attention_on_cuda_equals_attention_per_document() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(1, 4, 200, 64, generator=generator, device="cuda", dtype=torch.bfloat16)
    key, value = (query[:, :2].flip(2) * factor for factor in (0.5, 2.0))
    borders = Documents.at([0, 70, 71, 200], "cuda")

    fast, _ = packed_attention(nn.Module(), query, key, value, None, documents=borders)
    slow, _ = packed_attention(nn.Module(), query.float(), key.float(), value.float(), None, documents=borders)

    assert (fast.float() - slow).abs().max() < 2e-2


def gradients_of(model: PackedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in named_parameters(model) if p.grad is not None}
