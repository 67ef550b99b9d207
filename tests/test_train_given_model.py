"""Models of others to go on from: rows that are kept, rows that are fresh, and what is refused by both names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.given_models import given, small_tokenizer
from tests.released_vision import SHAPE, write_whole

from tokenmill.errors import RecipeError
from tokenmill.settings_model import ModelSettings
from tokenmill.tokenize.documents import Assembled
from tokenmill.tokenize.token_meanings import Meaning, meanings_of, meanings_of_model
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary, byte_vocabulary
from tokenmill.train.model import Batch, PackedModel, build_model, named_parameters, parameter_groups
from tokenmill.train.packs import build_pack
from tokenmill.train.widening import widened

CODES = 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def words(tokenizer: Path) -> Vocabulary:
    return build_vocabulary({"name": "huggingface", "path": str(tokenizer), "codebook_size": CODES})


def built(path: Path, vocabulary: Vocabulary, pack: int = 128, **said: Any) -> PackedModel:
    return build_model(ModelSettings.model_validate({"from": str(path), **said}), vocabulary, pack)


def logits(model: PackedModel, ids: list[int]) -> torch.Tensor:
    model.eval()
    packed = build_pack([Assembled(np.array(ids, np.int32), np.ones(len(ids), np.float32))], len(ids), 0)
    with torch.no_grad():
        return model.logits(Batch.of(packed, "cpu"))


@pytest.mark.parametrize(("name", "changes"), [
    ("Llama", {}), ("Qwen2", {"tie_word_embeddings": True}), ("Qwen3", {}), ("Mistral", {"sliding_window": None}),
])  # fmt: skip
def test_given_model_widened_says_of_text_what_it_said_before(
    name: str, changes: dict[str, Any], tokenizer: Path, words: Vocabulary, tmp_path: Path
) -> None:
    import transformers

    path = given(name, tmp_path / name, tokenizer, **changes)
    before = getattr(transformers, f"{name}ForCausalLM").from_pretrained(path).eval()
    ids = words.encode("the red fox and two circles").tolist()

    model = built(path, words)

    with torch.no_grad():
        expected = before(torch.tensor(ids)[None], use_cache=False).logits[0]
    assert (logits(model, ids)[:, : words.text.size] - expected[:, : words.text.size]).abs().max() <= 1e-5
    assert model.causal.config.vocab_size == words.size == model.causal.get_input_embeddings().weight.shape[0]
    is_tied = model.causal.get_output_embeddings().weight is model.causal.get_input_embeddings().weight
    assert is_tied == bool(changes.get("tie_word_embeddings"))


def test_given_model_widened_learns_all_its_rows(tokenizer: Path, words: Vocabulary, tmp_path: Path) -> None:
    model = built(given("Qwen2", tmp_path / "model", tokenizer, tie_word_embeddings=True), words)
    ids = np.array([words.bos, *words.encode("red").tolist(), words.sov, words.vision_base + 3, words.eos], np.int32)
    batch = Batch.of(build_pack([Assembled(ids, np.ones(len(ids), np.float32))], 16, words.pad), "cpu")

    model(batch)[0].backward()

    assert all(parameter.grad is not None for parameter in model.parameters())
    (groups, kept) = parameter_groups(model, 0.1)
    assert any(one is model.causal.get_input_embeddings().weight for one in kept["params"])
    assert len(groups["params"]) + len(kept["params"]) == len(list(named_parameters(model)))


def test_fresh_rows_are_about_the_mean_and_all_different() -> None:
    rows = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 3
    kept = np.array([5, -1, 7, -1, -1])

    found = widened(rows, kept, 3)

    assert torch.equal(found[[0, 2]], rows[[5, 7]])
    assert (found[[1, 3, 4]] - rows.mean(0)).abs().max() < 0.25
    assert len({tuple(row.tolist()) for row in found}) == 5
    assert torch.equal(found, widened(rows, kept, 3))
    assert not torch.equal(found, widened(rows, kept, 4))


def test_rows_follow_their_tokens_into_another_order_of_ids(words: Vocabulary, tmp_path: Path) -> None:
    other = small_tokenizer(tmp_path / "other", reverse=True)
    path = given("Llama", tmp_path / "model", other)
    theirs = json.loads((other / "tokenizer.json").read_text())["model"]["vocab"]
    rows = torch.tensor(list(range(words.size)))
    given_rows = open_rows(path)

    found = built(path, words).causal.get_input_embeddings().weight

    ours = json.loads((Path(words.spec["path"]) / "tokenizer.json").read_text())["model"]["vocab"]
    shared = [token for token in ours if token in theirs]
    assert len(shared) > 250 and any(ours[token] != theirs[token] for token in shared)
    for token in shared:
        assert torch.equal(found[ours[token]], given_rows[theirs[token]]), token
    assert len(rows) == len(found)


def open_rows(path: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")["model.embed_tokens.weight"]


def test_rows_of_bytes_are_found_in_a_byte_level_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    path = given("Llama", tmp_path / "model", tokenizer)
    vocabulary = byte_vocabulary(CODES)
    theirs = {meaning: index for index, meaning in (meanings_of_model(str(path)) or {}).items()}
    rows = open_rows(path)

    found = built(path, vocabulary).causal.get_input_embeddings().weight

    assert all(torch.equal(found[byte], rows[theirs[Meaning(bytes([byte]))]]) for byte in range(256))
    assert torch.equal(found[vocabulary.pad], rows[theirs[Meaning(b"<|endoftext|>", is_named=True)]])


def test_rows_by_id_and_fresh_rows_ask_for_no_tokenizer(words: Vocabulary, tmp_path: Path) -> None:
    path = given("Llama", tmp_path / "model", None)
    rows = open_rows(path)

    by_id = built(path, words, rows="ids").causal.get_input_embeddings().weight
    anew = built(path, words, rows="fresh").causal.get_input_embeddings().weight

    assert torch.equal(by_id[: words.text.size], rows[: words.text.size])
    assert not any(torch.equal(one, two) for one, two in zip(anew, rows, strict=False))
    with pytest.raises(RecipeError, match=r"has 320 ids and no tokenizer beside it, the plan's vocabulary huggingface"):
        built(path, words)


def test_meanings_of_words_markers_and_codes_are_all_different(words: Vocabulary) -> None:
    found = meanings_of(words)

    assert found[words.vision_base + 7] == Meaning(b"<|visual token 000007|>", is_named=True)
    text = words.encode(" red fox").tolist()
    assert b"".join(found[index].content for index in text) == b" red fox"


def test_given_model_of_a_shorter_context_is_refused_by_both_names(
    tokenizer: Path, words: Vocabulary, tmp_path: Path
) -> None:
    path = given("Llama", tmp_path / "model", tokenizer)

    with pytest.raises(RecipeError, match=r"is made for 256 ids, and packs of the plan have 512 \(plan\.context\)"):
        built(path, words, 512)
    longer = built(path, words, 512, context=1024, rope_base=5e5).causal.config
    assert longer.max_position_embeddings == 1024
    assert longer.rope_parameters["rope_theta"] == 5e5
    with pytest.raises(RecipeError, match=r"train\.model\.context: is 300, and packs of the plan have 512"):
        built(path, words, 512, context=300)


def test_given_model_that_slides_its_window_is_refused_for_longer_packs(
    tokenizer: Path, words: Vocabulary, tmp_path: Path
) -> None:
    path = given("Mistral", tmp_path / "model", tokenizer, sliding_window=64)

    with pytest.raises(RecipeError, match=r"attends to 64 ids back \(sliding_window\), and packs of the plan have 128"):
        built(path, words)
    assert built(path, words, 64).causal.config.vocab_size == words.size


@pytest.mark.parametrize(("name", "changes"), [
    ("Gemma2", {"sliding_window": 4096, "final_logit_softcapping": 2.0}), ("Cohere", {"logit_scale": 0.1}),
])  # fmt: skip
def test_given_model_that_does_more_than_we_would_is_refused(
    name: str, changes: dict[str, Any], tokenizer: Path, words: Vocabulary, tmp_path: Path
) -> None:
    path = given(name, tmp_path / "model", tokenizer, **changes)

    with pytest.raises(RecipeError, match=f"{name}ForCausalLM does more than embedding, layers, norm and output"):
        built(path, words)


def test_given_export_of_another_vocabulary_is_refused_by_both_names(words: Vocabulary, tmp_path: Path) -> None:
    path = given("Llama", tmp_path / "model", None)
    (path / "tokenmill.json").write_text(json.dumps({"vocabulary": byte_vocabulary(9).spec}))

    with pytest.raises(
        RecipeError, match=r"{codebook_size: 9, name: bytes} of 320 ids, the plan's is {codebook_size: 32"
    ):
        built(path, words)


def test_given_whole_emu3_is_its_language_half(tmp_path: Path) -> None:
    from transformers import Emu3ForConditionalGeneration
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    path = write_whole(tmp_path / "whole", Emu3VQVAE(Emu3VQVAEConfig(**SHAPE)))
    whole = Emu3ForConditionalGeneration.from_pretrained(path).eval()
    vocabulary = byte_vocabulary(2000 - byte_vocabulary(1).size + 1)

    model = built(path, vocabulary, rope_base=1e6)

    ids = list(range(40, 90))
    with torch.no_grad():
        expected = whole(torch.tensor(ids)[None], use_cache=False).logits[0]
    assert (logits(model, ids) - expected).abs().max() <= 1e-5
    assert type(model.causal).__name__ == "Emu3ForCausalLM"
    assert not [name for name, _ in named_parameters(model) if "vq" in name]


def test_given_path_that_holds_no_model_is_refused_by_name(words: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.model\.from: .*nothing"):
        built(tmp_path / "nothing", words)


def test_presets_have_the_sizes_they_are_named_after() -> None:
    from transformers import Emu3ForCausalLM

    from tokenmill.train.model import model_config

    counts = {}
    for name in ("tiny", "100m", "1b", "emu3-8b"):
        with torch.device("meta"):
            model = Emu3ForCausalLM(model_config(ModelSettings(preset=name), byte_vocabulary(1), 64))
        counts[name] = sum(parameter.numel() for parameter in model.model.layers.parameters())
    assert [round(count / 1e6) for count in counts.values()] == [2, 96, 992, 6980]


def test_sizes_said_beside_a_preset_go_before_it() -> None:
    settings = ModelSettings.model_validate({"preset": "emu3-8b", "layers": 2, "dropout": 0.0})

    assert (settings.sizes.layers, settings.sizes.hidden, settings.sizes.dropout) == (2, 4096, 0.0)
    with pytest.raises(ValueError, match="hidden: stands beside from"):
        ModelSettings.model_validate({"from": "x", "hidden": 64})


def test_initialisation_scales_what_ends_in_residual_sums() -> None:
    shape = {"hidden": 128, "layers": 8, "heads": 4, "kv_heads": 2, "ffn": 192, "init_std": 0.05}
    plain, scaled = (
        build_model(ModelSettings.model_validate(shape | {"scale_residual": on}), byte_vocabulary(8), 64).causal.model
        for on in (False, True)
    )

    for name, factor in (("self_attn.o_proj", 0.25), ("mlp.down_proj", 0.25), ("mlp.up_proj", 1.0)):
        one, two = (model.layers[3].get_submodule(name).weight for model in (plain, scaled))
        assert one.std().item() == pytest.approx(0.05, rel=0.05)
        assert torch.allclose(two, one * factor)


def test_preset_brings_its_dropout_to_embeddings_too() -> None:
    shape = {"preset": "emu3-8b", "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 48}

    model = build_model(ModelSettings.model_validate(shape), byte_vocabulary(8), 64)

    assert (model.dropout, model.causal.config.attention_dropout) == (0.1, 0.1)
