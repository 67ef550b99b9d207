"""Tokenized conversations made up from rules, for tests of instruction tuning."""

from __future__ import annotations

import numpy as np

from tokenmill.demo.tokens import TokenSample
from tokenmill.tokenize.segments import Role, Segment, TextSegment, VisionSegment
from tokenmill.tokenize.vocabulary import Vocabulary


def conversations(vocabulary: Vocabulary, count: int) -> list[TokenSample]:
    """Conversations about a picture, of one to three turns; every third opens with words of its own for the system."""
    rng = np.random.default_rng(3)
    samples: list[TokenSample] = []
    for number in range(count):
        texts: list[tuple[Role, str]] = [("system", "Be short.")] if number % 3 == 0 else []
        for turn in range(1 + number % 3):
            texts += [("user", f"What is at {turn}, {number}?"), ("assistant", f"A box of {number + turn}, I think.")]
        segments: list[Segment] = []
        ids: list[int] = []
        for role, text in texts:
            encoded = list(vocabulary.text.encode(text))
            if role == "user" and not any(isinstance(one, VisionSegment) for one in segments):
                segments.append(VisionSegment(1, 4, 4, 0, learn=False, role="user"))
            segments.append(TextSegment(len(ids), len(ids) + len(encoded), role, learn=role == "assistant"))
            ids += encoded
        codes = rng.integers(0, vocabulary.codebook_size, 16).astype(np.uint16)
        samples.append((f"chat-{number:04d}", "document", segments, np.array(ids, np.uint32), codes))
    return samples
