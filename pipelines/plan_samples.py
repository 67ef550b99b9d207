"""What is drawn for the samples of a pass: the caption that they show, and the template that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.plan_drawn import Refused
from tokenmill.pipelines.plan_templates import draw_templates, sorted_shares
from tokenmill.pipelines.plan_wanted import pass_draws
from tokenmill.pipelines.plan_windows import ShardPass
from tokenmill.settings_mix import PAIRS
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.layouts import Scanned, signature_segments
from tokenmill.tokenize.segments import TextSegment
from tokenmill.tokenize.templates import is_pair
from tokenmill.tokenize.vocabulary import Vocabulary

_REMEMBERED = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """N samples of an index, int64 (N,) each.

    Attributes:
        row: of the index.
        string: of the segments, a place among the scanned ones.
        kind: a place in a list of modalities.
        variant: the caption that is shown.
        template: a place in TEMPLATE_NAMES.
    """

    row: NDArray[np.int64]
    string: NDArray[np.int64]
    kind: NDArray[np.int64]
    variant: NDArray[np.int64]
    template: NDArray[np.int64]

    def where(self, stays: NDArray[np.bool_]) -> Samples:
        return Samples(**{one.name: getattr(self, one.name)[stays] for one in fields(self)})


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a signature says of its samples: the variants of their captions, whether they have no texts but those.

    A preference pair draws a caption of its prompt, and is a kind of its own.
    """

    variants: tuple[int, ...]
    is_captioned: bool
    is_pair: bool = False


@lru_cache(maxsize=_REMEMBERED)
def _facts(signature: bytes) -> _Facts | SampleError:
    segments = signature_segments(signature)
    if isinstance(segments, SampleError):
        return segments
    if not segments:
        return SampleError("empty", "the sample has no segments")
    texts = [segment for segment in segments if isinstance(segment, TextSegment)]
    variants = sorted({text.variant for text in texts if text.role == "caption" and text.answer is None})
    return _Facts(tuple(variants) or (0,), {text.role for text in texts} == {"caption"}, is_pair(segments))


def drawn_samples(
    samples: Samples,
    scanned: Scanned,
    modalities: Sequence[str],
    shard: ShardPass,
    settings: PlanSettings,
    vocabulary: Vocabulary,
    refused: Refused,
) -> Samples:
    """Draw caption and template of each sample; those that are none, or that no template fits, are left out."""
    facts = [_facts(signature) for signature in scanned.signatures]
    errors = [one if isinstance(one, SampleError) else None for one in facts]
    samples = samples.where(refused.where(samples.row, scanned.signature[samples.string], errors))
    known = [_Facts((0,), False) if isinstance(one, SampleError) else one for one in facts]
    signature = scanned.signature[samples.string]
    count = int(samples.row.max(initial=-1)) + 1
    draws = pass_draws(count, shard, settings, "template")[samples.row]

    kinds, kind = _kinds(samples.kind, known, signature, modalities, settings)
    variant = _variants([one.variants for one in known], signature, count, shard, settings, samples.row)
    shares = [(name, sorted_shares(settings.templates_of(shard.source, name))) for name in kinds]
    template, refusals = draw_templates(shares, kind, variant, signature, scanned.signatures, draws, vocabulary)
    stays = refused.where(samples.row, np.where(template < 0, -template, 0), [None, *refusals])
    drawn = Samples(row=samples.row, string=samples.string, kind=kind, variant=variant, template=template.astype(int))
    return drawn.where(stays)


def _kinds(
    modality: NDArray[np.int64],
    known: Sequence[_Facts],
    signature: NDArray[np.int64],
    modalities: Sequence[str],
    settings: PlanSettings,
) -> tuple[Sequence[str], NDArray[np.int64]]:
    """Say whose templates a sample draws from: of captions and pictures alone, a document is an image."""
    is_pair = np.array([one.is_pair for one in known], np.bool_)[signature]
    kinds, kind = [*modalities, "image", PAIRS], modality
    if "document" in modalities and "image" in settings.templates:
        is_captioned = np.array([one.is_captioned for one in known], np.bool_)[signature]
        kind = np.where(is_captioned & (modality == modalities.index("document")), len(modalities), kind)
    return kinds, np.where(is_pair, len(modalities) + 1, kind)


def _variants(
    variants: Sequence[tuple[int, ...]],
    signature: NDArray[np.int64],
    draws_count: int,
    shard: ShardPass,
    settings: PlanSettings,
    row: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Choose one of each sample's captions as `plan.captions` says; to go round them begins anywhere."""
    counts = np.array([len(one) for one in variants], np.int64)
    offsets = np.cumsum(counts) - counts
    flat: NDArray[np.int64] = np.array([variant for one in variants for variant in one], np.int64)
    if not len(flat):
        return signature
    place = np.zeros(len(signature), np.int64)
    if settings.captions != "first" and len(flat) > len(variants):
        drawn_in = shard if settings.captions == "random" else replace(shard, repetition=0)
        place = (pass_draws(draws_count, drawn_in, settings, "variant")[row] * counts[signature]).astype(np.int64)
        if settings.captions == "cycle":
            place = (place + shard.repetition) % counts[signature]
    chosen: NDArray[np.int64] = flat[offsets[signature] + place]
    return chosen
