"""Emu3 as others keep it on disk, opened as if it were an export of ours: what a folder without `tokenmill.json` holds.

* transformers' whole model (`Emu3ForConditionalGeneration`: Emu3-Chat-hf, Emu3-Gen-hf): language model and vision
  tokenizer in the same safetensors, all ids in `vocabulary_map`. Of the weights the language half is read alone, so
  neither the tokenizer's 270 M parameters nor a second copy is in memory.
* BAAI's release (type `Emu3`: Emu3-Gen, Emu3-Chat, Emu3-Stage1): the language model, `emu3.tiktoken` with it; the
  vision tokenizer in a folder of its own: `Emu3-VisionTokenizer` inside or beside, else BAAI's on the hub.

No code of a folder is run. Both have the released table of ids (EMU3.md §3), which is checked name by name: a model
whose ids mean something else would answer in noise. Text is split as Qwen does, which is what these models learned
from; transformers' converted tokenizer.json splits otherwise, so of it the ranks are taken and not the splitting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from tokenmill.errors import RecipeError
from tokenmill.tokenize.loading import without_progress_bar
from tokenmill.tokenize.text_qwen import ranks_digest
from tokenmill.tokenize.vision_emu3_files import safetensors_header
from tokenmill.tokenize.vocabulary import Vocabulary, vocabulary_shape

_WHOLE, _RELEASE = "emu3", "Emu3"
_RELEASED_VISION = "Emu3-VisionTokenizer"
_FIRST_SPECIAL = 151_643
_FIRST_FREE, _LAST_FREE = 151_646, 151_845  # `<|extra_0|>` to `<|extra_199|>`, one of which may be `<image>`
_MARKERS = {  # of the release's configuration, by the vocabulary's names
    "pad": "pad_token_id", "bos": "bos_token_id", "eos": "eos_token_id", "sot": "img_token_id", "sov": "boi_token_id",
    "eov": "eoi_token_id", "eol": "eol_token_id", "eof": "eof_token_id",
}  # fmt: skip
_LANGUAGE = (  # names as transformers has them in memory and as it saves them, to those of `Emu3ForCausalLM`
    (re.compile(r"^model\.text_model\."), "model."),
    (re.compile(r"^text_model\.model\."), "model."),
    (re.compile(r"^text_model\.lm_head\."), "lm_head."),
)
_VISION = re.compile(r"^(?:model\.)?vqmodel\.")


def emu3_kind(config: Mapping[str, Any]) -> Literal["emu3", "Emu3"] | None:
    """Say which of the two layouts a `config.json` describes; None for neither."""
    kind = config.get("model_type")
    return kind if kind in (_WHOLE, _RELEASE) else None


def describe_emu3(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Give what `tokenmill.json` would say of a folder in either layout: vocabulary and vision tokenizer.

    Raises:
        RecipeError: the ids of the configuration are not those of the released table, or no text tokenizer is there.
    """
    whole = emu3_kind(config) == _WHOLE
    text = config.get("text_config") or {} if whole else config
    size = int(text.get("vocab_size", 184_622))
    shape = vocabulary_shape({"name": "emu3"})
    codes = size - shape.vision_base
    if codes < 1:
        raise RecipeError(f"{path}: {size} ids; Emu3's table has {shape.vision_base} before its first code")
    shape = vocabulary_shape({"name": "emu3", "codebook_size": codes})
    told = _mapped_ids(config, path) if whole else _configured_ids(config, shape)
    _check_ids(told, whole, shape, path)
    vision = {"name": str(path)} if whole else _vision_of_release(path)
    return {"vocabulary": {"name": "emu3", **_text(path), "codebook_size": codes}, "vision": vision}


def open_emu3(path: Path, config: Mapping[str, Any], dtype: Any) -> Any:
    """Open the language model as transformers' `Emu3ForCausalLM`, on the CPU.

    Raises:
        RecipeError: weights that are no safetensors, or that lack tensors of the model or have others; named.
    """
    from transformers import Emu3ForCausalLM

    settings = _text_config(path, config)
    with ExitStack() as opened, without_progress_bar():
        tensors = dict(_tensors(path, opened))
        _check_names(tensors.keys(), settings, path)
        try:
            return Emu3ForCausalLM.from_pretrained(None, config=settings, state_dict=tensors, dtype=dtype)
        except (RuntimeError, ValueError) as error:
            raise RecipeError(f"{path}: its weights: {' '.join(str(error).split())[:200]}") from error


