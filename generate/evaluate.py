"""How well a model predicts held-out documents, by kind of id, and whether it listens to the captions.

A low loss on codes proves little alone: pictures repeat themselves. So the loss stands beside what counting predicts of
the very same ids (ngrams.py), and the codes are predicted twice, after their own captions and after others'
(`caption_gain`): only a model that reads the caption is worse the second time. Both are paired over documents, so the
difference comes with a standard error.

Shape suffixes: B rows, L ids, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from tokenmill.generate.ngrams import ngram_loss, plugin_entropy
from tokenmill.tokenize.documents import Segment, TextSegment, assemble
from tokenmill.tokenize.vocabulary import Vocabulary

KINDS = ("text", "codes", "markers")


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out sample as an archive holds it."""

    segments: Sequence[Segment]
    text_ids: NDArray[np.integer[Any]]
    codes: NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class HeldoutLoss:
    """Summed nats and counted ids, one row a document: `sums[kind]`, `counts[kind]`."""

    sums: Mapping[str, NDArray[np.float64]]
    counts: Mapping[str, NDArray[np.int64]]

    def mean(self, kind: str) -> float:
        """Give nats per id of that kind; NaN when there is none."""
        count = int(self.counts[kind].sum())
        return float(self.sums[kind].sum() / count) if count else float("nan")

    def by_kind(self) -> dict[str, float]:
        """Give nats per id for every kind that occurs."""
        return {kind: self.mean(kind) for kind in KINDS if self.counts[kind].sum()}


def kinds_of(ids: NDArray[np.integer[Any]], vocabulary: Vocabulary) -> dict[str, NDArray[np.bool_]]:
    """Say of each id whether it is text, a code, or a marker (with the meta text between SOV and SOT)."""
    codes = ids >= vocabulary.vision_base
    in_meta = np.cumsum(ids == vocabulary.sov) > np.cumsum(ids == vocabulary.sot)
    text = (ids < vocabulary.text.size) & ~in_meta
    return {"text": text, "codes": codes, "markers": ~(text | codes)}


def assembled_ids(
    samples: Sequence[Sample], template: str, vocabulary: Vocabulary, variant: int = 0
) -> list[NDArray[np.int32]]:
    """Assemble every sample's document."""
    return [assemble(s.segments, s.text_ids, s.codes, template, vocabulary, variant).ids for s in samples]


def heldout_loss(
    model: Any, documents: Sequence[NDArray[np.int32]], vocabulary: Vocabulary, *, ids_per_batch: int = 8192
) -> HeldoutLoss:
    """Give the loss of predicting every id of whole documents but their first, unweighted."""
    sums = {kind: np.zeros(len(documents)) for kind in KINDS}
    counts = {kind: np.zeros(len(documents), np.int64) for kind in KINDS}
    for batch in _batches([len(ids) for ids in documents], ids_per_batch):
        for index, losses_L in zip(batch, _losses(model, [documents[i] for i in batch], vocabulary.pad), strict=True):
            for kind, mask in kinds_of(documents[index], vocabulary).items():
                sums[kind][index] = losses_L[mask[1:]].sum()
                counts[kind][index] = mask[1:].sum()
    return HeldoutLoss(sums, counts)


def ngram_table(
    train: Sequence[NDArray[np.int32]], heldout: Sequence[NDArray[np.int32]], vocabulary: Vocabulary
) -> dict[str, dict[str, float]]:
    """Give for each kind of id the baselines of `generate/ngrams.py`, in nats per id of the held-out documents."""
    num_ids = {"text": vocabulary.text.size, "codes": vocabulary.codebook_size, "markers": vocabulary.size}
    known = [kinds_of(ids, vocabulary) for ids in train]
    asked = [kinds_of(ids, vocabulary) for ids in heldout]
    return {
        kind: _baselines(train, heldout, [kinds[kind] for kinds in known], [kinds[kind] for kinds in asked], size)
        for kind, size in num_ids.items()
        if any(kinds[kind][1:].any() for kinds in known) and any(kinds[kind][1:].any() for kinds in asked)
    }


def _baselines(
    train: Sequence[NDArray[np.int32]],
    heldout: Sequence[NDArray[np.int32]],
    known: Sequence[NDArray[np.bool_]],
    asked: Sequence[NDArray[np.bool_]],
    num_ids: int,
) -> dict[str, float]:
    return {
        "unigram_loss": ngram_loss(train, heldout, 1, num_ids, train_where=known, where=asked),
        "bigram_loss": ngram_loss(train, heldout, 2, num_ids, train_where=known, where=asked),
        "unigram_entropy": plugin_entropy(heldout, 1, asked),
        "bigram_entropy": plugin_entropy(heldout, 2, asked),
    }


