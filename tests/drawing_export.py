"""A small model of random weights, exported with the sizes it was trained on: what tests of drawing draw with."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.tokenize.loading import without_progress_bar
from tokenmill.tokenize.vocabulary import Vocabulary, byte_vocabulary

V = byte_vocabulary(2048)  # as many codes as the shipped vision tokenizer has
AREAS = {"image": [512, 2048, 3.0], "video": [256, 1024, 3.0]}


def random_export(folder: Path, vocabulary: Vocabulary = V, /, *, context: int = 512, **about: Any) -> Path:
    """Write an export; `about` replaces what its description says, None takes it out."""
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=vocabulary.size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos, eos_token_id=vocabulary.eos,
    )  # fmt: skip
    with without_progress_bar():
        Emu3ForCausalLM(config).save_pretrained(folder)
    described: Mapping[str, Any] = {
        "vocabulary": vocabulary.spec,
        "vision": {"name": "scenes"},
        "areas": AREAS,
        **about,
    }
    told = {name: value for name, value in described.items() if value is not None}
    (folder / "tokenmill.json").write_text(json.dumps(told))
    return folder


def clip_frames(data: bytes) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Return the frames of an mp4 (THWC), and its tags."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames), dict(container.metadata)
