"""How much arithmetic a model needs: what MFU, and the estimate before anything is bought, are reckoned with.

Counted is what the model asks for, not what the machine does: the input embedding is looked up and multiplies nothing,
activations computed a second time (`activation_checkpointing`) are no more work, and attention costs what lies inside
documents. Grouped key and value heads make its matrices narrower and its products no cheaper: a head of queries meets
every key all the same. Taking a pack of 131,072 ids of pictures for one document would make Emu3's 8B look three times
as busy as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """What an id and a pair of ids cost.

    Attributes:
        matrix_parameters: weights of the matrices that every id goes through.
        attention_width: heads · width of a head, summed over layers.
    """

    matrix_parameters: int
    attention_width: int

    @classmethod
    def of(cls, causal: Any) -> ModelFlops:
        """Count a causal model of transformers, on any device or none; ZeRO 3 may have taken its weights apart."""
        config = causal.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            matrix_parameters=_matrix_parameters(causal),
            attention_width=config.num_hidden_layers * config.num_attention_heads * width,
        )

    def training(self, tokens: float, squares: float) -> float:
        """Count the floating-point operations of forward and backward over packed documents.

        6 for each weight and id; for causal attention 6 · width for each pair of ids, of which half are seen:
        `squares` is Σ len² over documents (not packs).
        """
        return 6.0 * self.matrix_parameters * tokens + 6.0 * self.attention_width * squares


def _matrix_parameters(causal: Any) -> int:
    """Count the weights of matrices; the embedding only where it is the output layer as well."""
    output = causal.get_output_embeddings()
    looked_up = {id(m.weight) for m in causal.modules() if isinstance(m, nn.Embedding)} - {id(output.weight)}
    shapes = [
        tuple(getattr(parameter, "ds_shape", parameter.shape))
        for parameter in causal.parameters()
        if id(parameter) not in looked_up
    ]
    return sum(prod(shape) for shape in shapes if len(shape) > 1)