def caption_gain(
    model: Any, samples: Sequence[Sample], vocabulary: Vocabulary, *, variant: int = 0, seed: int = 0
) -> dict[str, float]:
    """Compare the loss on codes after true captions, after shuffled ones, and after none.

    `gain` is shuffled minus true in nats per code, `gain_error` its standard error over documents.
    """
    shuffled = shuffle_captions(samples, seed=seed, variant=variant)
    true_loss = heldout_loss(model, assembled_ids(samples, "generation", vocabulary, variant), vocabulary)
    other_loss = heldout_loss(model, assembled_ids(shuffled, "generation", vocabulary, variant), vocabulary)
    no_loss = heldout_loss(model, assembled_ids(samples, "unconditional", vocabulary, variant), vocabulary)
    counts = true_loss.counts["codes"]
    differences = (other_loss.sums["codes"] - true_loss.sums["codes"]) / counts.mean()
    error = float(differences.std(ddof=1) / np.sqrt(len(samples))) if len(samples) > 1 else float("nan")
    return {
        "true": true_loss.mean("codes"),
        "shuffled": other_loss.mean("codes"),
        "none": no_loss.mean("codes"),
        "gain": float(differences.mean()),
        "gain_error": error,
    }


def shuffle_captions(samples: Sequence[Sample], *, seed: int = 0, variant: int = 0) -> list[Sample]:
    """Give every sample the text of another one, with other words wherever the samples' captions allow it."""
    texts = [_text_key(sample, variant) for sample in samples]
    giver = _derangement(texts, np.random.default_rng(seed))
    return [_with_text_of(sample, samples[other]) for sample, other in zip(samples, giver, strict=True)]


def _with_text_of(sample: Sample, other: Sample) -> Sample:
    visions = [segment for segment in sample.segments if not isinstance(segment, TextSegment)]
    texts = [segment for segment in other.segments if isinstance(segment, TextSegment)]
    return Sample([*texts, *visions], other.text_ids, sample.codes)


def _text_key(sample: Sample, variant: int) -> bytes:
    texts = [segment for segment in sample.segments if isinstance(segment, TextSegment)]
    chosen = [s for s in texts if s.role == "body" or (s.role == "caption" and s.variant == variant)]
    return b"|".join(sample.text_ids[segment.start : segment.end].astype(np.int64).tobytes() for segment in chosen)


def _derangement(texts: Sequence[bytes], random: np.random.Generator) -> list[int]:
    """Line the samples up, equal captions together and otherwise in random order, and rotate the line by half.

    Nobody keeps the same words unless more than half of all captions are the same.
    """
    count = len(texts)
    if count < 2:
        raise ValueError("captions can be shuffled among two samples or more")
    shuffled = random.permutation(count).tolist()
    first = {texts[index]: position for position, index in reversed(list(enumerate(shuffled)))}
    line = sorted(shuffled, key=lambda index: first[texts[index]])
    rotated = line[count // 2 :] + line[: count // 2]
    giver = dict(zip(line, rotated, strict=True))
    return [giver[index] for index in range(count)]


def _batches(lengths: Sequence[int], ids_per_batch: int) -> list[list[int]]:
    """Group documents of like length, at most `ids_per_batch` ids with padding (or one document)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= ids_per_batch:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@torch.inference_mode()
def _losses(model: Any, documents: Sequence[NDArray[np.int32]], pad: int) -> list[NDArray[np.float64]]:
    """Give -log p of every id after the first. Padding stands on the right, where causal attention cannot see it."""
    weight = model.lm_head.weight
    longest = max(len(ids) for ids in documents)
    padded = [np.pad(ids, (0, longest - len(ids)), constant_values=pad) for ids in documents]
    ids_BL = torch.from_numpy(np.stack(padded).astype(np.int64)).to(weight.device)
    hidden_BLD = model.model(input_ids=ids_BL, use_cache=False).last_hidden_state
    return [
        _row_losses(hidden_LD[: len(ids) - 1], ids_L[1 : len(ids)], weight)
        for hidden_LD, ids_L, ids in zip(hidden_BLD, ids_BL, documents, strict=True)
    ]


def _row_losses(
    hidden_LD: torch.Tensor, targets_L: torch.Tensor, weight: torch.Tensor, chunk: int = 512
) -> NDArray[np.float64]:
    """Cross-entropy in chunks of places: never the whole logits (5,120 × 184,622 would be 3.8 GB)."""
    places = [slice(start, start + chunk) for start in range(0, len(targets_L), chunk)]
    losses = [
        cross_entropy((hidden_LD[here] @ weight.T).float(), targets_L[here], reduction="none").double()
        for here in places
    ]
    joined: NDArray[np.float64] = torch.cat(losses).cpu().numpy()
    return joined
