"""The parts of many documents as arrays: what a plan weighs and a loader copies, without an object a document.

Stored segments differ in their numbers far more than in anything else. So the numbers are scanned out of the strings,
what is left (the *signature*: roles, grids, rates, learn flags, variants) is laid out once by `templates.lay_out` with
numbers that say which they are, and the documents' own numbers are put in their places: 0.2 to 0.5 µs a document, where
the reference takes 20. A string that the scanner does not know is a signature of its own, laid out as it stands.

N documents, P parts, S strings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, SampleError
from tokenmill.tokenize.layout_kernels import MASK, lay_parts, mask_numbers
from tokenmill.tokenize.segments import Segment, TextSegment, segments_from_json
from tokenmill.tokenize.templates import LossClass, Marker, Part, lay_out
from tokenmill.tokenize.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa

MARKER, TEXT, VISION = range(3)
LOSS_NONE, LOSS_TEXT, LOSS_VISION = range(3)
LOSSES: dict[LossClass, int] = {"none": LOSS_NONE, "text": LOSS_TEXT, "vision": LOSS_VISION}
_REMEMBERED = 65_536  # structures and signatures; about a kilobyte each
_LARGEST = 2**31 - 1
_MASKED = 2**40  # the first masked number of a signature; larger than any that is not


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Parts of N documents; those of document i are [offsets[i], offsets[i + 1]), none where it was refused.

    Attributes:
        offsets: int64 (N + 1,).
        kind: uint8 (P,), MARKER, TEXT or VISION.
        loss: uint8 (P,), LOSS_NONE, LOSS_TEXT or LOSS_VISION.
        length: int32 (P,), ids of the part.
        start: int32 (P,), a marker's place in `marker_ids`, a text's first id, a picture's first code.
        rows, columns: int32 (P,), rows of one latent frame and codes a row of a picture; else 0.
        marker_ids: int32 (M,).
    """

    offsets: NDArray[np.int64]
    kind: NDArray[np.uint8]
    loss: NDArray[np.uint8]
    length: NDArray[np.int32]
    start: NDArray[np.int32]
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    marker_ids: NDArray[np.int32]

    @property
    def totals(self) -> NDArray[np.int64]:
        """Ids of each document, int64 (N,)."""
        return self._sums(self.length)

    @property
    def contents(self) -> NDArray[np.int64]:
        """Ids of texts and pictures in each document, markers not counted, int64 (N,)."""
        return self._sums(np.where(self.kind == MARKER, 0, self.length))

    def _sums(self, length_P: NDArray[np.int32]) -> NDArray[np.int64]:
        ends = np.concatenate([[0], np.cumsum(length_P, dtype=np.int64)])
        return np.diff(ends[self.offsets])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """S strings of segments, scanned: the number of each one's signature, and its own numbers.

    Attributes:
        signature: int64 (S,), a place in `signatures`.
        signatures: the distinct ones, numbers masked.
        numbers: int32, those of string i end at numbers_ends[i].
        numbers_ends: int64 (S,).
    """

    signature: NDArray[np.int64]
    signatures: Sequence[bytes]
    numbers: NDArray[np.int32]
    numbers_ends: NDArray[np.int64]

    @property
    def num_bytes(self) -> int:
        arrays = self.signature.nbytes + self.numbers.nbytes + self.numbers_ends.nbytes
        return arrays + sum(map(len, self.signatures))

    def taken(self, places: NDArray[np.integer[Any]]) -> Scanned:
        """Give the strings at some places, which may come again."""
        ends = self.numbers_ends[places]
        counts = ends - np.where(places > 0, self.numbers_ends[places - 1], 0) if len(places) else ends
        behind = np.cumsum(counts)
        numbers = self.numbers[np.repeat(ends - behind, counts) + np.arange(counts.sum())]
        used, signature = distinct_of(self.signature[places])
        signatures = [self.signatures[number] for number in used.tolist()]
        return Scanned(signature=signature, signatures=signatures, numbers=numbers, numbers_ends=behind)


