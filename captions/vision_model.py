"""A loaded image-text-to-text model of transformers': questions to tensors, tensors to answers, a batch at a time.

Two kinds: models with a chat template are told a system message, pictures (or a video) and the prompt; models without
one (BLIP, GIT, BLIP-2, PaliGemma) continue or answer the bare prompt. Prompts of different lengths share a batch of the
first kind (padded on the left, masked); the second kind shares only equal lengths, since BLIP overwrites padding.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.captions.captioner import Request
from tokenmill.captions.conversation import control_tokens, disarmed, pictures_of
from tokenmill.captions.model_files import ModelFiles
from tokenmill.captions.room import Room
from tokenmill.captions.vision_loading import ends, loaded, placeholder
from tokenmill.errors import RunError, SampleError

Inputs = Mapping[str, Any]
_PROBE = "system-probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; temperature 0 takes the likeliest."""

    max_new_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a model wrote for a question: `finish_reason` is `stop` or `length`."""

    text: str
    input_tokens: int
    output_tokens: int
    finish_reason: str


class VisionModel:
    """Processor and weights on their device.

    Args:
        files: what is loaded; safetensors alone, no code of the model's own.
        device: `auto` takes CUDA where there is one.
        dtype: of the weights; `auto` is as they were saved.
        as_video: frames of a clip are one video, not several pictures.

    Raises:
        RunError: files, libraries or settings do not make a model.
    """

    def __init__(self, files: ModelFiles, *, device: str, dtype: str, as_video: bool) -> None:
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.files, self._as_video = files, as_video
        self.processor, self.model = loaded(files, device, dtype)
        self.room = Room()
        if as_video and getattr(self.processor, "video_processor", None) is None:
            raise RunError(f"model {files.model!r} takes no videos; set `clips: images`")
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._words = copy.deepcopy(tokenizer)  # for answers: a tokenizer is for one thread at a time
        self._preparing = threading.Lock()
        self._placeholder = placeholder(self.processor)
        self._control = control_tokens(tokenizer, self._placeholder, getattr(self.processor, "video_token", None))
        self._chats = bool(self.processor.chat_template)
        self._hears_system = self._chats and self._system_is_heard()
        self._ends = frozenset(ends(self.model, tokenizer))
        self._longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def kind(self, request: Request) -> tuple[Any, ...]:
        """Return what questions must have in common to share a batch."""
        num_frames = 0 if request.frames is None else len(request.frames)
        if self._chats:
            return (num_frames,)
        with self._preparing:
            return (num_frames, len(self.processor.tokenizer(self._bare_text(request))["input_ids"]))

    def inputs(self, requests: Sequence[Request]) -> Inputs:
        """Return the tensors of questions of one kind, on the CPU; raises SampleError for more than the model reads."""
        with self._preparing:
            return dict(self._chat_inputs(requests) if self._chats else self._bare_inputs(requests))

    def write(self, inputs: Inputs, seeds: Sequence[int], sampling: Sampling) -> list[Written]:
        """Answer a batch, one seed a row; rows depend on each other only in how numbers are rounded."""
        import torch

        from tokenmill.captions.seeded_choice import SeededChoice

        self._check_length(inputs, sampling.max_new_tokens)
        choice = SeededChoice(
            seeds, steps=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p
        )
        with torch.inference_mode():
            rows_BT = self.model.generate(
                **self._on_device(inputs), max_new_tokens=sampling.max_new_tokens, logits_processor=[choice],
                do_sample=False, num_beams=1,
            )  # fmt: skip
        start = choice.prompt_length
        if start is None:
            raise RunError(f"model {self.files.model!r} generates in a way of its own, which this engine cannot follow")
        lengths = self._input_lengths(inputs, len(seeds))
        rows = rows_BT[:, start:].tolist()
        return [self._written(row, length, sampling) for row, length in zip(rows, lengths, strict=True)]

    def _chat_inputs(self, requests: Sequence[Request]) -> Inputs:
        conversations = [self._conversation(request) for request in requests]
        settings: dict[str, Any] = {"padding": True}
        if self._as_video and any(_is_clip(request) for request in requests):
            settings |= {"video_metadata": [_metadata(request) for request in requests], "do_sample_frames": False}
        found: Inputs = self.processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
            processor_kwargs=settings,
        )  # fmt: skip
        return found

    def _conversation(self, request: Request) -> list[dict[str, Any]]:
        system, prompt = self._disarmed(request.system), self._disarmed(request.prompt)
        if system and not self._hears_system:
            system, prompt = "", f"{system}\n\n{prompt}"
        content: list[dict[str, Any]] = []
        if self._as_video and _is_clip(request):
            content.append({"type": "video", "video": request.frames})
        else:
            content += [{"type": "image", "image": picture} for picture in pictures_of(request)]
        if prompt:
            content.append({"type": "text", "text": prompt})
        messages = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        return [*messages, {"role": "user", "content": content}]

    def _bare_inputs(self, requests: Sequence[Request]) -> Inputs:
        pictures = [pictures_of(request) for request in requests]
        if len(pictures[0]) > 1 and not self._placeholder:
            raise RunError(f"model {self.files.model!r} captions single pictures; set `frames: 1` for clips")
        texts = [self._bare_text(request) for request in requests]
        nested = pictures if self._placeholder else [one for some in pictures for one in some]
        found = dict(
            self.processor(
                images=nested if pictures[0] else None, text=texts if texts[0] else None, return_tensors="pt"
            )
        )
        if self.model.config.model_type == "git" and "input_ids" in found:  # its prompts are continued: no end of text
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                found |= {name: found[name][:, :-1]} if name in found else {}
        return found

    def _bare_text(self, request: Request) -> str:
        words = "\n".join(filter(None, (self._disarmed(request.system), self._disarmed(request.prompt))))
        num_frames = 0 if request.frames is None else len(request.frames)
        return self._placeholder * num_frames + words

    def _disarmed(self, text: str) -> str:
        return disarmed(text, self._control)

    def _system_is_heard(self) -> bool:
        """Tell whether the template shows a system message: some refuse one, some drop it silently."""
        user = {"role": "user", "content": [{"type": "text", "text": "Hello."}]}
        system = {"role": "system", "content": [{"type": "text", "text": _PROBE}]}
        try:
            return _PROBE in self.processor.apply_chat_template([system, user], add_generation_prompt=True)
        except Exception:  # templates raise what they like, jinja2's errors among others
            return False

    def _check_length(self, inputs: Inputs, max_new_tokens: int) -> None:
        if "input_ids" not in inputs or not self._longest:
            return
        length = inputs["input_ids"].shape[1]
        if length + max_new_tokens > self._longest:
            raise SampleError(
                "prompt_too_long", f"{length} tokens and {max_new_tokens} of an answer; the model reads {self._longest}"
            )

    def _on_device(self, inputs: Inputs) -> Inputs:
        return dict(self._moved(inputs))

    def _moved(self, inputs: Inputs) -> Iterator[tuple[str, Any]]:
        for name, value in inputs.items():
            if hasattr(value, "is_floating_point"):
                kind = self.model.dtype if value.is_floating_point() else value.dtype
                yield name, value.to(self.model.device, kind)
            else:
                yield name, value

    def _input_lengths(self, inputs: Inputs, number: int) -> list[int]:
        """Count tokens as the model reads them, pictures included where they stand among the ids; not the padding."""
        mask = inputs.get("attention_mask", inputs.get("decoder_attention_mask"))
        return [0] * number if mask is None else mask.sum(dim=1).tolist()

    def _written(self, row: Sequence[int], input_tokens: int, sampling: Sampling) -> Written:
        end = next((place for place, token in enumerate(row) if token in self._ends), None)
        cut = end is None and len(row) >= sampling.max_new_tokens
        return Written(
            text=self._words.decode(row[:end], skip_special_tokens=True).strip(),
            input_tokens=input_tokens,
            output_tokens=len(row) if end is None else end + 1,
            finish_reason="length" if cut else "stop",
        )


def _is_clip(request: Request) -> bool:
    return request.frames is not None and len(request.frames) > 1


def _metadata(request: Request) -> dict[str, Any]:
    """Say when frames are seen: some models are told the seconds, others only the order."""
    number = 0 if request.frames is None else len(request.frames)
    span = request.seconds[-1] - request.seconds[0] if len(request.seconds) > 1 else 0.0
    fps = (number - 1) / span if span > 0 else 1.0
    return {"total_num_frames": number, "fps": fps, "frames_indices": list(range(number))}
