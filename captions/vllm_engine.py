"""What tokenmill asks of vLLM, in one place: written against 0.33, tried with 0.32.

`LLM.enqueue_chat` renders a conversation with the model's own template and hands it to the engine; `LLMEngine.step`
gives whatever is finished by now. Imported only where vllm is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.captions.captioner import Answer, Request, Usage
from tokenmill.captions.conversation import control_tokens, disarmed, pictures_of
from tokenmill.captions.model_files import ModelFiles
from tokenmill.errors import RunError, SampleError

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class _Asked:
    index: int
    internal: str  # the engine's own name for it
    began_s: float


class VllmEngine:
    """A loaded LLM and the questions in it.

    Args:
        files: of the model.
        settings: of the LLM.
        sampling: temperature, top_p, max_tokens.

    Raises:
        RunError: vLLM cannot run this model with these settings here.
    """

    def __init__(self, files: ModelFiles, settings: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        from vllm import LLM

        self._files, self._sampling = files, dict(sampling)
        folder = str(files.fetch())
        try:
            # A picture is asked about once: no cache of prepared ones. No pickled weights, no code of the model's own.
            self._llm = LLM(
                folder, trust_remote_code=False, load_format="safetensors", mm_processor_cache_gb=0, seed=0, **settings
            )
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise RunError(f"vllm cannot run model {files.model!r}: {why}") from error
        defaults = self._llm.get_default_sampling_params()
        self._sampling["repetition_penalty"] = defaults.repetition_penalty
        self._control = control_tokens(self._llm.get_tokenizer())
        self._waiting: dict[str, _Asked] = {}

    @property
    def num_waiting(self) -> int:
        """How many questions are in the engine."""
        return len(self._waiting)

    def add(self, request: Request) -> list[Answer]:
        """Hand over a question; returns its answer if that is an error (too long, too many pictures)."""
        from vllm import SamplingParams

        began_s = time.perf_counter()
        seed = request.seed % _SEEDS if self._sampling["temperature"] else None
        try:
            (internal,) = self._llm.enqueue_chat(
                [messages(request, self._control)], SamplingParams(seed=seed, **self._sampling), use_tqdm=False
            )
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            self._check_alive(error)
            failure = SampleError("model_refused", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return [self._failed(request.index, began_s, failure)]
        # Outputs come under the name that was given, to which the engine adds eight random characters.
        self._waiting[internal.partition("-")[0]] = _Asked(request.index, internal, began_s)
        return []

    def step(self) -> list[Answer]:
        """Let the engine work and return what it finished; raises RunError if it died."""
        try:
            outputs = self._llm.llm_engine.step()
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise RunError(f"vllm stopped while it ran model {self._files.model!r}: {why}") from error
        return [self._answer(output) for output in outputs if output.finished]

    def drop(self) -> None:
        """Take back what is not answered."""
        if self._waiting:
            self._llm.llm_engine.abort_request([one.internal for one in self._waiting.values()], internal=True)
            self._waiting.clear()

    def shutdown(self) -> None:
        """End the engine's processes and free its GPUs."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def _answer(self, output: Any) -> Answer:
        asked = self._waiting.pop(output.request_id)
        (written,) = output.outputs
        reason = str(written.finish_reason)
        if reason not in ("stop", "length", "repetition"):
            return self._failed(asked.index, asked.began_s, SampleError("engine_failed", reason, transient=True))
        usage = Usage(requests=1, input_tokens=len(output.prompt_token_ids or ()), output_tokens=len(written.token_ids))
        return Answer(
            index=asked.index, texts=(written.text.strip(),), usage=usage, model=self._files.label,
            finish_reason=reason, seconds=time.perf_counter() - asked.began_s,
        )  # fmt: skip

    def _failed(self, index: int, began_s: float, error: SampleError) -> Answer:
        seconds = time.perf_counter() - began_s
        return Answer(index=index, error=error, usage=Usage(requests=1), model=self._files.label, seconds=seconds)

    def _check_alive(self, error: Exception) -> None:
        if "EngineDead" in type(error).__name__:
            raise RunError(f"vllm's engine died: {' '.join(str(error).split())[:300]}") from error


def messages(request: Request, control: frozenset[str]) -> list[dict[str, Any]]:
    """Return a question as vLLM's chat takes it: pictures in order, then the words."""
    content: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": picture} for picture in pictures_of(request)]
    if request.prompt:
        content.append({"type": "text", "text": disarmed(request.prompt, control)})
    system = disarmed(request.system, control)
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": content}]