def join_scanned(parts: Sequence[Scanned]) -> Scanned:
    """Put strings that were scanned apart behind one another; there is at least one part."""
    known: dict[bytes, int] = {}
    places = [np.array([known.setdefault(one, len(known)) for one in part.signatures], np.int64) for part in parts]
    before = np.cumsum([0, *(len(part.numbers) for part in parts)])
    return Scanned(
        signature=np.concatenate([own[part.signature] for own, part in zip(places, parts, strict=True)]),
        signatures=list(known),
        numbers=np.concatenate([part.numbers for part in parts]),
        numbers_ends=np.concatenate([part.numbers_ends + shift for part, shift in zip(parts, before, strict=False)]),
    )


@dataclass(frozen=True, slots=True)
class Structure:
    """Parts of a document but for its numbers: int32 (P, 8) as `lay_parts` reads it; `markers` are the markers' ids."""

    table: NDArray[np.int32]
    markers: tuple[tuple[int, ...], ...]


def lay_out_many(
    segments: Sequence[str], template: str, variants: NDArray[np.integer[Any]] | int, vocabulary: Vocabulary
) -> tuple[Layouts, list[SampleError | None]]:
    """Lay out one document of each of N strings (JSON of segments), with caption number `variants` or variants[i].

    Returns the parts, and for each document why it has none: as `lay_out` raises, or `bad_segments`.
    Raises RecipeError where there is no such template.
    """
    import pyarrow as pa

    scanned = scan_segments(pa.array(segments, pa.large_string()))
    layouts, refused = lay_out_scanned(scanned, np.arange(len(segments)), template, variants, vocabulary)
    errors: list[SampleError | None] = [None] * len(segments)
    for document, error in refused.items():
        errors[document] = error
    return layouts, errors


def scan_segments(strings: pa.Array) -> Scanned:
    """Scan an Arrow array of strings without nulls."""
    import pyarrow as pa

    strings = strings.cast(pa.large_binary())
    offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
    first, end = (int(offsets[0]), int(offsets[-1])) if len(strings) else (0, 0)
    held = strings.buffers()[2]
    data = np.frombuffer(held, np.uint8)[first:end] if end > first else np.empty(0, np.uint8)
    masked, masked_ends = np.empty(end - first, np.uint8), np.empty(len(strings), np.int64)
    numbers, numbers_ends = np.empty((end - first) // 6, np.int32), np.empty(len(strings), np.int64)
    mask_numbers(data, offsets[1:] - first, masked, masked_ends, numbers, numbers_ends)
    ends = np.concatenate([[0], masked_ends])
    signatures = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(strings), [None, pa.py_buffer(ends), pa.py_buffer(masked)]
    ).dictionary_encode()
    return Scanned(
        signature=np.frombuffer(signatures.indices.buffers()[1], np.int32)[: len(strings)].astype(np.int64),
        signatures=signatures.dictionary.to_pylist(),
        numbers=numbers[: numbers_ends[-1] if len(strings) else 0].copy(),
        numbers_ends=numbers_ends,
    )


def lay_out_scanned(
    scanned: Scanned,
    strings: NDArray[np.int64],
    template: str,
    variants: NDArray[np.integer[Any]] | int,
    vocabulary: Vocabulary,
) -> tuple[Layouts, dict[int, SampleError]]:
    """Lay out N documents of scanned strings (their places); refused ones by number in the second."""
    num_variants = int(np.max(variants, initial=0)) + 1
    distinct, chosen = distinct_of(scanned.signature[strings] * num_variants + variants)
    wanted = [divmod(key, num_variants) for key in distinct.tolist()]
    found = [structure(vocabulary, template, variant, scanned.signatures[number]) for number, variant in wanted]
    is_refused = np.array([isinstance(one, SampleError) for one in found], np.bool_)
    refused: dict[int, SampleError] = {}
    for document in np.flatnonzero(is_refused[chosen]).tolist():
        one = found[chosen[document]]
        if isinstance(one, SampleError):
            refused[document] = one
    tables, marker_ids = _with_places([_EMPTY if isinstance(one, SampleError) else one for one in found])
    return _filled(scanned, strings, chosen, tables, marker_ids), refused