def _check_names(held: Collection[str], settings: Any, path: Path) -> None:
    import torch
    from transformers import Emu3ForCausalLM

    with torch.device("meta"):
        model = Emu3ForCausalLM(settings)
    tied = {"lm_head.weight"} if settings.tie_word_embeddings else set()
    own = set(model.state_dict())
    for names, what in ((own - tied - set(held), "lack"), (set(held) - own, "have")):
        if names:
            first, more = ", ".join(sorted(names)[:3]), f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise RecipeError(f"{path}: its weights {what} {first}{more}, unlike the model in config.json")


def _text_config(path: Path, config: Mapping[str, Any]) -> Any:
    from transformers import Emu3TextConfig

    described = dict(config)
    if emu3_kind(config) == _WHOLE:  # whose matrices are tied by the outer configuration
        tied = bool(config.get("tie_word_embeddings"))
        described = dict(config.get("text_config") or {}) | {"tie_word_embeddings": tied}
    for name in ("architectures", "auto_map", "model_type", "transformers_version", "dtype", "torch_dtype"):
        described.pop(name, None)
    try:
        return Emu3TextConfig(**described)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path}: its config.json: {' '.join(str(error).split())[:200]}") from error


def _tensors(path: Path, opened: ExitStack) -> Iterator[tuple[str, Any]]:
    """Yield the language model's tensors under the names of `Emu3ForCausalLM`, file by file, mapped into memory."""
    from safetensors import SafetensorError, safe_open

    for file in _weight_files(path):
        try:
            names = {name: _language_name(name) for name in safetensors_header(file)}
            wanted = {name: own for name, own in names.items() if own is not None}
            if wanted:
                tensors = opened.enter_context(safe_open(file, framework="pt"))
                for name, own in wanted.items():
                    yield own, tensors.get_tensor(name)
        except (OSError, ValueError, SafetensorError) as error:
            raise RecipeError(f"{file}: {str(error).splitlines()[0]}") from error


def _weight_files(path: Path) -> list[Path]:
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError as error:
        told = f"{path}: needs {single.name} or {index.name}; other weights are not opened"
        raise RecipeError(told) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecipeError(f"{index}: it holds no weight_map ({error})") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise RecipeError(f"{path}: {', '.join(missing[:3])} of {index.name} is not there")
    return [path / name for name in names]


def _language_name(name: str) -> str | None:
    """Return the name in `Emu3ForCausalLM`; None for the vision tokenizer's tensors."""
    if _VISION.match(name):
        return None
    for pattern, own in _LANGUAGE:
        if pattern.match(name):
            return pattern.sub(own, name)
    return name


def _mapped_ids(config: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Return surface to id of the whole model's table but for text."""
    table = config.get("vocabulary_map")
    if not isinstance(table, Mapping) or not table:
        raise RecipeError(f"{path}: its config.json has no vocabulary_map, so no id can be told from another")
    return {str(name): index for name, index in table.items() if str(name).startswith(("<|", "<image>"))}


def _configured_ids(config: Mapping[str, Any], shape: Vocabulary) -> dict[str, int]:
    """Return surface to id of what the release's configuration tells; what it leaves out is as released."""
    return {shape.describe(getattr(shape, role)): config[key] for role, key in _MARKERS.items() if key in config}


def _check_ids(told: Mapping[str, int], is_whole: bool, shape: Vocabulary, path: Path) -> None:
    """Compare every name with the released table; raises RecipeError naming those that differ, or are missing."""
    own = {shape.describe(index): index for index in range(_FIRST_SPECIAL, shape.size)}
    wrong = [f"{name} is {index}, not {own[name]}" for name, index in told.items() if own.get(name, index) != index]
    image = told.get("<image>")
    if image is not None and not _FIRST_FREE <= image <= _LAST_FREE:
        wrong.append(f"<image> is {image}, which is taken")
    if is_whole:
        needed = [*(getattr(shape, role) for role in _MARKERS), *range(shape.vision_base, shape.size)]
        wrong += [f"{shape.describe(index)} is missing" for index in needed if shape.describe(index) not in told]
    if wrong:
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise RecipeError(f"{path}: ids of another table than Emu3's: {'; '.join(wrong[:3])}{more}")


def _text(path: Path) -> dict[str, Any]:
    """Say where the text's ranks are, and their digest where they are not Qwen's own."""
    for name in ("emu3.tiktoken", "qwen.tiktoken", "tokenizer.json"):
        file = path / name
        if file.is_file():
            return {"path": str(file), **ranks_digest(file)}
    raise RecipeError(f"{path}: no text tokenizer is beside it: emu3.tiktoken, qwen.tiktoken or tokenizer.json")


def _vision_of_release(path: Path) -> dict[str, Any]:
    for folder in (path / _RELEASED_VISION, path.resolve().parent / _RELEASED_VISION):
        if (folder / "config.json").is_file():
            return {"name": str(folder)}
    return {"name": f"BAAI/{_RELEASED_VISION}"}
