"""vLLM in this process: its engine keeps the GPU full, without a server to start, watch and find.

The engine is never drained: it is stepped, and every question that is answered makes room for the next, which was
decoded beside it. vLLM pins its own torch, so it is no part of the lock file; see docs/captions.md for installing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.captions.ahead import Ahead
from tokenmill.captions.captioner import Answer, Request, Takes
from tokenmill.captions.model_files import ModelFiles
from tokenmill.errors import RunError
from tokenmill.manifests.identity import digest_of

_DECODED_AHEAD = 16  # pictures, so that an engine that answers many in one step is filled again at once


def _clip_frames() -> Mapping[Literal["image"], int]:
    return {"image": 12}


@dataclass(frozen=True, kw_only=True)
class VllmCaptioner:
    """Asks a model that vLLM runs on this worker's GPUs.

    Args:
        model: folder or hub name; safetensors only, code of the model's own is never run.
        revision: of a hub name; name a commit, a branch may move.
        dtype: of the weights; `auto` is what vLLM makes of the saved one.
        quantization: a method of vLLM's (`fp8`, `awq`, …); none: what the model's configuration says.
        max_model_len: tokens of a question and its answer; none: the model's own limit.
        tensor_parallel_size: GPUs the model is cut over; give the stage's pool as many.
        gpu_memory_utilization: share of the GPU's memory that vLLM takes.
        limit_mm_per_prompt: pictures of a question; memory is set aside for that many.
        batch_size: questions in flight.
        max_new_tokens: longer answers are cut off (`finish_reason: length`).
        temperature: 0 takes the likeliest token; else tokens are drawn by the question's own seed.
        top_p: draws only from the likeliest tokens of that probability together.
        max_side_px: larger pictures are shrunk before; null: as they are.
    """

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    limit_mm_per_prompt: Mapping[Literal["image"], Annotated[int, Field(ge=0)]] = Field(default_factory=_clip_frames)
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 256
    max_new_tokens: Annotated[int, Field(ge=1, le=16384)] = 256
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_side_px: Annotated[int, Field(ge=16)] | None = 1024

    name: ClassVar = "vllm"
    version: ClassVar = 1
    takes: ClassVar[Takes] = "pixels"
    asks: ClassVar = True
    decides: ClassVar = ("dtype", "quantization", "max_new_tokens", "temperature", "max_side_px")

    def check(self) -> None:
        """Look whether there is such a model, as far as that costs nothing; raises RecipeError."""
        self._files.check()

    @cached_property
    def fingerprint(self) -> str:
        """Hash the model's files and what shapes answers; raises RecipeError for a name without a model behind it."""
        settings = {key: value for key, value in asdict(self).items() if key in self.decides}
        if self.temperature:
            settings["top_p"] = self.top_p
        return digest_of(
            {"name": self.name, "version": self.version, "settings": settings, "model": self._files.digest}
        )

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        """Keep `batch_size` questions in the engine and yield what each of its steps finishes."""
        source = iter(requests)
        first = next(source, None)
        if first is None:
            return
        engine = self._engine
        with Ahead(chain([first], source), depth=min(self.batch_size, _DECODED_AHEAD)) as coming:
            try:
                yield from self._stepped(coming, engine)
            finally:
                engine.drop()

    def close(self) -> None:
        """Shut the engine down."""
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.shutdown()

    def _stepped(self, coming: Ahead[Request], engine: Any) -> Iterator[Sequence[Answer]]:
        more = True
        while more or engine.num_waiting:
            refused: list[Answer] = []
            while more and engine.num_waiting < self.batch_size and (coming.is_ready() or not engine.num_waiting):
                request = next(coming, None)
                more = request is not None
                if request is not None:
                    refused += engine.add(request)
            if answers := [*refused, *(engine.step() if engine.num_waiting else ())]:
                yield answers

    @cached_property
    def _files(self) -> ModelFiles:
        return ModelFiles(self.model, self.revision, self.name)

    @cached_property
    def _engine(self) -> Any:
        _ = self.fingerprint
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise RunError(
                f"captioner 'vllm' needs the package vllm, which this worker lacks ({error}): "
                "pip install 'tokenmill[vllm]', see docs/captions.md"
            ) from error
        from tokenmill.captions.vllm_engine import VllmEngine

        return VllmEngine(self._files, self._engine_settings, self._sampling)

    @property
    def _engine_settings(self) -> dict[str, Any]:
        """What vLLM's LLM is built with."""
        return {
            "dtype": self.dtype, "quantization": self.quantization, "max_model_len": self.max_model_len,
            "tensor_parallel_size": self.tensor_parallel_size, "gpu_memory_utilization": self.gpu_memory_utilization,
            "limit_mm_per_prompt": dict(self.limit_mm_per_prompt), "max_num_seqs": self.batch_size,
        }  # fmt: skip

    @property
    def _sampling(self) -> dict[str, Any]:
        """What vLLM's SamplingParams are built with."""
        return {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_new_tokens}