def distinct_of(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the distinct ones of whole numbers from 0 on, ascending, and the place of each among them."""
    if not len(keys) or keys.max() > 4 * len(keys) + 65_536:
        distinct, places = np.unique(keys, return_inverse=True)
        return distinct, places
    is_there = np.zeros(keys.max() + 1, np.bool_)
    is_there[keys] = True
    return np.flatnonzero(is_there), (np.cumsum(is_there) - 1)[keys]


@lru_cache(maxsize=_REMEMBERED)
def structure(vocabulary: Vocabulary, template: str, variant: int, signature: bytes) -> Structure | SampleError:
    """Lay a signature out, remembered: its parts, or why it has none."""
    segments = signature_segments(signature)
    if isinstance(segments, SampleError):
        return segments
    try:
        parts = lay_out(segments, template, vocabulary, variant)
    except SampleError as error:
        return error
    rows = [_part_row(part) for part in parts]
    if any(type(value) is not int or not -1 <= value <= _LARGEST for row in rows for value in row):
        return SampleError("bad_segments", "a segment has numbers that are none of ids or codes")
    return Structure(
        np.array(rows, np.int32).reshape(-1, 8), tuple(part.ids for part in parts if isinstance(part, Marker))
    )


@lru_cache(maxsize=_REMEMBERED)
def signature_segments(signature: bytes) -> tuple[Segment, ...] | SampleError:
    """Give the segments of a signature, whose masked numbers count up from `_MASKED`; remembered."""
    first, *others = signature.split(bytes([MASK]))
    text = [first]
    for number, other in enumerate(others):  # the two bounds of a text stand side by side
        text += [str(_MASKED + number).encode(), other or b", "]
    try:
        return tuple(segments_from_json(json.loads(b"".join(text))))
    except (ManifestError, TypeError, ValueError, AttributeError) as error:
        return SampleError("bad_segments", str(error)[:200])


_EMPTY = Structure(np.empty((0, 8), np.int32), ())


def _part_row(part: Part) -> tuple[int, ...]:
    """Describe a part: kind, loss, length, start, rows, columns, which number is its start, and its end (or -1)."""
    if isinstance(part, Marker):
        return (MARKER, LOSSES[part.loss], len(part.ids), 0, 0, 0, -1, -1)
    if isinstance(part, TextSegment):
        loss = LOSS_TEXT if part.learn else LOSS_NONE
        if part.start >= _MASKED:
            return (TEXT, loss, 0, 0, 0, 0, part.start - _MASKED, part.end - _MASKED)
        return (TEXT, loss, part.end - part.start, part.start, 0, 0, -1, -1)
    loss = LOSS_VISION if part.learn else LOSS_NONE
    grid = (part.h, part.w)
    if part.offset >= _MASKED:
        return (VISION, loss, part.num_grid_ids, 0, *grid, part.offset - _MASKED, -1)
    return (VISION, loss, part.num_grid_ids, part.offset, *grid, -1, -1)


def _with_places(structures: Sequence[Structure]) -> tuple[list[NDArray[np.int32]], NDArray[np.int32]]:
    """Give the structures' tables with each marker's place among the ids of all markers, and those ids."""
    places: dict[tuple[int, ...], int] = {}
    ids: list[int] = []
    tables = []
    for one in structures:
        for marker in one.markers:
            if marker not in places:
                places[marker] = len(ids)
                ids += marker
        table = one.table.copy()
        table[table[:, 0] == MARKER, 3] = [places[marker] for marker in one.markers]
        tables.append(table)
    return tables, np.array(ids, np.int32)


def _filled(
    scanned: Scanned,
    strings: NDArray[np.int64],
    chosen: NDArray[np.int64],
    tables: Sequence[NDArray[np.int32]],
    marker_ids: NDArray[np.int32],
) -> Layouts:
    sizes = np.array([len(table) for table in tables], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes[chosen])]).astype(np.int64)
    kind, loss = np.empty(offsets[-1], np.uint8), np.empty(offsets[-1], np.uint8)
    fields = np.empty((4, offsets[-1]), np.int32)
    parts_of = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    table = np.concatenate([_EMPTY.table, *tables])
    lay_parts(chosen.astype(np.int32), strings, scanned.numbers, scanned.numbers_ends, parts_of, table, offsets, kind,
              loss, fields)  # fmt: skip
    length, start, rows, columns = fields
    return Layouts(offsets=offsets, kind=kind, loss=loss, length=length, start=start, rows=rows, columns=columns,
                   marker_ids=marker_ids)  # fmt: skip
