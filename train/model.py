"""The language model: transformers' `Emu3ForCausalLM`, with our attention, loss and the embedding dropout it lacks.

The inner model keeps transformers' names and config, so what comes out of training opens with `from_pretrained`. Only
the way through it differs: one flat sequence of packed documents in, weighted loss out, no logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.errors import RecipeError
from tokenmill.settings_train import ModelSettings
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train import attention
from tokenmill.train.activations import Checkpointing, keep_activations
from tokenmill.train.attention import Documents, Kernel
from tokenmill.train.loss import LossLinear
from tokenmill.train.packs import PackArrays
from tokenmill.train.preference_loss import Pairs
from tokenmill.train.world import ALONE, SequenceGroup

EMU3_8B = {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "ffn": 14336, "dropout": 0.1, "rope_base": 1e6}


@dataclass(frozen=True, slots=True)
class Batch:
    """One flat sequence of packed documents on the device, or this rank's part of it; documents are the whole's.

    Of a preference run it has pairs too, which change the weights.
    """

    input_ids: Tensor
    labels: Tensor
    loss_weight: Tensor
    position_ids: Tensor
    documents: Documents
    sequence: SequenceGroup = ALONE
    pairs: Pairs | None = None

    @classmethod
    def of(cls, arrays: PackArrays, device: torch.device | str, sequence: SequenceGroup = ALONE) -> Batch:
        """Move arrays to a device; where ranks share the sequence, they are what `part_of` gives."""
        return cls(
            torch.from_numpy(arrays.input_ids).to(device),
            torch.from_numpy(arrays.labels).to(device),
            torch.from_numpy(arrays.loss_weight).to(device),
            torch.from_numpy(arrays.position_ids).to(device),
            Documents.at(arrays.cu_seqlens.tolist(), device),
            sequence,
        )


class PackedModel(nn.Module):
    """A causal model of transformers, taught to read packs."""

    def __init__(
        self, causal: nn.Module, dropout: float, loss_chunk_tokens: int, attention_kernel: Kernel = "auto"
    ) -> None:
        super().__init__()
        self.causal: Any = causal
        self.dropout = dropout
        self.attention_kernel: Kernel = attention_kernel
        self.causal.set_output_embeddings(LossLinear.around(causal.get_output_embeddings(), loss_chunk_tokens))  # type: ignore[operator]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of cross-entropies, and each position's own without gradient."""
        reweigh = None if batch.pairs is None else batch.pairs.weights
        return self.causal.get_output_embeddings()(self.hidden(batch), batch.labels, batch.loss_weight, reweigh)  # type: ignore[no-any-return]

    def logits(self, batch: Batch) -> Tensor:
        """Return all logits (L, V); for evaluation and tests."""
        logits: Tensor = self.causal.get_output_embeddings()(self.hidden(batch))
        return logits

    def hidden(self, batch: Batch) -> Tensor:
        embedded = self.causal.get_input_embeddings()(batch.input_ids[None])
        embedded = F.dropout(embedded, self.dropout, self.training)
        outputs = self.causal.get_decoder()(
            inputs_embeds=embedded,
            position_ids=batch.position_ids[None],
            use_cache=False,
            documents=batch.documents,
            kernel=self.attention_kernel,
            sequence=batch.sequence,
        )
        hidden: Tensor = outputs.last_hidden_state[0]
        return hidden

    @property
    def num_matmul_parameters(self) -> int:
        """Parameters that every id is multiplied with: all but the input embedding."""
        embedding = self.causal.get_input_embeddings().weight
        return sum(p.numel() for p in self.parameters() if p is not embedding)

    @property
    def attention_share(self) -> float:
        """Cost of a pair of ids in attention, in units of one id through all matrices."""
        config = self.causal.config
        return float(config.num_hidden_layers * config.hidden_size / self.num_matmul_parameters)


def attention_share_of(settings: ModelSettings, vocabulary: Vocabulary, context: int) -> float:
    """Give the attention share of a model that is not built: no weight is drawn or read.

    Raises RecipeError where `train.model.from` names no model.
    """
    return weightless(described_config(settings, vocabulary, context)).attention_share


def described_config(settings: ModelSettings, vocabulary: Vocabulary, context: int) -> Any:
    """Give the configuration of the model that a recipe means; raises RecipeError where it names none."""
    return _described(settings.from_path) if settings.from_path else model_config(settings, vocabulary, context)


def weightless(config: Any, dropout: float = 0.0) -> PackedModel:
    """Build a model of shapes alone, on torch's meta device."""
    from transformers import Emu3ForCausalLM

    with torch.device("meta"):
        return PackedModel(Emu3ForCausalLM(config), dropout, 1)


def _described(path: str) -> Any:
    """Read the shape of a language model, or of the one inside of a whole Emu3."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError) as error:
        raise RecipeError(f"train.model.from: {path}: {' '.join(str(error).split())[:200]}") from error


def build_model(
    settings: ModelSettings, vocabulary: Vocabulary, context: int, *, loss_chunk_tokens: int = 1024,
    checkpointing: Checkpointing = "none", seed: int = 0, attention_kernel: Kernel = "auto"
) -> PackedModel:  # fmt: skip
    """Build the model with fresh weights from the seed, or with those of `settings.from_path`.

    Raises RecipeError when given weights are of another vocabulary or a shorter context.
    """
    attention.register()
    torch.manual_seed(seed)
    if settings.from_path:
        causal = _loaded(settings.from_path, vocabulary, context)
    else:
        causal = _fresh(settings, vocabulary, context)
    keep_activations(causal, checkpointing)
    return PackedModel(causal, settings.dropout, loss_chunk_tokens, attention_kernel)


def model_config(settings: ModelSettings, vocabulary: Vocabulary, context: int) -> Any:
    """Give transformers' configuration of a model of these sizes."""
    from transformers import Emu3TextConfig

    sizes: Mapping[str, Any] = EMU3_8B if settings.preset == "emu3-8b" else settings.model_dump()
    return Emu3TextConfig(
        vocab_size=vocabulary.size,
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["ffn"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": float(sizes["rope_base"])},
        attention_dropout=float(sizes["dropout"]),
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        tie_word_embeddings=False,
    )


def causal_class(config: Mapping[str, Any]) -> Any:
    """Give the class that a model's configuration names; transformers' automatic one does not know Emu3's text model.

    Raises RecipeError if it names none.
    """
    import transformers

    names = config.get("architectures") or ["none"]
    found = getattr(transformers, names[0], None)
    if found is None or not names[0].endswith("ForCausalLM"):
        raise RecipeError(f"train.model: {names[0]!r} is not a causal language model of transformers")
    return found


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters: matrices decay, norms (vectors) and embeddings do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
        (decayed if is_matrix and id(parameter) not in embeddings else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def named_parameters(model: PackedModel) -> Iterable[tuple[str, nn.Parameter]]:
    """Give the parameters under the names transformers saves them by."""
    return model.causal.named_parameters()  # type: ignore[no-any-return]


def _fresh(settings: ModelSettings, vocabulary: Vocabulary, context: int) -> Any:
    from transformers import Emu3ForCausalLM

    config = model_config(settings, vocabulary, context)
    config._attn_implementation = attention.NAME
    config.architectures = [Emu3ForCausalLM.__name__]
    return Emu3ForCausalLM(config)


def _loaded(path: str, vocabulary: Vocabulary, context: int) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    causal = causal_class(config.to_dict()).from_pretrained(
        path, attn_implementation=attention.NAME, dtype=torch.float32, use_safetensors=True
    )
    if causal.config.vocab_size != vocabulary.size:
        raise RecipeError(
            f"train.model.from: {path} has {causal.config.vocab_size} ids, the plan's vocabulary {vocabulary.size}"
        )
    causal.config.max_position_embeddings = max(context, causal.config.max_position_embeddings)
    return causal
