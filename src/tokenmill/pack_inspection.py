"""`tokenmill inspect PLAN --pack N`: what a pack teaches, as text and pictures.

Read through the loader's own reader and laid out by the templates, so what is shown is what a model would be given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill.errors import ManifestError, SampleError, StorageError, TokenmillError
from tokenmill.manifests.inspect_sample import Decoders, write_png
from tokenmill.manifests.plan_rows import Placed
from tokenmill.manifests.plans import Plan
from tokenmill.tokenize.documents import TextSegment, VisionSegment, document_spans
from tokenmill.tokenize.frames import take_frames
from tokenmill.tokenize.templates import Marker, Part, lay_out
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary
from tokenmill.train.samples import Sample, SampleReader

log = logging.getLogger(__name__)

_MARKERS = ("pad", "im_start", "im_end", "eol", "eof", "bos", "eos", "sot", "sov", "eov")
_UNREADABLE = (SampleError, ManifestError, StorageError, ValueError)


def describe_pack(plan: Plan, pack: int, decoders: Decoders, picture_to: Path | None) -> dict[str, Any]:
    """Describe the documents of a pack in their order; raises ManifestError for a number outside the plan.

    Pictures are written into `picture_to` (None: left out). A sample that cannot be read is told with its `fault`.
    """
    if not 0 <= pack < plan.num_packs:
        raise ManifestError(f"{plan.folder.path}: has packs 0 to {plan.num_packs - 1:,}, no pack {pack:,}")
    shown = _Shown(plan, build_vocabulary(plan.description["vocabulary"]), decoders, picture_to)
    cost = plan.cost(pack)
    documents = [shown.document(pack, slot, placed) for slot, placed in enumerate(plan.documents(pack))]
    return {
        "kind": "pack",
        "plan": plan.plan_id,
        "pack": pack,
        "context": plan.context,
        "tokens": cost.tokens,
        "squares": cost.squares,
        "weight": cost.weight,
        "documents": documents,
    }


def render_pack(found: Mapping[str, Any]) -> str:
    """Return a described pack as text."""
    head = (
        f"pack {found['pack']:,} of plan {found['plan'][:16]}: {len(found['documents'])} documents, "
        f"{found['tokens']:,} of {found['context']:,} ids, weight {found['weight']:g}"
    )
    return "\n".join([head, *(line for document in found["documents"] for line in _document_lines(document))])


class _Shown:
    """Turns rows of a plan into what they show."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary, decoders: Decoders, picture_to: Path | None) -> None:
        self._vocabulary, self._picture_to = vocabulary, picture_to
        self._frames = decoders.frames if picture_to is not None else None
        self._reader = SampleReader(plan.folder.store, plan.index_of)
        self._names = {getattr(vocabulary, name): f"<{name.upper()}>" for name in _MARKERS}

    def document(self, pack: int, slot: int, placed: Placed) -> dict[str, Any]:
        told: dict[str, Any] = {
            "slot": slot,
            "key": None,
            "source": placed.source,
            "template": placed.template,
            "variant": placed.variant,
            "repetition": placed.repetition,
            "start": placed.start,
            "length": placed.length,
            "weight": placed.weight,
            "shard": placed.shard,
            "sample": placed.sample,
        }
        if placed.frames:
            told["frames"] = [placed.frame, placed.frame + placed.frames]
        try:
            sample = self._reader.read(placed.shard, placed.sample)
            return told | {"key": sample.key, **self._shown(f"pack-{pack}-{slot}", placed, sample)}
        except _UNREADABLE as error:
            return told | {"fault": str(error)}

    def _shown(self, name: str, placed: Placed, sample: Sample) -> dict[str, Any]:
        segments = take_frames(sample.segments, placed.frame, placed.frames) if placed.frames else sample.segments
        layout = lay_out(segments, placed.template, self._vocabulary, placed.variant)
        lengths = [length for length, _ in document_spans(segments, placed.template, self._vocabulary, placed.variant)]
        taken = _pieces(layout, lengths, placed.start, placed.start + placed.length)
        parts: list[dict[str, Any]] = []
        for number, (part, first, last) in enumerate(taken):
            if isinstance(part, Marker):
                marker = self._words(part.ids[first:last])
                if parts and "marker" in parts[-1]:
                    parts[-1]["marker"] += marker
                else:
                    parts.append({"marker": marker})
            elif isinstance(part, TextSegment):
                ids = [int(one) for one in sample.text_ids[part.start + first : part.start + last]]
                parts.append({"text": self._words(ids), "role": part.role, "learn": part.learn, "ids": len(ids)})
            else:
                whole = (first, last) == (0, part.num_grid_ids)
                parts.append(self._vision(f"{name}-{number}", part, sample) | ({} if whole else {"ids": [first, last]}))
        return {"of": sum(lengths), "cut": _cut(placed, sum(lengths)), "parts": parts}

    def _words(self, ids: Sequence[int]) -> str:
        """Return ids as text, markers as their names in pointed brackets."""
        text, run = "", list[int]()
        for one in [*ids, None]:
            if one is not None and one < self._vocabulary.text.size and one not in self._names:
                run.append(one)
                continue
            text += self._vocabulary.text.decode(run) if run else ""
            run = []
            if one is not None:
                text += self._names.get(one) or self._vocabulary.describe(one)
        return text

    def _vision(self, name: str, part: VisionSegment, sample: Sample) -> dict[str, Any]:
        told: dict[str, Any] = {"vision": [part.t, part.h, part.w]}
        told |= {} if part.fps is None else {"fps": part.fps, "seconds": part.seconds}
        if self._frames is None or self._picture_to is None:
            return told
        codes_thw = sample.codes[part.offset : part.offset + part.num_codes].reshape(part.t, part.h, part.w)
        try:
            return told | {"picture": write_png(self._picture_to / f"{name}.png", self._frames(codes_thw))}
        except TokenmillError as error:  # the tokenizer isn't to be had here, which no other picture will change
            log.warning("pictures stay codes: %s", error)
            self._frames = None
            return told


