"""Perplexity by models the tests make: a tiny causal model saved to disk, and n-gram models in ARPA format."""

from __future__ import annotations

import gzip
import json
import math
import shutil

import polars as pl
import pytest
from tests import tiny

from tokenmill.demo.text_lines import english
from tokenmill.errors import RecipeError
from tokenmill.filters.scorer import PreparedScorer, build_scorer
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import check_recipe

ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.30103
-0.5\t</s>
-0.60206\ta\t-0.1
-0.90309\tdog\t-0.2
-1.2\tcat

\\2-grams:
-0.30103\t<s> a
-0.2\ta dog
-0.4\tdog </s>
-0.7\ta cat

\\end\\
"""


@pytest.fixture(scope="module")
def texts():
    return [*[document["text"][:300] for document in english()][:9], "", "x", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of two layers over bytes-like words, its tokenizer and random weights, as a folder of transformers."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<s>": 0, **{char: number for number, char in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path, safe_serialization=True)
    return path


def table(scorer, batch):
    return pl.DataFrame(dict(scorer.score(batch)), schema=dict(scorer.columns), strict=True)


def test_perplexity_of_a_causal_model_is_exp_of_its_loss(folder, texts):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    found = table(build_scorer("perplexity", {"model": str(folder), "max_tokens": 200}), texts)
    scorer = build_scorer("perplexity", {"model": str(folder), "max_tokens": 200})
    for text, (perplexity, tokens) in zip(texts, found.iter_rows(), strict=True):
        ids = torch.from_numpy(scorer.prepare([text])[0])[None]
        assert tokens == ids.shape[1] - 1 == min(199, len(text.encode()))
        if not text:
            assert perplexity is None
            continue
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_perplexity_of_batches_of_any_size_is_the_same_to_five_digits(folder, texts):
    scorer = build_scorer("perplexity", {"model": str(folder)})
    assert isinstance(scorer, PreparedScorer)
    whole = table(scorer, texts)
    one_by_one = pl.concat(table(scorer, [text]) for text in texts)
    assert whole["perplexity_tokens"].equals(one_by_one["perplexity_tokens"])
    ratio = (whole["perplexity"] / one_by_one["perplexity"]).drop_nulls()
    assert (ratio - 1).abs().max() < 1e-5


def test_perplexity_does_not_hang_on_the_number_of_threads(folder, texts):
    import torch

    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(build_scorer("perplexity", {"model": str(folder), "device": "cpu"}).score(texts))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_perplexity_fingerprint_covers_weights_and_batch_size_and_not_the_place(folder, tmp_path):
    first = build_scorer("perplexity", {"model": str(folder)}).fingerprint
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    assert build_scorer("perplexity", {"model": str(copied)}).fingerprint == first
    assert build_scorer("perplexity", {"model": str(copied), "device": "cpu"}).fingerprint == first
    for other in ({"batch_size": 4}, {"max_tokens": 9}, {"dtype": "bfloat16"}, {"lower": True}):
        assert build_scorer("perplexity", {"model": str(copied), **other}).fingerprint != first
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert build_scorer("perplexity", {"model": str(copied)}).fingerprint != first


def test_perplexity_of_a_megabyte_reads_the_beginning_alone(folder):
    scorer = build_scorer("perplexity", {"model": str(folder), "max_tokens": 64})
    found = table(scorer, ["word " * 200_000, "word " * 40])
    assert found["perplexity_tokens"].to_list() == [63, 63]
    assert found["perplexity"][0] == pytest.approx(found["perplexity"][1], rel=1e-5)


def test_causal_model_that_cannot_be_loaded_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    shaped = shutil.copytree(folder, tmp_path / "shaped")
    config = json.loads((shaped / "config.json").read_text()) | {"hidden_size": 64}
    (shaped / "config.json").write_text(json.dumps(config))
    for place, says in [
        (cut, "cannot be loaded"),
        (pickled, r"holds no \*.safetensors; nothing else is loaded"),
        (shaped, "cannot be loaded"),
        (tmp_path / "none", "is no folder, and the hub did not give it"),
    ]:
        with pytest.raises(RecipeError, match=f"scorer 'perplexity': model .* {says}"):
            build_scorer("perplexity", {"model": str(place)}).score(["a dog"])


def arpa(path, text=ARPA):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz"])
def test_perplexity_of_an_ngram_model_follows_the_back_off(tmp_path, name):
    scorer = build_scorer("perplexity", {"model": arpa(tmp_path / name)})
    found = table(scorer, ["a dog", "dog cat\n\nzebra", "", "\n"])
    known = -0.30103 - 0.2 - 0.4  # <s> a, a dog, dog </s>
    backed_off = (-0.30103 - 0.90309) + (-0.2 - 1.2) + (0 - 0.5) + (-0.30103 - 1.0) + (0 - 0.5)
    assert found["perplexity"].to_list() == [
        pytest.approx(10 ** (-known / 3)), pytest.approx(10 ** (-backed_off / 5)), None, None,
    ]  # fmt: skip
    assert found["perplexity_tokens"].to_list() == [3, 5, 0, 0]


def test_perplexity_behind_a_gate_is_null_and_the_rest_is_scored(tmp_path):
    tiny.write_data(tmp_path / "data")
    path = arpa(tmp_path / "model.arpa")
    scorers = {"text_statistics": {}, "perplexity": {"model": path, "when": "num_chars >= 300"}}
    value = tiny.recipe(tmp_path / "data", str(tmp_path / "root"), {"filter.text.scorers": scorers}, sources=["text"])
    chain = Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))
    tables = {}
    for snapshot in chain.score["text"]:
        rows = [snapshot.folder.read_rows(commit) for commit in snapshot.commits]
        tables[snapshot.folder.config.settings["scorer"]] = pl.concat(rows).filter(pl.col("fail_reason").is_null())
    found = tables["text_statistics"].join(tables["perplexity"], on="key")
    assert found.height == 9 and 0 < found["perplexity"].null_count() < 9
    assert found.filter((pl.col("num_chars") >= 300) != pl.col("perplexity").is_not_null()).is_empty()
    lines = (tmp_path / "data" / "text" / "texts.jsonl").read_bytes().splitlines()
    text = json.loads(lines[-1])["text"]
    assert found["perplexity"][-1] == table(build_scorer("perplexity", {"model": path}), [text])["perplexity"][0]


def test_perplexity_in_lower_case_reads_folded_text(tmp_path):
    path = arpa(tmp_path / "model.arpa")
    lower = build_scorer("perplexity", {"model": path, "lower": True})
    assert lower.score(["A DOG"]) == lower.score(["a dog"])
    assert build_scorer("perplexity", {"model": path}).score(["A DOG"]) != lower.score(["A DOG"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no whole ARPA model: 0 n-grams announced, 0 found"),
        (ARPA.replace("\\end\\", ""), "is no whole ARPA model: 10 n-grams announced, 10 found"),
        (ARPA.replace("ngram 1=6", "ngram 1=7"), "11 n-grams announced, 10 found"),
        (ARPA.replace("-0.90309\tdog", "x\tdog"), "is wrong in line 10: 'x"),
        (ARPA.replace("-0.2\ta dog", "nan\ta dog"), "is wrong in line 15"),
        (ARPA.replace("ngram 2=4", "ngram 2=four"), "is wrong in line 3"),
    ],
)
def test_ngram_model_that_is_not_whole_is_named_with_its_line(tmp_path, text, says):
    with pytest.raises(RecipeError, match=says):
        build_scorer("perplexity", {"model": arpa(tmp_path / "m.arpa", text)}).score(["a"])


def test_ngram_model_that_is_missing_or_cut_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none.arpa' cannot be read: No such file"):
        _ = build_scorer("perplexity", {"model": str(tmp_path / "none.arpa")}).fingerprint
    path = tmp_path / "cut.arpa.gz"
    path.write_bytes(gzip.compress(ARPA.encode())[:50])
    with pytest.raises(RecipeError, match=r"cut.arpa.gz' cannot be read"):
        build_scorer("perplexity", {"model": str(path)}).score(["a"])
    spoiled = bytearray(gzip.compress(ARPA.encode()))
    spoiled[30], spoiled[31] = spoiled[30] ^ 0xFF, spoiled[31] ^ 0x55
    path.write_bytes(spoiled)
    with pytest.raises(RecipeError, match=r"cut.arpa.gz' cannot be read"):
        build_scorer("perplexity", {"model": str(path)}).score(["a"])
    with pytest.raises(RecipeError, match="model"):
        build_scorer("perplexity", {})
