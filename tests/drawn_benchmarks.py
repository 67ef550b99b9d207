"""A model of 16 numbers that draws noise, exported as the trainer does it, for tests of the field's benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.manifests.storage import open_store
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder
from tokenmill.train.export import export_checkpoint

V = byte_vocabulary(2048)
SIDE_PX = 16  # 2 x 2 codes of the shipped tokenizer
SIZE = ["--height", str(SIDE_PX), "--width", str(SIDE_PX), "--top-k", "50", "--guidance", "2"]


def export_model(root: Path, *, context: int = 512, seed: int = 0) -> Path:
    """Export an untrained model; returns its folder."""
    torch.manual_seed(seed)
    config = Emu3TextConfig(
        vocab_size=V.size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=context, attention_dropout=0.0, pad_token_id=V.pad,
        bos_token_id=V.bos, eos_token_id=V.eos,
    )  # fmt: skip
    model = Emu3ForCausalLM(config)
    folder = RunFolder(open_store(str(root)), "tiny")
    tensors = {f"{name}/weight": value.contiguous() for name, value in model.state_dict().items()}
    file = folder.write_tensors(1, 0, tensors)
    folder.publish(
        Checkpoint(
            step=1, loader={"plan_id": "p"}, model=config.to_dict() | {"architectures": ["Emu3ForCausalLM"]},
            vocabulary=V.spec, vision={"name": "scenes"}, settings={}, tensors=dict.fromkeys(tensors, file.name),
            files=(file,),
        )
    )  # fmt: skip
    return root / export_checkpoint(folder, 1, {"image": [256, 256, 3.0]})


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """Write rows as JSON, texts as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def names_below(folder: Path) -> list[str]:
    """Return every file, as a path relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
