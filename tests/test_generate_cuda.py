"""Drawing on CUDA: the compiled step over a static cache draws what the CPU draws, and so does the plain one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Emu3ForCausalLM

from tokenmill.generate.llama_decoder import LlamaDecoder
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.sample import Drawing, draw_documents
from tokenmill.generate.sampling import Sampling
from tokenmill.settings_model import ModelSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.model import model_config

VOCABULARY = byte_vocabulary(512)
SIZES = ModelSettings(hidden=128, layers=3, heads=2, kv_heads=1, ffn=256)
DRAWINGS = [
    Drawing(prompt=text, height=6, width=5, seed=seed)
    for seed, text in enumerate(["a red circle", "two blue squares on grey", "x", "nothing but noise, and more noise"])
]


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Emu3ForCausalLM]:
    torch.manual_seed(0)
    yield Emu3ForCausalLM(model_config(SIZES, VOCABULARY, 256)).eval()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0, guidance=3), Sampling(top_k=0, guidance=1)])
def test_drawing_on_cuda_in_float32_gives_the_ids_of_the_cpu(
    on_cpu: Emu3ForCausalLM, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, is_compiled: bool
) -> None:
    expected = drawn(on_cpu, sampling)
    monkeypatch.setitem(LlamaDecoder.__init__.__kwdefaults__, "is_compiled", is_compiled)

    found = drawn(on_cpu.to("cuda"), sampling)

    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def drawn(model: Emu3ForCausalLM, sampling: Sampling) -> list[NDArray[np.int32]]:
    opened = ExportedModel(model=model, vocabulary=VOCABULARY, vision={})
    try:
        return draw_documents(opened, DRAWINGS, sampling, batch_size=3)
    finally:
        model.to("cpu")
