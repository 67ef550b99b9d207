"""Answering by reading alone: what engines do that ask nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from tokenmill.captions.captioner import Answer, Request, Sample
from tokenmill.errors import SampleError


def answers_read(
    requests: Iterable[Request], texts_of: Callable[[Sample], tuple[str, ...]]
) -> Iterator[Sequence[Answer]]:
    """Yield what `texts_of` reads off each sample, one by one; a SampleError of it is that sample's answer."""
    for request in requests:
        try:
            yield (Answer(index=request.index, texts=texts_of(request.sample)),)
        except SampleError as error:
            yield (Answer(index=request.index, error=error),)
