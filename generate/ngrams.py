"""What counting alone predicts of the same ids: the baselines that a model's held-out loss must beat.

Two different numbers, both in nats per id, both over chosen places (say, the codes):

* `plugin_entropy`: the entropy of the held-out ids under *their own* frequencies. Unigram: no fixed distribution
  whatsoever does better on these ids. Bigram: the same with the id before known; but few ids memorise themselves
  (12,000 ids drawn at random from 2,048 give 1.9 nats where the truth is 7.6), so that one is a bound which nothing
  honest needs to meet until there are many ids a pair.
* `ngram_loss`: the loss on held-out ids of a count model made from the *training* ids, normalised over all ids that may
  stand there: what the trained model is asked for, from the same data. Its smoothing is the best for the held-out ids
  themselves, in favour of the baseline.

A model that learned something is below `ngram_loss` of both orders, and below the unigram plug-in entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Stream: TypeAlias = NDArray[np.integer[Any]]
Places: TypeAlias = Sequence[NDArray[np.bool_]] | None

SMOOTHINGS = tuple(float(value) for value in np.geomspace(0.01, 100_000, 29))


def plugin_entropy(streams: Sequence[Stream], order: int, where: Places = None) -> float:
    """Give the plug-in entropy of the streams' ids (order 1), or of an id given the one before (order 2).

    The first id of a stream is context only. `where` marks the ids that count, one mask a stream.
    """
    before, after = _pairs(streams, where)
    if _checked(order) == 1:
        return _entropy(after)
    return _entropy(before * (int(after.max()) + 1) + after) - _entropy(before)


def ngram_loss(
    train: Sequence[Stream],
    heldout: Sequence[Stream],
    order: int,
    num_ids: int,
    *,
    train_where: Places = None,
    where: Places = None,
) -> float:
    """Give the mean -log p on held-out ids of a unigram or bigram model counted on the training streams.

    `num_ids` ids may stand at the places meant. Unigram: (n(x) + s) / (N + s·num_ids). Bigram: (n(c, x) + s·p1(x)) /
    (n(c) + s), with p1 the best unigram. Each s is the best of `SMOOTHINGS`.
    """
    known, asked = _pairs(train, train_where), _pairs(heldout, where)
    unigram_loss, p1 = _best_unigram(known[1], asked[1], num_ids)
    return unigram_loss if _checked(order) == 1 else _bigram_loss(known, asked, p1)


def _best_unigram(
    known: NDArray[np.int64], asked: NDArray[np.int64], num_ids: int
) -> tuple[float, NDArray[np.floating[Any]]]:
    """Give the loss, and the probability of each id asked for."""
    counts = np.bincount(known, minlength=int(asked.max()) + 1)[asked]
    choices = [(counts + s) / (len(known) + s * num_ids) for s in SMOOTHINGS]
    losses = [float(-np.log(choice).mean()) for choice in choices]
    best = int(np.argmin(losses))
    return losses[best], choices[best]


def _bigram_loss(
    known: tuple[NDArray[np.int64], NDArray[np.int64]],
    asked: tuple[NDArray[np.int64], NDArray[np.int64]],
    p1: NDArray[np.floating[Any]],
) -> float:
    span = int(max(known[1].max(), asked[1].max())) + 1
    pairs, counts = np.unique(known[0] * span + known[1], return_counts=True)
    wanted = asked[0] * span + asked[1]
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, counts[at], 0)
    contexts = np.bincount(known[0], minlength=int(asked[0].max()) + 1)[asked[0]]
    return min(float(-np.log((seen + s * p1) / (contexts + s)).mean()) for s in SMOOTHINGS)


def _pairs(streams: Sequence[Stream], where: Places) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the ids that count, each with the id before it in its own stream."""
    masks = [np.ones(len(stream), bool) for stream in streams] if where is None else where
    chosen = [np.flatnonzero(mask[1:]) for mask in masks]
    if not any(len(places) for places in chosen):
        raise ValueError("no id to count: every stream is shorter than two ids, or `where` marks none")
    parts = [(stream[places], stream[places + 1]) for stream, places in zip(streams, chosen, strict=True)]
    before, after = (np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True))
    return before, after


def _entropy(values: NDArray[np.int64]) -> float:
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _checked(order: int) -> int:
    if order not in (1, 2):
        raise ValueError(f"order {order}: only unigrams (1) and bigrams (2) are counted")
    return order
