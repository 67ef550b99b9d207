"""What a scorer is, and how a recipe names one.

A scorer turns samples into columns and nothing else: no files, no thresholds, no state between calls. Its fingerprint
is the identity of its columns on disk, so two recipes with equal fingerprints share annotations and a new scorer runs
alone. Selection is elsewhere (`rules.py`), which is why a new threshold costs seconds and no model call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import polars as pl

from tokenmill.errors import RunError
from tokenmill.filters.clip import Clip
from tokenmill.filters.picture import BASE, Image, Picture, View
from tokenmill.manifests.identity import digest_of
from tokenmill.plugins import build

__all__ = ["BASE", "Clip", "Columns", "Image", "Picture", "PreparedScorer", "Scorer", "View", "build_scorer"]

Columns = Mapping[str, Sequence[Any]]  # column -> one value a sample, None where there is none

ENTRY_POINT_GROUP = "tokenmill.scorers"
BUILT_IN = {
    "resolution": "tokenmill.filters.resolution:Resolution",
    "sha256": "tokenmill.filters.sha256:Sha256",
    "colourfulness": "tokenmill.filters.colourfulness:Colourfulness",
    "sharpness": "tokenmill.filters.sharpness:Sharpness",
    "entropy": "tokenmill.filters.entropy:Entropy",
    "perceptual_hash": "tokenmill.filters.perceptual_hash:PerceptualHash",
    "text_coverage": "tokenmill.filters.text_coverage:TextCoverage",
    "text_statistics": "tokenmill.filters.text_statistics:TextStatistics",
    "caption_quality": "tokenmill.filters.caption_quality:CaptionQuality",
    "blocklist": "tokenmill.filters.blocklist:Blocklist",
    "language": "tokenmill.filters.language:Language",
    "repetition": "tokenmill.filters.repetition:Repetition",
    "character_ratios": "tokenmill.filters.character_ratios:CharacterRatios",
    "personal_data": "tokenmill.filters.personal_data:PersonalData",
    "perplexity": "tokenmill.filters.perplexity:Perplexity",
    "minhash": "tokenmill.filters.minhash:MinHash",
    "text_blocklist": "tokenmill.filters.text_blocklist:TextBlocklist",
    "aesthetic": "tokenmill.filters.aesthetic:Aesthetic",
    "clip_embedding": "tokenmill.filters.clip_embedding:ClipEmbedding",
    "clip_similarity": "tokenmill.filters.clip_similarity:ClipSimilarity",
    "nsfw": "tokenmill.filters.classifier:nsfw",
    "watermark": "tokenmill.filters.classifier:watermark",
    "motion": "tokenmill.filters.motion:motion",
    "black": "tokenmill.filters.black:Black",
    "letterbox": "tokenmill.filters.letterbox:Letterbox",
    "clip_hash": "tokenmill.filters.clip_hash:ClipHash",
    "document_shape": "tokenmill.filters.document_shape:DocumentShape",
}


class Scorer(Protocol):
    """Adds columns to samples; built from a recipe's settings by a factory that takes them as keywords."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Counts changes of what the same settings compute; raise it together with the golden values."""

    @property
    def takes(self) -> Literal["image", "text", "video", "document"]: ...

    @property
    def columns(self) -> Mapping[str, pl.DataType]:
        """Name what it adds, units in the names."""

    @property
    def batch_size(self) -> int:
        """How many samples a call gets, at most 64; part of the fingerprint only where it can change a value.

        1: pictures are scored one by one in the threads that decode them.
        """

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over all that determines the values, see `fingerprint`."""

    def score(self, batch: Sequence[Any]) -> Columns:
        """Score pictures (`Picture`), texts (str), clips (`Clip`) or documents (`Pages`).

        Pictures and frames are of any size, down to 1 x 1.
        """


@runtime_checkable
class PreparedScorer(Scorer, Protocol):
    """A scorer with a costly model that first makes its pictures small: the halves may run on different machines.

    `score(batch)` equals `score_prepared(prepare(batch))`.
    """

    def prepare(self, batch: Sequence[Any]) -> Sequence[Any]:
        """Make of each sample what the model sees (HWC uint8, token ids: tens of kB); no model is loaded for this."""
        ...

    def score_prepared(self, batch: Sequence[Any]) -> Columns:
        """Score what `prepare` returned."""
        ...


def is_prepared(scorer: Any) -> TypeGuard[PreparedScorer]:
    """Tell whether a scorer has a model; by its class, since `isinstance` of a protocol would read the weights."""
    return hasattr(type(scorer), "score_prepared")


def identity_settings(scorer: Scorer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are part of what a scorer's columns are known by.

    Those that only say where something lies or runs (its attribute `places`: paths, devices) are not: the content of
    what lies there is in the fingerprint. Nor are those that say what goes without saying.
    """
    places = getattr(scorer, "places", ())
    defaults: dict[str, Any] = {one.name: one.default for one in fields(scorer)} if is_dataclass(scorer) else {}
    plain = {name for name, default in defaults.items() if getattr(scorer, name) == default}
    return {name: value for name, value in settings.items() if name not in places and name not in plain}


def views_of(scorer: Scorer) -> tuple[View, ...]:
    """Return what a scorer of pictures looks at: its attribute `views`, by default every pixel in colour."""
    return tuple(getattr(scorer, "views", (View(),)))


def reads_caption(scorer: Scorer) -> bool:
    """Tell whether a scorer's values hang on captions too: its attribute `reads_caption`."""
    return bool(getattr(scorer, "reads_caption", False))


def reads_caption_alone(scorer: Scorer) -> bool:
    """Tell whether a scorer of pictures needs no byte of them: `reads_caption`, and `views` is empty.

    One that takes clips never does.

    It scores every indexed sample, broken pictures too; size and data of its pictures are empty.
    """
    return reads_caption(scorer) and scorer.takes != "video" and not views_of(scorer)


def check_columns(scorer: Scorer, columns: Columns, num_samples: int) -> None:
    """Raise RunError unless a scorer said all that it offers, and no more, of so many samples."""
    if columns.keys() != scorer.columns.keys():
        said, offered = ", ".join(sorted(columns)) or "none", ", ".join(sorted(scorer.columns))
        raise RunError(f"scorer {scorer.name!r}: returned the columns {said}; it offers {offered}")
    for column, values in columns.items():
        if len(values) != num_samples:
            raise RunError(f"scorer {scorer.name!r}: {len(values)} values of {column!r} for {num_samples} samples")


def build_scorer(name: str, settings: Mapping[str, Any] | None = None) -> Scorer:
    """Build the scorer a recipe names; raises RecipeError for unknown names and settings."""
    scorer: Scorer = build("scorer", name, settings or {}, BUILT_IN, ENTRY_POINT_GROUP)
    return scorer


def fingerprint(name: str, version: int, settings: Mapping[str, Any], weights: str = "") -> str:
    """Hash what determines a scorer's values; `weights` is the digest of its model file, if it has one."""
    return digest_of({"name": name, "version": version, "settings": dict(settings), "weights": weights})


def fingerprint_of(scorer: Any, weights: str = "") -> str:
    """Fingerprint a scorer that is a dataclass whose fields are exactly its settings."""
    return fingerprint(scorer.name, scorer.version, asdict(scorer), weights)
