"""Any image-text-to-text model of transformers', in this process, on a CPU or a GPU: no server to run.

The next batch is pulled (which decodes its pictures) and turned into tensors while the model writes the current one.
`generate` waits for the longest answer of a batch; a server of vLLM's is several times faster on a GPU, so this is for
models that nothing else runs, for CPUs and for small jobs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from itertools import chain, groupby, islice
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.captions.ahead import Ahead
from tokenmill.captions.captioner import Answer, Request, Takes, Usage
from tokenmill.captions.model_files import ModelFiles
from tokenmill.captions.vision_model import Inputs, Sampling, VisionModel, Written
from tokenmill.errors import RunError, SampleError, TokenmillError
from tokenmill.manifests.identity import digest_of


@plain_dataclass(frozen=True, slots=True)
class _Batch:
    """Questions of one kind; without `inputs` they could not be prepared together."""

    requests: Sequence[Request]
    inputs: Inputs | None
    began_s: float


@dataclass(frozen=True, kw_only=True)
class TransformersCaptioner:
    """Asks a model that it loads itself.

    Args:
        model: folder or hub name; safetensors only, code of the model's own is never run.
        revision: of a hub name; name a commit, a branch may move.
        device: `auto` takes CUDA where there is one; not part of the fingerprint.
        dtype: of the weights; `auto` is as they were saved.
        batch_size: questions at once, halved where the device runs out of memory; not part of the fingerprint, since
            answers of a batch are those of its questions alone but for rounding.
        max_new_tokens: longer answers are cut off (`finish_reason: length`).
        temperature: 0 takes the likeliest token; else tokens are drawn by the question's own seed.
        top_p: draws only from the likeliest tokens of that probability together.
        max_side_px: larger pictures are shrunk before; null: as they are.
        clips: frames as several pictures, or as one video for models that take videos.
    """

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    max_new_tokens: Annotated[int, Field(ge=1, le=16384)] = 256
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_side_px: Annotated[int, Field(ge=16)] | None = 1024
    clips: Literal["images", "video"] = "images"

    name: ClassVar = "transformers"
    version: ClassVar = 1
    takes: ClassVar[Takes] = "pixels"
    asks: ClassVar = True
    places: ClassVar = ("model", "revision", "device", "batch_size")  # what lies there counts, and not how fast

    def check(self) -> None:
        """Look whether there is such a model, as far as that costs nothing; raises RecipeError."""
        self._files.check()

    @cached_property
    def fingerprint(self) -> str:
        """Hash the model's files and what shapes answers; raises RecipeError for a name without a model behind it."""
        settings = {key: value for key, value in asdict(self).items() if key not in self.places}
        if not self.temperature:
            settings.pop("top_p")
        return digest_of(
            {"name": self.name, "version": self.version, "settings": settings, "model": self._files.digest}
        )

    @property
    def needs_prompt(self) -> bool:
        """Models without a chat template (BLIP, GIT) caption a picture without being asked anything."""
        return self._files.chats

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        """Answer batch after batch in the order of the requests; at most three batches are held."""
        source = iter(requests)
        first = next(source, None)
        if first is None:
            return
        model = self._loaded
        with Ahead(self._prepared(chain([first], source), model), depth=1) as batches:
            for some in batches:
                for batch in some:
                    yield from self._settled(batch, model)

    def close(self) -> None:
        """Let go of the model and the device's memory."""
        if self.__dict__.pop("_loaded", None) is not None:
            _free_memory()

    @cached_property
    def _files(self) -> ModelFiles:
        return ModelFiles(self.model, self.revision, self.name)

    @cached_property
    def _loaded(self) -> VisionModel:
        _ = self.fingerprint
        return VisionModel(self._files, device=self.device, dtype=self.dtype, as_video=self.clips == "video")

    @property
    def _sampling(self) -> Sampling:
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p)

    def _prepared(self, source: Iterator[Request], model: VisionModel) -> Iterator[list[_Batch]]:
        while requests := list(islice(source, self.batch_size)):
            began_s = time.perf_counter()
            kinds = groupby(sorted(requests, key=model.kind), key=model.kind)
            yield [_prepare(tuple(some), model, began_s) for _, some in kinds]

    def _settled(self, batch: _Batch, model: VisionModel) -> Iterator[Sequence[Answer]]:
        """Answer a batch, by halves where it fails as a whole, so that a failure is of one question alone."""
        number = len(batch.requests)
        at_once = min(number, model.room.rows)
        outcome = self._attempt(batch, model) if at_once == number else None
        if isinstance(outcome, list):
            yield outcome
        elif outcome is not None and number == 1:
            seconds = time.perf_counter() - batch.began_s
            failed = Answer(index=batch.requests[0].index, error=outcome, usage=Usage(requests=1), seconds=seconds)
            yield (replace(failed, model=model.files.label),)
        else:
            size = at_once if outcome is None else (number + 1) // 2
            for start in range(0, number, size):
                part = batch.requests[start : start + size]
                yield from self._settled(_Batch(part, None, batch.began_s), model)

    def _attempt(self, batch: _Batch, model: VisionModel) -> list[Answer] | SampleError:
        """Answer a batch, or say what is wrong with it; raises RunError where no other batch can fare better."""
        import torch

        try:
            inputs = batch.inputs if batch.inputs is not None else model.inputs(batch.requests)
            written = model.write(inputs, [request.seed for request in batch.requests], self._sampling)
            model.room.was_enough(len(batch.requests))
            return _answers(batch, written, model)
        except SampleError as error:
            return error
        except (ImportError, MemoryError, TokenmillError):
            raise
        except torch.OutOfMemoryError:
            failure = SampleError("out_of_memory", "the device has too little memory for it alone", transient=True)
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            if "CUDA error" in why:  # whatever comes after it on this device fails too
                raise RunError(f"model {model.files.model!r}: {why}") from error
            if "DefaultCPUAllocator" in why:
                raise MemoryError(why) from error
            return SampleError("model_failed", f"{type(error).__name__}: {why}")
        model.room.was_short(len(batch.requests))
        _free_memory()
        return failure


def _prepare(requests: Sequence[Request], model: VisionModel, began_s: float) -> _Batch:
    """Make tensors of questions; what is wrong with any of them comes out when they are answered."""
    try:
        return _Batch(requests, model.inputs(requests), began_s)
    except (ImportError, MemoryError, RunError):
        raise
    except Exception:
        return _Batch(requests, None, began_s)


def _answers(batch: _Batch, written: Sequence[Written], model: VisionModel) -> list[Answer]:
    seconds = time.perf_counter() - batch.began_s
    return [
        Answer(
            index=request.index, texts=(one.text,), model=model.files.label, finish_reason=one.finish_reason,
            usage=Usage(requests=1, input_tokens=one.input_tokens, output_tokens=one.output_tokens), seconds=seconds,
        )
        for request, one in zip(batch.requests, written, strict=True)
    ]  # fmt: skip


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
