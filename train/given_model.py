"""A causal model of transformers as the one to go on from: opened, checked, its vocabulary widened.

Any Llama-like model does (Llama, Qwen, Mistral, Emu3): what it does beside embedding, layers, norm and output matrix
would be lost here in silence, so a handful of ids go both ways first, through transformers and through `PackedModel`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.settings_model import ModelSettings
from tokenmill.tokenize.token_meanings import meanings_of_model
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.train import attention
from tokenmill.train.attention import Documents
from tokenmill.train.model import causal_class, check_context, set_positions
from tokenmill.train.same_vocabulary import described, is_same_vocabulary
from tokenmill.train.token_rows import rows_anew, rows_by_id, rows_by_token
from tokenmill.train.widening import widen

_WHERE = "train.model.from"
_PROBE = 24  # ids that go both ways
_CLOSE = 1e-3  # of the largest logit
_WHOLE, _LANGUAGE_HALF = "Emu3ForConditionalGeneration", "Emu3ForCausalLM"
_CHANGING_POSITIONS = ("dynamic", "longrope")


def read_config(path: str) -> Any:
    """Read the configuration of a language model, or of the one inside of a whole Emu3.

    Raises RecipeError if there is none of that path or name.
    """
    config = _whole_config(path)
    if config.architectures != [_WHOLE]:
        return config
    text = config.get_text_config()
    text.architectures = [_LANGUAGE_HALF]
    return text


def _whole_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{_WHERE}: {path}: {' '.join(str(error).split())[:200]}") from error


def given_model(settings: ModelSettings, vocabulary: Vocabulary, context: int, seed: int) -> Any:
    """Open the model that `settings.from_path` names, in fp32, with a row for every id of the vocabulary.

    Raises RecipeError naming both sides where the model is made for fewer ids than `context`, was trained on another
    vocabulary, or does what our way through it would leave out.
    """
    path = settings.from_path
    assert path is not None
    config = read_config(path)
    _check_positions(config, settings, context)
    kept = _rows(path, config, settings, vocabulary)
    set_positions(config, settings, context)
    causal = _opened(path, config)
    check_way_through(causal, path)
    if kept is not None:
        widen(causal, kept, seed)
    config = causal.config
    config.tie_word_embeddings = causal.get_output_embeddings().weight is causal.get_input_embeddings().weight
    config.pad_token_id, config.bos_token_id, config.eos_token_id = vocabulary.pad, vocabulary.bos, vocabulary.eos
    return causal


@torch.no_grad()
def check_way_through(causal: Any, path: str) -> None:
    """Compare transformers' logits with ours on a few ids; raises RecipeError where they differ."""
    ids = torch.arange(_PROBE).mul_(7919).remainder_(causal.config.vocab_size)
    causal.eval()
    causal.set_attn_implementation("eager")
    theirs = causal(ids[None], use_cache=False).logits[0]
    causal.set_attn_implementation(attention.NAME)
    hidden = causal.get_decoder()(
        inputs_embeds=causal.get_input_embeddings()(ids[None]),
        position_ids=torch.arange(_PROBE)[None],
        use_cache=False,
        documents=Documents.at([0, _PROBE]),
    ).last_hidden_state[0]
    ours = causal.get_output_embeddings()(hidden)
    causal.train()
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-9))
    if not off <= _CLOSE:
        raise RecipeError(
            f"{_WHERE}: {path}: {type(causal).__name__} does more than embedding, layers, norm and output matrix (its "
            f"logits differ by {off:.2g} of the largest); models like Llama, Qwen, Mistral and Emu3 can be trained"
        )


