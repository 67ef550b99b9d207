"""Emu3 in the layouts of transformers and of BAAI's release, opened as a model of ours: same logits, same ids."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Emu3Config, Emu3ForCausalLM, Emu3ForConditionalGeneration, Emu3TextConfig, Emu3VQVAEConfig

from tokenmill.errors import RecipeError
from tokenmill.generate.model import load_model
from tokenmill.generate.opened_model import open_model
from tokenmill.generate.pictures import parse_pictures
from tokenmill.generate.prompts import question_prompt
from tokenmill.generate.text import generate_text
from tokenmill.pipelines.drawing_jobs import draw_jobs
from tokenmill.pipelines.drawn import drawn_samples
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.token_meanings import byte_letters
from tokenmill.tokenize.vocabulary import build_vocabulary, vocabulary_shape

CODES = 24
SHAPE = vocabulary_shape({"name": "emu3", "codebook_size": CODES})
NUM_RANKS = 151_643
WORDS = "What is it?\n\nfoo.bar/baz I'M"


def ranks() -> list[bytes]:
    """151,643 byte strings: all single bytes, pairs of letters, then numbers that no text of these tests has."""
    singles = [bytes([one]) for one in range(256)]
    pairs = [b"Wh", b"at", b" i", b"it", b"?\n", b"?\n\n", b"fo", b".b", b"ba", b"'M"]
    rest = [b"\xff" + number.to_bytes(3, "big") for number in range(NUM_RANKS - len(singles) - len(pairs))]
    return [*singles, *pairs, *rest]


@pytest.fixture(scope="module")
def tiktoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "emu3.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(ranks())))
    return path


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ranks as transformers' converter writes them: letters for bytes, markers and codes in one table."""
    letter = {byte: letter for letter, byte in byte_letters().items()}
    table = {"".join(letter[byte] for byte in token): rank for rank, token in enumerate(ranks())}
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": table | markers()}, "added_tokens": []}))
    return path


def markers() -> dict[str, int]:
    return {SHAPE.describe(index): index for index in range(NUM_RANKS, SHAPE.size)}


def text_settings() -> dict[str, Any]:
    return {
        "vocab_size": SHAPE.size, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 300, "initializer_range": 0.4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """A small whole Emu3, saved by transformers."""
    torch.manual_seed(0)
    vision = Emu3VQVAEConfig(
        codebook_size=CODES, base_channels=32, channel_multiplier=[1, 1, 1, 1], num_res_blocks=1, hidden_size=32
    )
    config = Emu3Config(
        text_config=Emu3TextConfig(**text_settings()), vq_config=vision, vocabulary_map=markers() | {"<image>": 151_646}
    )
    folder = tmp_path_factory.mktemp("models") / "Emu3-Chat-hf"
    Emu3ForConditionalGeneration(config).save_pretrained(folder)
    shutil.copy(tokenizer_json, folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "Emu3-Chat-hf"))


