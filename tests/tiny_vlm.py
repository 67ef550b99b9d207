"""Vision-language models of two thin layers, with fixed random weights, as the hub would hold them.

`write_tiny_vlm` is a chat model (LLaVA: a CLIP tower and a Llama behind a chat template), `write_tiny_qwen` one that
takes pictures of any size and videos, `write_tiny_blip` and `write_tiny_git` caption without any template. 0.7 MB each,
written in 0.2 s, loaded in 0.1 s; a picture of 64 x 64 is answered with 16 tokens in some 30 ms on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenmill.demo.scenes import captions, scene

SIDE_PX, PATCH_PX, WIDTH = 64, 16, 48
END, IMAGE, VIDEO = "<|end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = ("<|pad|>", "<|start|>", END, IMAGE, VIDEO, "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "<|start|>{% for message in messages %}<|{{ message.role }}|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image_pad|>{% elif part.type == 'video' %}<|video_pad|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = {"num_hidden_layers": 2, "hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 4}
_SIZES = {"size": {"height": SIDE_PX, "width": SIDE_PX}, "do_center_crop": False}
_SPREAD = 0.25  # of random weights: at the usual 0.02 every picture gets the same answer


def write_tiny_vlm(folder: Path) -> Path:
    """Write a LLaVA that `AutoModelForImageTextToText` and `AutoProcessor` load; the same bytes every time."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaImageProcessor,
        LlavaProcessor,
    )

    tokenizer = small_tokenizer()
    text = LlamaConfig(**_text(tokenizer), num_key_value_heads=2, max_position_embeddings=2048)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_vision()), text_config=text, vision_feature_select_strategy="full",
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), vision_feature_layer=-1,
    )  # fmt: skip
    processor = LlavaProcessor(
        LlavaImageProcessor(**_SIZES), tokenizer, patch_size=PATCH_PX, vision_feature_select_strategy="full",
        num_additional_image_tokens=1, image_token=IMAGE, chat_template=TEMPLATE,
    )  # fmt: skip
    return _write(folder, LlavaForConditionalGeneration, config, processor, tokenizer)


def write_tiny_qwen(folder: Path) -> Path:
    """Write a Qwen2-VL: more tokens for larger pictures, videos, and no picture 200 times as long as wide."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = small_tokenizer()
    image_id, video_id = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
    sizes = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}}
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={**_text(tokenizer), "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 4, "patch_size": 8},
        image_token_id=image_id, video_token_id=video_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|user|>"),
    )  # fmt: skip
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=TEMPLATE
    )
    return _write(folder, Qwen2VLForConditionalGeneration, config, processor, tokenizer)


def write_tiny_blip(folder: Path) -> Path:
    """Write a BLIP: an encoder, a decoder that looks at it, no chat template, prompts that are continued."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    tokenizer = small_tokenizer(framed=True)
    config = BlipConfig(
        text_config=_text(tokenizer) | {"sep_token_id": tokenizer.sep_token_id, "max_position_embeddings": 64},
        vision_config=_vision() | {"initializer_range": 0.02},
    )
    processor = BlipProcessor(BlipImageProcessor(**_SIZES), tokenizer)
    return _write(folder, BlipForConditionalGeneration, config, processor, tokenizer, spread=0.12)


def write_tiny_git(folder: Path) -> Path:
    """Write a GIT: a decoder that reads the picture's patches before the text, no chat template."""
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    tokenizer = small_tokenizer(framed=True)
    config = GitConfig(
        **_text(tokenizer) | {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id},
        vision_config=_vision(), max_position_embeddings=64,
    )  # fmt: skip
    processor = GitProcessor(CLIPImageProcessor(**_SIZES), tokenizer)
    return _write(folder, GitForCausalLM, config, processor, tokenizer)


def small_tokenizer(*, framed: bool = False) -> Any:
    """Return a byte-level BPE of 400 tokens that knows the words of drawn scenes.

    `framed`: it puts `<|start|>` before and `<|end|>` behind a text, as BERT's does, and calls them cls and sep.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_scenes(), trainer)
    names = {"pad_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": END}
    if framed:
        start, end = (backend.token_to_id(token) for token in SPECIAL[1:3])
        backend.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[1]} $A {END}", special_tokens=[(SPECIAL[1], start), (END, end)]
        )
        names = {"pad_token": SPECIAL[0], "cls_token": SPECIAL[1], "sep_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, extra_special_tokens=list(SPECIAL[3:]))


def _scenes() -> list[str]:
    return [words for seed in range(50) for words in captions(scene(seed))]


def _text(tokenizer: Any) -> dict[str, Any]:
    start, end = tokenizer.convert_tokens_to_ids([SPECIAL[1], END])
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": start, "eos_token_id": end}
    return {**_TEXT, **ends, "vocab_size": len(tokenizer)}


def _vision() -> dict[str, Any]:
    return {**_TEXT, "image_size": SIDE_PX, "patch_size": PATCH_PX, "projection_dim": WIDTH}


def _write(folder: Path, kind: Any, config: Any, processor: Any, tokenizer: Any, spread: float = _SPREAD) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=spread)
    model.generation_config.update(**_manners(tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _manners(tokenizer: Any) -> dict[str, Any]:
    """Say nothing but words of the scenes, and come to an end after some ten: random weights alone do neither."""
    known = {word for caption in _scenes() for word in caption.replace(",", " ").split()}
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    unfit = [number for number, text in enumerate(texts) if not (text[:1] == " " and text[1:] in known and text[2:])]
    unfit.remove(tokenizer.convert_tokens_to_ids(END))
    return {"suppress_tokens": unfit, "exponential_decay_length_penalty": (6, 1.3), "max_length": None}