def _opened(path: str, config: Any) -> Any:
    """Open the weights; raises RecipeError where they cannot be, or hold what a checkpoint would not."""
    from safetensors import SafetensorError

    try:
        causal = _language_half(path, config) if _whole_config(path).architectures == [_WHOLE] else _model(path, config)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RecipeError(f"{_WHERE}: {path}: {' '.join(str(error).split())[:200]}") from error
    held = {name for name, _ in causal.named_parameters(remove_duplicate=False)}
    beside = sorted(causal.state_dict().keys() - held)
    if beside or getattr(causal.get_output_embeddings(), "bias", None) is not None:
        raise RecipeError(f"{_WHERE}: {path}: has {', '.join(beside[:3]) or 'a bias of the output matrix'}, which "
                          "checkpoints do not carry")  # fmt: skip
    return causal


def _model(path: str, config: Any) -> Any:
    kind = causal_class(config.to_dict(), f"{_WHERE}: {path}")
    return kind.from_pretrained(
        path, config=config, attn_implementation=attention.NAME, dtype=torch.float32, use_safetensors=True
    )


def _language_half(path: str, config: Any) -> Any:
    """Open a whole Emu3 and keep what reads and writes ids."""
    from transformers import Emu3ForCausalLM, Emu3ForConditionalGeneration

    both = _whole_config(path)
    both.text_config = config
    whole = Emu3ForConditionalGeneration.from_pretrained(path, config=both, dtype=torch.float32, use_safetensors=True)
    with torch.device("meta"):
        causal: Any = Emu3ForCausalLM(whole.config.text_config)
    causal.model, causal.lm_head = whole.model.text_model, whole.lm_head
    causal.set_attn_implementation(attention.NAME)
    return causal


def _check_positions(config: Any, settings: ModelSettings, context: int) -> None:
    """Refuse packs longer than the model's context, and attention that does not reach over them."""
    check_context(settings, context)
    allowed = settings.context or config.max_position_embeddings
    if context > allowed:
        raise RecipeError(
            f"{_WHERE}: {settings.from_path} is made for {config.max_position_embeddings} ids, and packs of the plan "
            f"have {context} (plan.context); plan shorter packs, or set train.model.context to {context} to train it "
            "on longer ones (and train.model.rope_base, if its positions need one)"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if window and window < context and (not kinds or "sliding_attention" in kinds):
        raise RecipeError(f"{_WHERE}: {settings.from_path} attends to {window} ids back (sliding_window), and packs of "
                          f"the plan have {context}; plan packs of at most {window} ids")  # fmt: skip
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if kind in _CHANGING_POSITIONS:
        raise RecipeError(f"{_WHERE}: {settings.from_path} has rotary positions of type {kind}, which change with the "
                          "length of a pack; documents would not be what they are alone")  # fmt: skip


def _rows(path: str, config: Any, settings: ModelSettings, vocabulary: Vocabulary) -> NDArray[np.int64] | None:
    """Say which row of the model each id takes over; None where it takes over all as they stand."""
    size = config.vocab_size
    if settings.rows == "fresh":
        return rows_anew(vocabulary)
    if settings.rows == "ids":
        return rows_by_id(vocabulary, size)
    spec = _trained_vocabulary(path)
    if spec is not None:
        if not is_same_vocabulary(spec, vocabulary):
            raise RecipeError(
                f"{_WHERE}: {path} was trained on vocabulary {described(spec)} of {size} ids, the plan's is "
                f"{described(vocabulary.spec)} of {vocabulary.size}: an id would mean something else"
            )
        return None
    theirs = meanings_of_model(path)
    if theirs is not None:
        return rows_by_token(vocabulary, theirs, size, path)
    if size == vocabulary.size:
        return None
    raise RecipeError(
        f"{_WHERE}: {path} has {size} ids and no tokenizer beside it, the plan's vocabulary {vocabulary.name} has "
        f"{vocabulary.size}: which rows to keep cannot be told; put its tokenizer.json there, or set train.model.rows"
    )


def _trained_vocabulary(path: str) -> dict[str, Any] | None:
    """Return the vocabulary that an export of tokenmill was trained on; None for other models."""
    file = Path(path) / "tokenmill.json"
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{_WHERE}: {file}: does not say its vocabulary ({error})") from error
