"""The captioner that this project trained itself: an exported model says what it sees.

Without a prompt it continues the understanding template, which every captioned picture of pre-training taught it; with
one it answers the chat template. Pictures and clips are made into codes by the tokenizer and at the sizes the model
learned from, both named in its export, so a trained run is one line of the next one's recipe: the loop closes.

Nothing heavy is imported before the first question; who the model is, its files tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.captions.captioner import Answer, Request, Takes
from tokenmill.errors import ManifestError, RecipeError, RunError, StorageError
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.storage import open_store
from tokenmill.tokenize.vision import load_vision_tokenizer, vision_fingerprint

if TYPE_CHECKING:
    from tokenmill.generate.answering import Answering

Positive = Annotated[int, Field(ge=1)]
_AREA = (512 * 512, 512 * 512, 5.0)  # of a recipe that says nothing of it under tokenize


@dataclass(frozen=True, kw_only=True)
class TokenmillCaptioner:
    """Asks a model that `tokenmill train` exported.

    Args:
        model: the folder `checkpoints/<run>/export`, local or of any store; `storage` has that store's options.
        device: `cpu`, `cuda`, `cuda:1`.
        dtype: of the weights.
        batch_size: questions at a time; answers do not hang on it.
        max_new: ids of an answer; one that is not over by then has the finish reason `length`.
        temperature, top_k: at 0 the likeliest id; else each question draws by its own seed, over `top_k` ids or all.
        min_area, max_area, max_aspect: sizes of pictures and frames; by default those the model was trained on, which
            exports name (`areas`), else 512 x 512 and 5.
        fps: the rate a clip's frames are said to have; by default the one at which they were taken.
        max_side_px: larger pictures are shrunk before they are handed over, which costs less memory and changes codes.
    """

    model: str
    storage: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Positive = 8
    max_new: Positive = 256
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_area: Positive | None = None
    max_area: Positive | None = None
    max_aspect: Annotated[float, Field(ge=1)] | None = None
    fps: Annotated[float, Field(gt=0)] | None = None
    max_side_px: Positive | None = None

    name: ClassVar = "tokenmill"
    version: ClassVar = 1
    takes: ClassVar[Takes] = "pixels"
    asks: ClassVar = True

    @cached_property
    def fingerprint(self) -> str:
        """Of the export's files, its tokenizer's, and what decides about answers; raises RecipeError for no export."""
        described = {
            "dtype": self.dtype,
            "max_new": self.max_new,
            "temperature": self.temperature,
            "top_k": self.top_k if self.temperature else 0,
            "areas": [self._area(modality) for modality in ("image", "video")],
            "fps": self.fps,
            "max_side_px": self.max_side_px,
        }
        parts = {"model": self._export.fingerprint, "vision": vision_fingerprint(**self._vision)}
        return digest_of({"name": self.name, "version": self.version, **parts, "settings": described})

    def answers(self, requests: Iterable[Request]) -> Iterator[Sequence[Answer]]:
        """Answer one batch after the other; pictures are resized as they come, so one large one is held at a time.

        Raises:
            RecipeError: `model` is no export, was trained without pictures, or its vocabulary does not fit.
            RunError: there is no such device, or no room on it; the model gives no numbers.
        """
        opened, pulled = self._opened, iter(requests)
        while batch := [opened.question(request) for request in islice(pulled, self.batch_size)]:
            started = time.perf_counter()
            answers = opened.answers(batch)
            seconds = time.perf_counter() - started
            yield [replace(answer, model=self._called, seconds=seconds) for answer in answers]

    def close(self) -> None:
        """Let go of the model."""
        self.__dict__.pop("_opened", None)

    @cached_property
    def _export(self) -> ExportFolder:
        folder = ExportFolder(open_store(self.model, self.storage), "")
        try:
            known = folder.description
        except (StorageError, ManifestError) as error:
            what = "give checkpoints/<run>/export of a run that trained to its end"
            raise RecipeError(f"captioner tokenmill: {self.model}: no exported model; {what}") from error
        if "vocabulary" not in known:
            raise RecipeError(f"captioner tokenmill: {self.model}/tokenmill.json names no vocabulary; train again")
        if not known.get("vision"):
            raise RecipeError(f"captioner tokenmill: {self.model} was trained without pictures; it sees nothing")
        return folder

    @property
    def _called(self) -> str:
        """Name the model in answers: its run, and some digits of who it is."""
        *_, run = [part for part in self.model.rstrip("/").split("/") if part != "export"] or ["export"]
        return f"{run}@{self._export.fingerprint[:8]}"

    @property
    def _vision(self) -> dict[str, Any]:
        """What the vision tokenizer is loaded by: the export's own words, on our device."""
        spec = dict(self._export.description["vision"])
        name = spec.pop("name")
        if self.device != "cpu" or "device" in spec:
            spec["device"] = self.device
        return {"spec": name, **spec}

    def _area(self, modality: str) -> tuple[int, int, float]:
        """Return the least and the largest area, and the aspect: as set, as trained, or as recipes have them."""
        known = (self._export.description.get("areas") or {}).get(modality) or _AREA
        own = (self.min_area, self.max_area, self.max_aspect)
        least, most, aspect = (theirs if mine is None else mine for mine, theirs in zip(own, known, strict=True))
        if least > most:
            least, most = (least, least) if self.max_area is None else (most, most)
        return int(least), int(most), float(aspect)

    @cached_property
    def _opened(self) -> Answering:
        from tokenmill.generate.answering import Answering
        from tokenmill.generate.model import load_model
        from tokenmill.generate.seeing import Area

        areas = [
            Area(min_area=least, max_area=most, max_aspect=aspect)
            for least, most, aspect in map(self._area, ("image", "video"))
        ]
        try:
            with self._export.local() as path:
                model = load_model(path, dtype=self.dtype, device=self.device)
            vision = load_vision_tokenizer(**self._vision)
        except (RuntimeError, AssertionError) as error:  # torch has both for a device that is not there
            told = str(error).strip().splitlines()[0]
            raise RunError(f"captioner tokenmill: device {self.device}: {told}") from error
        return Answering(
            model=model,
            vision=vision,
            picture_area=areas[0],
            clip_area=areas[1],
            fps=self.fps,
            max_new=self.max_new,
            temperature=self.temperature,
            top_k=self.top_k,
        )
