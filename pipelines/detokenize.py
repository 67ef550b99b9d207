"""`tokenmill detokenize`: stored codes back as pictures (PNG) and clips (mp4), documents with their words beside them.

The vision tokenizer is the one that the archive's folder names, and its fingerprint is compared; an archive that lies
in no such folder has to be told one. Clips are decoded and written in runs of latent frames: an hour of film takes the
memory of one window or 0.3 megapixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

from tokenmill.errors import ManifestError, RecipeError, TokenmillError
from tokenmill.generate.write_video import write_mp4
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.detokenize_page import Shown, has_words, page_html, page_text
from tokenmill.pipelines.reconstruction import decoded_runs, grid_of
from tokenmill.pipelines.token_archive import ArchivedSample, Fault, TokenArchive
from tokenmill.pipelines.tokens_settings import open_vision
from tokenmill.tokenize.segments import TextSegment, VisionSegment
from tokenmill.tokenize.vision import VisionTokenizer
from tokenmill.tokenize.vocabulary import build_vocabulary

_LONGEST_NAME = 120
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(kw_only=True)
class Detokenized:
    """What was written: a row a file; what could not be, and how many samples have no tokens at all."""

    files: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    samples: int = 0
    absent: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"samples": self.samples, "absent": self.absent, "files": self.files, "faults": self.faults}


@dataclass(frozen=True, kw_only=True)
class Detokenizer:
    """Writes samples of one archive into a store.

    Attributes:
        vision_spec: replaces the vision tokenizer that the archive's folder names.
        file: the one file to write, instead of files named after the key.
    """

    archive: TokenArchive
    to: Store
    vision_spec: Mapping[str, Any] | None = None
    file: str | None = None

    def write(self, key: str | None) -> Detokenized:
        """Write the sample of a key, or all.

        Raises:
            RecipeError: no vision tokenizer is named, or it cannot be loaded; one file for a sample of several.
            ManifestError: it is another than the one that made the codes, there is no such key, or (of a single
                sample) its codes are not what its document says. Of all samples, such ones are listed as faults.
        """
        done = Detokenized()
        for sample in self.archive.samples(key):
            if isinstance(sample, Fault):
                self._fault(done, sample, key)
                continue
            visions = [segment for segment in sample.segments if isinstance(segment, VisionSegment)]
            if visions:
                _ = self.vision  # one that cannot be had is no fault of a sample
            try:
                done.files += self._sample(sample, visions)
            except ManifestError as error:
                self._fault(done, Fault(key=sample.key, what=str(error)), key)
                continue
            done.samples += 1
        return done

    def _fault(self, done: Detokenized, fault: Fault, key: str | None) -> None:
        told = f"{self.archive.name}: sample {fault.key!r}: {fault.what}"
        if key is not None:
            raise ManifestError(told)
        if fault.is_absent:
            done.absent += 1
        else:
            done.faults.append(told)

    def _sample(self, sample: ArchivedSample, visions: Sequence[VisionSegment]) -> list[dict[str, Any]]:
        if not sample.segments:
            raise ManifestError("has no segments")
        grids = [grid_of(segment, sample.codes, self.vision) for segment in visions]  # all are sound before any is made
        with_page = has_words(sample.segments)
        if self.file is not None:
            self._check_file(visions, with_page=with_page)
        made = []
        for number, (segment, grid) in enumerate(zip(visions, grids, strict=True)):
            suffix = ".png" if segment.fps is None else ".mp4"
            name = self.file or file_name(sample.key, suffix, number if with_page or len(visions) > 1 else None)
            about = self._picture(name, segment, grid) if segment.fps is None else self._clip(name, segment, grid)
            made.append({"key": sample.key, "file": name, **about})
        if with_page and self._says is not None:
            made += self._page(sample, [row["file"] for row in made])
        return made

    def _check_file(self, visions: Sequence[VisionSegment], *, with_page: bool) -> None:
        suffix = PurePosixPath(str(self.file)).suffix
        if with_page or len(visions) != 1:
            raise RecipeError(f"--out {self.file}: the sample becomes several files; name a folder")
        wanted = ".png" if visions[0].fps is None else ".mp4"
        if suffix != wanted:
            raise RecipeError(
                f"--out {self.file}: the sample is a {'picture' if wanted == '.png' else 'clip'}: {wanted}"
            )

    def _picture(self, name: str, segment: VisionSegment, grid: Any) -> dict[str, Any]:
        from PIL import Image

        (frames,) = decoded_runs(segment, grid, self.vision)
        stream = BytesIO()
        Image.fromarray(frames[0]).save(stream, "PNG")
        self.to.put(name, stream.getvalue())
        return {"kind": "picture", "height_px": frames.shape[1], "width_px": frames.shape[2]}

    def _clip(self, name: str, segment: VisionSegment, grid: Any) -> dict[str, Any]:
        assert segment.fps is not None
        with self.to.staging("") as staged:
            with staged.open("wb") as target:
                runs = decoded_runs(segment, grid, self.vision)
                count, height, width = write_mp4(target, runs, segment.fps)
            self.to.put_file(name, staged)
        size = {"frames": count, "height_px": height, "width_px": width}
        return {"kind": "clip", **size, "fps": segment.fps, "seconds": segment.seconds}

    def _page(self, sample: ArchivedSample, pictures: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Write what a sample says, with its pictures in their places."""
        files = iter(pictures)
        parts = [
            Shown(segment=segment, file=next(files))
            if isinstance(segment, VisionSegment)
            else Shown(segment=segment, text=self._text(sample, segment))
            for segment in sample.segments
        ]
        for suffix, text in ((".txt", page_text(parts)), (".html", page_html(sample.key, parts))):
            name = file_name(sample.key, suffix)
            self.to.put(name, text.encode("utf-8", "backslashreplace"))
            yield {"key": sample.key, "file": name, "kind": "text" if suffix == ".txt" else "page"}

    def _text(self, sample: ArchivedSample, segment: TextSegment) -> str:
        ids = [int(one) for one in sample.text_ids[segment.start : segment.end]]
        tokenizer = self._says
        if ids and max(ids) >= tokenizer.size:
            raise ManifestError(f"its text ids reach {max(ids)}, the text tokenizer has {tokenizer.size}")
        text: str = tokenizer.decode(ids)
        return text

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        return {} if self.archive.folder is None else self.archive.folder.config.settings

    @cached_property
    def _says(self) -> Any:
        """The text tokenizer, or None of an archive that does not tell."""
        spec = self._settings.get("vocabulary")
        return None if spec is None else build_vocabulary(spec).text

    @cached_property
    def vision(self) -> VisionTokenizer:
        """The vision tokenizer that made the codes."""
        spec = self.vision_spec or self._settings.get("vision")
        if not spec:
            told = "it lies in no folder of stage tokenize that names its vision tokenizer"
            raise RecipeError(f"{self.archive.name}: {told}; give --vision NAME")
        try:
            vision = open_vision(on_this_machine(spec))
        except TokenmillError as error:
            hint = "" if self.vision_spec else "; --vision names another place of it"
            raise RecipeError(f"{self.archive.name}: {error}{hint}") from error
        self._check_fingerprint(vision, str(spec["name"]))
        return vision

    def _check_fingerprint(self, vision: VisionTokenizer, name: str) -> None:
        made_by = None if self.archive.folder is None else self.archive.folder.config.fingerprints.get("vision")
        if made_by is not None and made_by != vision.fingerprint:
            told = f"its codes were made by the vision tokenizer {made_by[:16]}"
            hint = "weights, dtype and batch_size have to be the same: --vision '{name: …, dtype: …, batch_size: …}'"
            raise ManifestError(f"{self.archive.name}: {told}, {name} is {vision.fingerprint[:16]}; {hint}")


def on_this_machine(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification without a CUDA device that this machine lacks; a device is in no fingerprint."""
    from torch import cuda

    lacks = str(spec.get("device", "")).startswith("cuda") and not cuda.is_available()
    return {name: value for name, value in spec.items() if not (lacks and name == "device")}


def file_name(key: str, suffix: str, number: int | None = None) -> str:
    """Return the file of a sample, or of its picture `number`: the key where it is fit for one, else with a digest."""
    name = _UNSAFE.sub("_", key)[:_LONGEST_NAME]
    if name != key or not name or name.startswith("-"):
        name = f"{name.lstrip('-') or 'sample'}-{sha256_hex(key.encode('utf-8', 'surrogatepass'))[:8]}"
    return f"{name}{suffix}" if number is None else f"{name}.{number}{suffix}"