@pytest.fixture
def release(tmp_path: Path, tiktoken: Path) -> Path:
    """The language model as BAAI's files have it: a configuration of theirs, a tiktoken, no code."""
    torch.manual_seed(1)
    model = Emu3ForCausalLM(Emu3TextConfig(**text_settings()))
    folder = tmp_path / "Emu3-Gen"
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    described = text_settings() | {
        "architectures": ["Emu3ForCausalLM"], "model_type": "Emu3", "auto_map": {"AutoConfig": "x.Emu3Config"},
        "rope_theta": 1000000.0, "image_area": 518400, "img_token_id": 151851, "boi_token_id": 151852,
        "eoi_token_id": 151853, "eol_token_id": 151846, "eof_token_id": 151847, "bos_token_id": 151849,
        "eos_token_id": 151850, "pad_token_id": 151643, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    shutil.copy(tiktoken, folder)
    return folder


def spoil(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def greedy_of(theirs: Any, prompt: np.ndarray, steps: int) -> list[int]:
    """Continue greedily with transformers' own `generate`, text and EOS allowed."""
    allowed = [*range(NUM_RANKS), SHAPE.eos]
    out = theirs.generate(
        input_ids=torch.tensor(prompt[None].astype(np.int64)), max_new_tokens=steps, min_new_tokens=steps,
        do_sample=False, prefix_allowed_tokens_fn=lambda *_: allowed, eos_token_id=SHAPE.eos, pad_token_id=SHAPE.pad,
    )  # fmt: skip
    return [int(one) for one in out[0, len(prompt) :]]


def test_a_whole_emu3_gives_the_logits_and_greedy_ids_of_transformers(whole):
    opened = load_model(whole)
    theirs = Emu3ForConditionalGeneration.from_pretrained(whole).eval()
    prompt = question_prompt(opened.vocabulary, WORDS, np.arange(12, dtype=np.uint32).reshape(1, 3, 4))
    ids = torch.tensor(prompt[None].astype(np.int64))
    with torch.inference_mode():
        torch.testing.assert_close(opened.model(input_ids=ids).logits, theirs(input_ids=ids).logits)
    ours = generate_text(opened.model, opened.vocabulary, [prompt], max_new=8, min_new=8)[0]
    assert ours.tolist() == greedy_of(theirs, prompt, 8)


def test_its_vocabulary_is_the_released_table_and_its_text_splits_as_qwen_does(whole, tiktoken):
    vocabulary = load_model(whole).vocabulary
    assert (vocabulary.size, vocabulary.bos, vocabulary.sot, vocabulary.vision_base) == (
        SHAPE.size,
        151_849,
        151_851,
        151_854,
    )
    expected = [
        b"Wh",
        b"at",
        b" i",
        b"s",
        b" i",
        b"t",
        b"?\n\n",
        b"fo",
        b"o",
        b".b",
        b"a",
        b"r",
        b"/",
        b"ba",
        b"z",
        b" ",
        b"I",
        b"'M",
    ]
    table = {token: rank for rank, token in enumerate(ranks())}
    assert vocabulary.text.encode(WORDS) == [table[token] for token in expected]
    (whole / "emu3.tiktoken").unlink(missing_ok=True)
    copied = Path(shutil.copy(tiktoken, whole / "emu3.tiktoken"))
    try:
        assert load_model(whole).vocabulary.fingerprint == vocabulary.fingerprint
    finally:
        copied.unlink()


def test_its_vision_tokenizer_comes_with_it_and_it_opens_as_a_model_to_draw_with(whole):
    opened = open_model(str(whole))
    assert opened.vision.codebook_size == CODES
    codes = opened.vision.encode_images(np.full((1, 32, 40, 3), 90, np.uint8))
    assert codes.shape == (1, 4, 5) and opened.model.model.dtype == torch.float32


def test_a_table_of_prompts_is_drawn_with_it(whole, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is it?\n")
    job = {"prompts": str(prompts), "model": str(whole), "height": 16, "width": 24, "samples": 2}
    recipe = {"root": str(tmp_path / "root"), "sources": {"none": {"kind": "images", "url": "nowhere"}},
              "execution": {"executor": "inline"}, "generate": {"jobs": {"one": job}}}  # fmt: skip
    drawn = draw_jobs(check_recipe(recipe, "test"))["one"]
    vocabulary = build_vocabulary(drawn.folder.config.settings["vocabulary"])
    for sample in drawn_samples(drawn):
        (picture,) = parse_pictures(sample.ids, vocabulary)
        assert picture.codes_thw.shape == sample.grid == (1, 2, 3)
    assert drawn.counts.out == 2


def test_the_names_that_transformers_has_in_memory_are_read_as_well_as_those_it_saves(folder):
    tensors = load_file(folder / "model.safetensors")
    assert "text_model.lm_head.weight" in tensors
    with_tensors(folder, {in_memory(name): value for name, value in tensors.items()})
    assert torch.equal(load_model(folder).model.lm_head.weight, tensors["text_model.lm_head.weight"])


def in_memory(name: str) -> str:
    if name.startswith("text_model.lm_head"):
        return name.removeprefix("text_model.")
    return "model." + name.replace("text_model.model.", "text_model.")


def test_a_release_gives_the_logits_of_its_weights_and_names_its_vision_tokenizer(release):
    opened = load_model(release)
    theirs = Emu3ForCausalLM(Emu3TextConfig(**text_settings())).eval()
    theirs.load_state_dict(load_file(release / "model.safetensors"))
    ids = torch.arange(0, SHAPE.size, 9_001)[None]
    with torch.inference_mode():
        torch.testing.assert_close(opened.model(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert opened.vision == {"name": "BAAI/Emu3-VisionTokenizer"}
    (release.parent / "Emu3-VisionTokenizer").mkdir()
    (release.parent / "Emu3-VisionTokenizer/config.json").write_text("{}")
    assert load_model(release).vision == {"name": str(release.parent / "Emu3-VisionTokenizer")}


def test_shards_are_read_by_their_index(release):
    tensors = load_file(release / "model.safetensors")
    (release / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, release / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (release / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_model(release, dtype="bfloat16").model.lm_head.weight, tensors["lm_head.weight"].bfloat16())
    (release / "b.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"b\.safetensors of model\.safetensors\.index\.json is not there"):
        load_model(release)


def test_missing_and_surplus_tensors_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("text_model.model.norm.weight")
    with_tensors(folder, tensors)
    with pytest.raises(RecipeError, match=r"lack model\.norm\.weight"):
        load_model(folder)
    with_tensors(folder, tensors | {"text_model.model.norm.weight": norm, "adapter.weight": norm.clone()})
    with pytest.raises(RecipeError, match=r"have adapter\.weight"):
        load_model(folder)


def test_tensors_of_another_shape_are_told(folder):
    tensors = load_file(folder / "model.safetensors")
    with_tensors(folder, tensors | {"text_model.model.norm.weight": torch.ones(3)})
    with pytest.raises(RecipeError, match="its weights"):
        load_model(folder)


def test_ids_of_another_table_are_refused_by_name(folder):
    table = markers()
    spoil(folder, vocabulary_map=table | {"<|extra_200|>": 5, "<|visual token 000003|>": 151_860})
    with pytest.raises(RecipeError, match=r"<\|extra_200\|> is 5, not 151846; <\|visual token 000003\|> is 151860"):
        load_model(folder)
    spoil(folder, vocabulary_map={name: index for name, index in table.items() if name != "<|image end|>"})
    with pytest.raises(RecipeError, match=r"<\|image end\|> is missing"):
        load_model(folder)
    spoil(folder, vocabulary_map=table | {"<image>": 151_855})
    with pytest.raises(RecipeError, match="<image> is 151855, which is taken"):
        load_model(folder)
    spoil(folder, vocabulary_map=None)
    with pytest.raises(RecipeError, match="no vocabulary_map"):
        load_model(folder)


def test_a_release_whose_ids_differ_is_refused(release):
    spoil(release, boi_token_id=7)
    with pytest.raises(RecipeError, match=r"<\|image start\|> is 7, not 151852"):
        load_model(release)


def test_what_is_no_safetensors_or_has_no_text_tokenizer_is_told(release):
    (release / "model.safetensors").rename(release / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="other weights are not opened"):
        load_model(release)
    (release / "emu3.tiktoken").unlink()
    with pytest.raises(RecipeError, match="no text tokenizer is beside it"):
        load_model(release)


def test_a_file_that_is_no_byte_level_tokenizer_is_told(release):
    (release / "emu3.tiktoken").unlink()
    (release / "tokenizer.json").write_text('{"model": {"vocab": [["a", 0.5]]}}')
    with pytest.raises(RecipeError, match=r"tokenizer\.json: no byte-level tokenizer"):
        load_model(release)
