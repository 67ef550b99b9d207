"""How one source's samples become tokens, and what of that names the folder they are written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.filters.personal_mask import PersonalMask
from tokenmill.pipelines.tokens_clip import ClipPolicy
from tokenmill.pipelines.tokens_page import PagePolicy
from tokenmill.tokenize.vision import VisionTokenizer, load_vision_tokenizer, vision_fingerprint


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How one source's samples become tokens.

    Attributes:
        vocabulary, vision: specifications that `build_vocabulary` and `load_vision_tokenizer` take.
        min_area, max_area: pixels of a picture (or frame) after resizing; max_aspect: longer ones fail.
        clip: what becomes of clips of different lengths; of video alone.
        page: what becomes of the parts of a page or conversation; of documents alone.
        licence: of the source, stored with every sample.
        mask: replaces personal data in bodies, captions and metadata; None leaves them as they are.
    """

    modality: str
    vocabulary: Mapping[str, Any]
    vision: Mapping[str, Any]
    min_area: int
    max_area: int
    max_aspect: float
    clip: ClipPolicy | None = None
    page: PagePolicy | None = None
    licence: str = ""
    mask: PersonalMask | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What of this determines the archive of a source of this modality."""
        value: dict[str, Any] = {
            "modality": self.modality,
            "vocabulary": dict(self.vocabulary),
            "licence": self.licence,
        }
        if self.mask is not None:
            value["mask"] = self.mask.identity
        if self.modality != "text":
            value["vision"] = dict(self.vision)
            value["area"] = [self.min_area, self.max_area, self.max_aspect]
        if self.clip is not None:
            value["clip"] = self.clip.identity
        if self.page is not None:
            value["page"] = self.page.identity
        return value


def open_vision(spec: Mapping[str, Any]) -> VisionTokenizer:
    """Load the vision tokenizer of a recipe: `name` (or a folder), everything else options."""
    options = {key: value for key, value in spec.items() if key != "name"}
    return load_vision_tokenizer(spec["name"], **options)


def open_exact_vision(spec: Mapping[str, Any]) -> VisionTokenizer | None:
    """Load the plain float32 tokenizer of a recipe that runs it in less or compiled, None of one that does not."""
    from tokenmill.tokenize.vision_changes import exact_tokenizer

    return exact_tokenizer(spec["name"], **{key: value for key, value in spec.items() if key != "name"})


def fingerprint_of_vision(spec: Mapping[str, Any]) -> str:
    """Return the fingerprint of a recipe's vision tokenizer, without building it where its files tell."""
    return vision_fingerprint(spec["name"], **{key: value for key, value in spec.items() if key != "name"})