def _pieces(layout: Sequence[Part], lengths: Sequence[int], start: int, end: int) -> Iterator[tuple[Part, int, int]]:
    """Yield the parts that ids [start, end) of a document touch, each with the ids of it that they take."""
    position = 0
    for part, length in zip(layout, lengths, strict=True):
        first, last = max(start - position, 0), min(end - position, length)
        if first < last:
            yield part, first, last
        position += length


def _cut(placed: Placed, whole: int) -> str | None:
    """Say where a document was cut."""
    sides = [*(["before"] if placed.start else []), *(["after"] if placed.start + placed.length < whole else [])]
    return " and ".join(sides) or None


def _document_lines(told: Mapping[str, Any]) -> Iterator[str]:
    of = f" of {told['of']:,}, cut {told['cut']}" if told.get("cut") else ""
    ids = f"ids {told['start']:,} to {told['start'] + told['length']:,}" if of else f"{told['length']:,} ids"
    again = f", repetition {told['repetition']}" if told["repetition"] else ""
    frames = "latent frames {} to {}, ".format(*told["frames"]) if "frames" in told else ""
    yield ""
    name = f"{told['source']}/{told['key'] or '?'}"
    yield f"{told['slot']}. {name}  {told['template']}  {ids}{of}  weight {told['weight']:g}"
    yield f"   {frames}{told['shard']}, sample {told['sample']}{again}"
    if "fault" in told:
        yield f"   cannot be read: {told['fault']}"
        return
    yield "   " + "".join(map(_part_text, told["parts"])).replace("\n", "\n   ")


def _part_text(part: Mapping[str, Any]) -> str:
    if "vision" not in part:
        return str(part.get("marker", part.get("text")))
    grid = "×".join(map(str, part["vision"]))
    return f"[{grid} codes: {part['picture']}]" if "picture" in part else f"[{grid} codes]"
