"""FID, CLIP-I and CLIP-T of the pictures drawn for MSCOCO captions, by networks whose weights are given by path.

FID compares what was drawn with the photographs of the same captions, CLIP-I the two pictures of a caption, CLIP-T a
picture and its caption (mean cosines). Photographs are cut around their centre to the drawn pictures' shape and resized
to their size, as FIDs on COCO are usually taken; the paper does not say which it took, nor which CLIP. A photograph of
1 megapixel costs more to decode than to measure, so one pass serves both networks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.filters.clip_model import ClipModel, shared_model
from tokenmill.filters.clip_pixels import ClipPixels, clip_pixels
from tokenmill.filters.clip_source import ClipSource
from tokenmill.filters.picture import Picture
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.benchmarks.folder import ASKED, BenchmarkFolder
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.tokenize.preprocess import resize

NAME = "likeness.json"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """Where the weights lie; an empty one is not measured with.

    Attributes:
        features: the FID's Inception, or a folder of an image encoder (its distance is no FID and not called one).
        clip: a folder of open_clip's; `pretrained` a file of weights for a name of open_clip's.
    """

    features: str = ""
    clip: str = ""
    pretrained: str = ""
    device: str = "cpu"
    batch: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    caption: str
    drawn: Pixels
    reference: Pixels


def measure_likeness(folder: BenchmarkFolder, references: Store, networks: Networks) -> dict[str, Any]:
    """Measure what was drawn, write `likeness.json` and return what it says.

    Raises:
        RecipeError: no network is named, or weights are not to be had. RunError: fewer than two pairs are there.
    """
    if not networks.features and not networks.clip:
        raise RecipeError("nothing to measure with: name --features (FID), --clip (CLIP-I, CLIP-T) or both")
    failed: Counter[str] = Counter()
    fid = _Fid(networks) if networks.features else None
    clip = _Cosines(networks) if networks.clip else None
    count = 0
    for batch in _batches(_pairs(folder, references, failed), networks.batch):
        for one in (fid, clip):
            if one is not None:
                one.add(batch)
        count += len(batch)
    if count < 2:
        raise RunError(f"{count} pairs of a drawn picture and its photograph; at least two are needed ({dict(failed)})")
    measures = [row for one in (fid, clip) if one is not None for row in one.rows()]
    found = {
        "measures": [{"measure": name, "value": value, "count": count} for name, value in measures],
        "networks": {name: value for one in (fid, clip) if one is not None for name, value in one.named.items()},
        "failed": dict(sorted(failed.items())),
    }
    folder.put(NAME, (json.dumps(found, indent=1) + "\n").encode())
    return found


class _Fid:
    """Sums of features of both sides."""

    def __init__(self, networks: Networks) -> None:
        from tokenmill.generate.frechet import Moments
        from tokenmill.generate.picture_features import open_features

        self._features = open_features(networks.features, networks.device)
        self._drawn, self._references = Moments(), Moments()
        self.named = {"features": self._features.name}

    def add(self, batch: Sequence[_Pair]) -> None:
        self._drawn.add(self._features.measure(np.stack([pair.drawn for pair in batch])))
        self._references.add(self._features.measure(np.stack([pair.reference for pair in batch])))

    def rows(self) -> list[tuple[str, float]]:
        from tokenmill.generate.frechet import frechet_distance

        name = "FID" if self._features.is_fid else f"Fréchet ({self._features.name})"
        return [(name, frechet_distance(self._drawn, self._references))]


class _Cosines:
    """Sums of the cosines of a picture with its photograph and with its caption."""

    def __init__(self, networks: Networks) -> None:
        self._source = ClipSource(model=networks.clip, pretrained=networks.pretrained)
        self._model: ClipModel = shared_model(self._source, "fp32", networks.device)
        self._image = self._text = 0.0
        self._count = 0
        self.named = {"clip": self._source.digest}

    def add(self, batch: Sequence[_Pair]) -> None:
        drawn = self._model.embed_pictures([self._framed(pair.drawn) for pair in batch])
        references = self._model.embed_pictures([self._framed(pair.reference) for pair in batch])
        captions = self._model.embed_captions([pair.caption for pair in batch])
        self._image += float(np.sum(drawn.astype(np.float64) * references))
        self._text += float(np.sum(drawn.astype(np.float64) * captions))
        self._count += len(batch)

    def _framed(self, pixels: Pixels) -> ClipPixels:
        return clip_pixels(Picture.of(pixels), self._source.framing)

    def rows(self) -> list[tuple[str, float]]:
        return [("CLIP-I", self._image / self._count), ("CLIP-T", self._text / self._count)]


def fitted(photograph: Pixels, size: tuple[int, int]) -> Pixels:
    """Cut a photograph around its centre to the shape of (height, width), and resize it to that."""
    height, width = photograph.shape[:2]
    scale = min(height / size[0], width / size[1])
    kept = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    return resize(np.ascontiguousarray(photograph[top : top + kept[0], left : left + kept[1]]), size)


def _pairs(folder: BenchmarkFolder, references: Store, failed: Counter[str]) -> Iterator[_Pair]:
    """Yield every drawn picture with its photograph, in the order in which they were asked for."""
    most_pixels, whole = DecodeLimits().max_pixels, folder.whole()
    for row in _asked(folder):
        (file,) = row["files"]
        if file not in whole:
            failed["not_drawn"] += 1
            continue
        if not references.exists(row["reference"]):
            failed["no_photograph"] += 1
            continue
        try:
            photograph = decode_image(references.read_bytes(row["reference"]), max_pixels=most_pixels)
        except SampleError as error:
            failed[error.reason] += 1
            continue
        drawn = decode_image(folder.store.read_bytes(file), max_pixels=most_pixels)
        yield _Pair(caption=row["prompt"], drawn=drawn, reference=fitted(photograph, drawn.shape[:2]))


def _asked(folder: BenchmarkFolder) -> Iterator[Mapping[str, Any]]:
    for line in folder.store.read_bytes(ASKED).decode().splitlines():
        yield json.loads(line)


def _batches(pairs: Iterator[_Pair], size: int) -> Iterator[list[_Pair]]:
    batch: list[_Pair] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
