"""Assembled ids against transformers' own `Emu3Processor`: pixels, sizes, markers, codes and caption, id for id.

Nothing is downloaded: the processor is built here over the first 5,000 ranks of Qwen's vocabulary (a package of the
tests has the file), with the split expression of transformers' converter. That one is GPT-2's and not Qwen's (EMU3.md
§3), so captions are of words where the two agree.
"""

from __future__ import annotations

import base64
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokenmill.tokenize.documents import TextSegment, VisionSegment, assemble
from tokenmill.tokenize.preprocess import resize, target_size
from tokenmill.tokenize.vision_emu3 import SHIPPED, load
from tokenmill.tokenize.vocabulary import Vocabulary, emu3_vocabulary

MIN_AREA, MAX_AREA = 128 * 128, 160 * 160
NUM_RANKS = 5_000
IMAGE_ID = 184_622  # the port's placeholder, behind every id of ours
MARKERS = {
    "<|endoftext|>": "pad", "<|extra_200|>": "eol", "<|extra_201|>": "eof", "<|extra_203|>": "bos",
    "<|extra_204|>": "eos", "<|image token|>": "sot", "<|image start|>": "sov", "<|image end|>": "eov",
}  # fmt: skip
CAPTIONS = ["a man in a red and white house", "the people of the house are here", ""]


@pytest.fixture(scope="module")
def qwen_file() -> Path:
    spec = find_spec("dashscope")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def vocabulary(qwen_file: Path) -> Vocabulary:
    return emu3_vocabulary(qwen_file)


@pytest.fixture(scope="module")
def processor(qwen_file: Path, vocabulary: Vocabulary) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.models.emu3 import Emu3ImageProcessor, Emu3Processor

    special = {name: getattr(vocabulary, role) for name, role in MARKERS.items()} | {"<image>": IMAGE_ID}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe(qwen_file, special),
        bos_token="<|extra_203|>",
        eos_token="<|extra_204|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
        },
    )  # fmt: skip
    images = Emu3ImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=MIN_AREA, max_pixels=MAX_AREA, spatial_factor=8
    )
    return Emu3Processor(images, tokenizer)


def bpe(qwen_file: Path, special: dict[str, int]) -> Any:
    """Qwen's first ranks as a tokenizer of the tokenizers package, as transformers' converter lays it out."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = [line.split() for line in qwen_file.read_bytes().splitlines()[:NUM_RANKS]]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letters = bytes_to_unicode()
    shown = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [tuple(shown[part] for part in halves(ranks, token)) for token in ranks if len(token) > 1]
    vocab = {shown[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab={**vocab, **special}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return tokenizer


def halves(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two tokens that were merged into this one: all merges of lower rank done."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, NUM_RANKS) for left, right in pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def picture(size: tuple[int, int]) -> NDArray[np.uint8]:
    from skimage import data

    return resize(data.astronaut(), size)


@torch.inference_mode()
def ids_of_the_port(processor: Any, model: Any, vocabulary: Vocabulary, image: Any, text: str) -> list[int]:
    """What the port feeds its language model: the processor's ids, placeholders filled with its mapped codes."""
    from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

    table = {"<|extra_200|>": vocabulary.eol, "<image>": IMAGE_ID}
    table |= {f"<|visual token {code:06d}|>": vocabulary.vision_base + code for code in range(2048)}
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    (codes,) = model.encode(inputs["pixel_values"], inputs["image_sizes"]).image_tokens
    filling = iter(Emu3ImageVocabularyMapping(table).convert_img2bpe(codes).flatten().tolist())
    return [next(filling) if index == IMAGE_ID else index for index in inputs["input_ids"][0].tolist()]


@pytest.mark.parametrize("size", [(144, 144), (100, 180), (400, 300), (60, 90)])
def test_assembled_ids_are_those_of_the_reference_processor(
    processor: Any, vocabulary: Vocabulary, size: tuple[int, int]
) -> None:
    from transformers.models.emu3 import Emu3VQVAE

    tokenizer, image = load(SHIPPED), picture(size)
    port = Emu3VQVAE.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    chosen = target_size(*size, min_area=MIN_AREA, max_area=MAX_AREA, max_aspect=5, multiple=8)
    codes = tokenizer.encode_images(resize(image, chosen)[None])[0]
    for caption in CAPTIONS:
        text_ids = np.asarray(vocabulary.text.encode(caption), np.uint32)
        assert text_ids.max(initial=0) < NUM_RANKS
        segments = [TextSegment(0, len(text_ids), "caption"), VisionSegment(1, *codes.shape, 0)]
        for template, text in (("generation", f"{caption}<image>"), ("understanding", f"<image>{caption}")):
            ours = assemble(segments, text_ids, codes.ravel(), template, vocabulary).ids.tolist()
            assert ours[-1] == vocabulary.eos  # what the port's processor leaves out
            assert ours[:-1] == ids_of_the_port(processor, port, vocabulary, image, text)
