"""The merges of a byte-level BPE from its ranks: what `tokenizer.json` wants and a tiktoken file leaves out.

The rank of a token is when it was learned, so it was merged from what its bytes become under all tokens before it, and
that is two pieces. One pass over 151,643 ranks takes about two seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise


def merges_of(tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return the two tokens each longer one is merged from, in the order of ranks; `tokens` lie at their ranks."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return list(_merges(tokens, ranks))


def _merges(tokens: Sequence[bytes], ranks: Mapping[bytes, int]) -> Iterator[tuple[int, int]]:
    for rank, token in enumerate(tokens):
        if len(token) > 1:
            parts = _parts(token, ranks, rank)
            if len(parts) == 2:
                yield ranks[parts[0]], ranks[parts[1]]


def _parts(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """Encode a token's bytes with the ranks below a limit, lowest first, as BPE does."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 1:
        found = [ranks.get(left + right, below) for left, right in pairwise(parts)]
        best = min(found)
        if best >= below:
            break
        place = found.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts
