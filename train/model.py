"""The language model: transformers' `Emu3ForCausalLM`, with our attention, loss and the embedding dropout it lacks.

The inner model keeps transformers' names and config, so what comes out of training opens with `from_pretrained`. Only
the way through it differs: one flat sequence of packed documents in, weighted loss out, no logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.errors import RecipeError
from tokenmill.settings_model import ModelSettings
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train import attention
from tokenmill.train.activations import Checkpointing, keep_activations
from tokenmill.train.attention import Documents, Kernel
from tokenmill.train.loss import LossLinear
from tokenmill.train.packs import PackArrays
from tokenmill.train.preference_loss import Pairs
from tokenmill.train.world import ALONE, SequenceGroup


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
        """Parameters that every id is multiplied with: all but an input embedding that is not the output's matrix."""
        embedding = self.causal.get_input_embeddings().weight
        is_tied = self.causal.get_output_embeddings().weight is embedding
        return sum(p.numel() for p in self.parameters() if is_tied or p is not embedding)

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
    from tokenmill.train.given_model import read_config

    given = settings.from_path
    return read_config(given) if given else model_config(settings, vocabulary, context)


def weightless(config: Any, dropout: float = 0.0) -> PackedModel:
    """Build a model of shapes alone, on torch's meta device."""
    with torch.device("meta"):
        return PackedModel(causal_class(config.to_dict())(config), dropout, 1)


def build_model(
    settings: ModelSettings, vocabulary: Vocabulary, context: int, *, loss_chunk_tokens: int = 1024,
    checkpointing: Checkpointing = "none", seed: int = 0, attention_kernel: Kernel = "auto",
    like: Mapping[str, Any] | None = None, is_drawn: bool = True
) -> PackedModel:  # fmt: skip
    """Build the model with fresh weights from the seed, or with those of `settings.from_path`.

    `like` is the configuration of a model whose weights will be put in: its shape is taken where the settings name a
    given model or no sizes at all, and no file of weights is opened. Without `is_drawn` fresh weights are whatever the
    memory holds, which costs neither time nor memory: for ranks that get those of rank 0. Raises RecipeError when given
    weights are of another vocabulary or a shorter context, or when `like` has another shape than the settings.
    """
    from tokenmill.train.given_model import given_model

    attention.register()
    torch.manual_seed(seed)
    if like is not None and (settings.from_path or settings.is_left_out):
        causal = _shaped(config_like(like, settings, context), settings, is_drawn=is_drawn)
    elif settings.from_path:
        causal = given_model(settings, vocabulary, context, seed)
    else:
        causal = _shaped(model_config(settings, vocabulary, context), settings, is_drawn=is_drawn)
    keep_activations(causal, checkpointing)
    return PackedModel(causal, embedding_dropout(causal.config, settings), loss_chunk_tokens, attention_kernel)


def model_config(settings: ModelSettings, vocabulary: Vocabulary, context: int) -> Any:
    """Give transformers' configuration of a model of these sizes."""
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    sizes = settings.sizes
    check_context(settings, context)
    config = Emu3TextConfig(
        vocab_size=vocabulary.size,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=settings.context or context,
        initializer_range=settings.init_std,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_base},
        attention_dropout=sizes.dropout,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        tie_word_embeddings=sizes.tie_embeddings,
    )
    config.architectures = [Emu3ForCausalLM.__name__]
    return config


def config_like(found: Mapping[str, Any], settings: ModelSettings, context: int) -> Any:
    """Give the configuration of a trained model, for packs of `context` ids, which may be more than it had."""
    from transformers import AutoConfig

    check_context(settings, context)
    config = AutoConfig.for_model(**found)
    set_positions(config, settings, context)
    if settings.dropout is not None and _drops_branches(config):
        config.attention_dropout = settings.dropout
    return config


def set_positions(config: Any, settings: ModelSettings, context: int) -> None:
    """Let a configuration be for packs of `context` ids, with the rotary base that is said."""
    config.max_position_embeddings = max(context, settings.context or config.max_position_embeddings)
    if settings.rope_base is not None:
        config.rope_parameters = {**config.rope_parameters, "rope_theta": settings.rope_base}


def embedding_dropout(config: Any, settings: ModelSettings) -> float:
    """Give the share of the input embeddings that is dropped: as said, else as in the branches of Emu3's layers."""
    if settings.dropout is not None:
        return settings.dropout
    return float(config.attention_dropout) if _drops_branches(config) else 0.0


def _drops_branches(config: Any) -> bool:
    """Say whether a model's `attention_dropout` is of residual branches; elsewhere it is of attention itself."""
    return str(config.model_type).startswith("emu3")


def check_context(settings: ModelSettings, context: int) -> None:
    """Refuse packs longer than the context that the settings name; raises RecipeError with both numbers."""
    if settings.context is not None and settings.context < context:
        raise RecipeError(
            f"train.model.context: is {settings.context}, and packs of the plan have {context} ids (plan.context); "
            "raise the one or lower the other"
        )


def causal_class(config: Mapping[str, Any], where: str = "train.model") -> Any:
    """Give the class that a model's configuration names; transformers' automatic one does not know Emu3's text model.

    Raises RecipeError, which starts with `where`, if it names none.
    """
    import transformers

    names = config.get("architectures") or ["none"]
    found = getattr(transformers, names[0], None)
    if found is None or not names[0].endswith("ForCausalLM"):
        raise RecipeError(f"{where}: {names[0]!r} is not a causal language model of transformers")
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


def _shaped(config: Any, settings: ModelSettings, *, is_drawn: bool) -> Any:
    """Build a model of a configuration, with weights drawn anew or of no meaning."""
    from transformers.initialization import no_init_weights

    config._attn_implementation = attention.NAME
    with nullcontext() if is_drawn else no_init_weights():
        causal = causal_class(config.to_dict())(config)
    causal.tie_weights()  # which is part of drawing them
    if settings.scale_residual and is_drawn:
        _shrink_branches(causal, (2 * config.num_hidden_layers) ** -0.5)
    return causal


@torch.no_grad()
def _shrink_branches(causal: nn.Module, factor: float) -> None:
    """Make the matrices that write into the residual stream smaller (GPT-2, section 2.3)."""
    for name, parameter in causal.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(factor)
