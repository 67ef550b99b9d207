"""Small models of transformers with a byte-level tokenizer beside them, as a hub would hold them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

_TEXTS = ["a red circle and two blue squares", "the quick brown fox jumps over the lazy dog", "red and blue, 64*64"] * 9


def small_tokenizer(folder: Path, *, reverse: bool = False) -> Path:
    """Train a tokenizer of 300 tokens and `<|endoftext|>`; `reverse` gives its texts in another order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"] if not reverse else ["<s>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_TEXTS[::-1] if reverse else _TEXTS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def given(name: str, folder: Path, tokenizer: Path | None, **changes: Any) -> Path:
    """Save a random model of an architecture (`Llama`, `Qwen3`, …), 320 rows, 256 ids of context."""
    import transformers

    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.1,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**sizes | changes)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    if tokenizer is not None:
        shutil.copy(tokenizer / "tokenizer.json", folder)
    return folder
