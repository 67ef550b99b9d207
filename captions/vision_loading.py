"""Loading an image-text-to-text model of transformers': whole, from safetensors, without code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenmill.captions.model_files import ModelFiles
from tokenmill.errors import RunError


def loaded(files: ModelFiles, device: str, dtype: str) -> tuple[Any, Any]:
    """Return processor and model; raises RunError for anything less than a whole image-text-to-text model."""
    import torch
    import transformers

    folder = files.fetch()
    transformers.utils.logging.disable_progress_bar()  # a bar of its own for every worker and source
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        model, found = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), use_safetensors=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
        missing = sorted({*found["missing_keys"], *(one[0] for one in found["mismatched_keys"])})
        if missing:
            raise RunError(f"{len(missing)} weights are missing or of another shape, such as {missing[0]}")
        return processor, _ready(model).to(device)
    except MemoryError:
        raise
    except Exception as error:  # ImportError too: a processor or a quantization may need a package of its own
        why = " ".join(str(error).split())[:300]
        raise RunError(f"model {files.model!r} cannot be loaded as an image-text-to-text model: {why}") from error


def _ready(model: Any) -> Any:
    """Put a model into evaluation, and take from its own defaults what belongs to sampling: the recipe decides that."""
    for part in model.modules():
        defaults = getattr(part, "generation_config", None)
        if defaults is not None:
            defaults.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_length=None)
    return model.eval()


def ends(model: Any, tokenizer: Any) -> Iterator[int]:
    """Yield the ids that end an answer."""
    defaults = (getattr(part, "generation_config", None) for part in model.modules())
    found = [one.eos_token_id for one in defaults if one is not None]
    found += [tokenizer.eos_token_id, getattr(model.config.get_text_config(), "sep_token_id", None)]
    for ids in found:
        yield from ids if isinstance(ids, list) else [] if ids is None else [ids]


def placeholder(processor: Any) -> str:
    """Return what stands for a picture in a bare prompt; empty where the processor puts it there itself (BLIP-2)."""
    token = getattr(processor, "image_token", None)
    return token if isinstance(token, str) and not hasattr(processor, "num_query_tokens") else ""
