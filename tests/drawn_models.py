"""Small untrained models to draw from, with logits so wide that every forbidden id is somewhere the favourite."""

from __future__ import annotations

import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.generate.model import ExportedModel
from tokenmill.tokenize.vocabulary import Vocabulary


def untrained(vocabulary: Vocabulary, *, seed: int = 0, context: int = 512, layers: int = 2) -> ExportedModel:
    torch.manual_seed(seed)
    config = Emu3TextConfig(
        vocab_size=vocabulary.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
    )
    return ExportedModel(model=Emu3ForCausalLM(config).eval(), vocabulary=vocabulary, vision={})
