"""Which template a sample is drawn under: by share among those that fit it.

A draw falls on a template; one that refuses the sample leaves the draw to the others. So for samples of one signature
the outcome is a step function of the draw, found once and remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import SampleError
from tokenmill.pipelines.plan_kernels import choose
from tokenmill.tokenize.layouts import distinct_of, structure
from tokenmill.tokenize.templates import TEMPLATES
from tokenmill.tokenize.vocabulary import Vocabulary

TEMPLATE_NAMES = tuple(TEMPLATES)
"""What a template's number in a drawn document means."""

_SAYS_NOTHING = ("no_template", "no_page")  # about a sample that other templates refuse too
_REMEMBERED = 65_536

Shares = tuple[tuple[str, float], ...]
Steps = tuple[tuple[float, str | SampleError], ...]


def sorted_shares(templates: Mapping[str, float]) -> Shares:
    """Give the templates of a kind that have a share, in the order in which a draw goes through them."""
    return tuple((name, share) for name, share in sorted(templates.items()) if share > 0)


def draw_templates(
    kinds: Sequence[tuple[str, Shares]],
    kind: NDArray[np.int64],
    variant: NDArray[np.int64],
    signature: NDArray[np.int64],
    signatures: Sequence[bytes],
    positions: NDArray[np.float64],
    vocabulary: Vocabulary,
) -> tuple[NDArray[np.int32], list[SampleError]]:
    """Draw each sample's template, a place in TEMPLATE_NAMES; -1 - n where the n-th of the errors refuses it.

    `kinds` are the names of the kinds and their templates; `kind` and `signature` count in them and in `signatures`.
    """
    num_variants = int(variant.max(initial=0)) + 1
    keys, places = distinct_of((signature * num_variants + variant) * len(kinds) + kind)
    errors: list[SampleError] = []
    edges: list[float] = []
    outcomes: list[int] = []
    offsets = [0]
    for key in keys.tolist():
        rest, of_kind = divmod(key, len(kinds))
        of_signature, of_variant = divmod(rest, num_variants)
        for edge, outcome in steps(vocabulary, *kinds[of_kind], of_variant, signatures[of_signature]):
            if isinstance(outcome, SampleError):
                errors.append(outcome)
            edges.append(edge)
            outcomes.append(-len(errors) if isinstance(outcome, SampleError) else TEMPLATE_NAMES.index(outcome))
        offsets.append(len(edges))
    chosen = choose(places, positions, np.array(offsets), np.array(edges), np.array(outcomes, np.int32))
    return chosen, errors


@lru_cache(maxsize=_REMEMBERED)
def steps(vocabulary: Vocabulary, kind: str, shares: Shares, variant: int, signature: bytes) -> Steps:
    """Give the draws below which each template (or why none fits) comes, ascending to 1.

    Of several SampleErrors it is the first drawn one's; that a conversation is no page explains nothing.
    """
    found = {name: structure(vocabulary, name, variant, signature) for name, _ in shares}
    errors = {name: one for name, one in found.items() if isinstance(one, SampleError)}
    nothing = SampleError("no_template", f"the plan has no template for {kind}")
    return tuple(_steps(shares, errors, nothing, 0.0, 1.0))


def _steps(
    shares: Shares, errors: Mapping[str, SampleError], refusal: SampleError, low: float, high: float
) -> Iterator[tuple[float, str | SampleError]]:
    """Split [low, high) by the shares, and what falls on a template that refuses by those of the others."""
    if not shares:
        yield high, refusal
        return
    total, taken = sum(share for _, share in shares), 0.0
    for number, (name, share) in enumerate(shares):
        start, taken = taken / total, taken + share
        end = taken / total if number + 1 < len(shares) else 1.0
        first, last = max(low, start), min(high, end)
        if first >= last:
            continue
        if name not in errors:
            yield last, name
            continue
        others = tuple(one for one in shares if one[0] != name)
        yield from _steps(others, errors, errors[name] if refusal.reason in _SAYS_NOTHING else refusal, first, last)
