"""Lengths of documents by name, as `benchmarks/plan.py` packs them; the same for the same name, number and seed.

A picture of 64×64 codes is BOS, caption, markers, 64 × 65 + 1 codes with their line ends, EOS; a clip of s seconds at
24 frames a second has 6 s latent frames of that size, s drawn from 1 to 5. Captions are log-normal (median 100 ids,
sigma 0.4), texts, too (median 600, sigma 1.2). Shares are of the documents; clips, where there are any, come on top and
are half of the *ids*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FRAME = 64 * 65 + 1
_MARKERS = 10  # BOS, SOV, "64*64", SOT, EOV, EOS
_CLIP_MARKERS = 22
_DRAWN_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Shares of documents that are pictures of 512², of 256², and texts; clips may come on top."""

    context: int
    large: float
    small: float
    text: float
    clips: bool = False
    caption: int = 100

    @property
    def window_documents(self) -> int:
        """Documents of a window: at least 20,000, and an estimated 1,000 packs."""
        lengths, _ = draw(self, 20_000)
        return max(20_000, round(1_000 * self.context / float(lengths.mean())))


MIXES = {
    "emu3_5120": Mix(context=5_120, large=0.4, small=0.2, text=0.4),
    "long_captions_5120": Mix(context=5_120, large=0.4, small=0.2, text=0.4, caption=145),
    "little_text_5120": Mix(context=5_120, large=0.5, small=0.4, text=0.1),
    "no_text_5120": Mix(context=5_120, large=0.5, small=0.5, text=0.0),
    "no_text_16384": Mix(context=16_384, large=0.5, small=0.5, text=0.0),
    "emu3_131072": Mix(context=131_072, large=0.4, small=0.2, text=0.4),
    "video_131072": Mix(context=131_072, large=0.4, small=0.2, text=0.4, clips=True),
    "little_text_131072": Mix(context=131_072, large=0.7, small=0.25, text=0.05, clips=True),
    "no_text_131072": Mix(context=131_072, large=0.7, small=0.3, text=0.0, clips=True),
}


def draw(mix: Mix, documents: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Draw so many lengths, and whether each document may be cut; only what is returned stays in memory."""
    lengths, cuttable = np.empty(documents, np.int32), np.empty(documents, np.bool_)
    for begin in range(0, documents, _DRAWN_AT_ONCE):
        end = min(begin + _DRAWN_AT_ONCE, documents)
        lengths[begin:end], cuttable[begin:end] = _draw(mix, end - begin, np.random.default_rng([seed, begin]))
    return lengths, cuttable


def windows(documents: int, size: int) -> Iterator[int]:
    """Tell where each window ends; the last one takes what is left over."""
    yield from range(size, documents - size + 1, size)
    yield documents


def _draw(mix: Mix, documents: int, random: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    captions = np.maximum(1, random.lognormal(np.log(mix.caption), 0.4, documents)).astype(np.int32)
    texts = np.maximum(2, random.lognormal(np.log(600), 1.2, documents)).astype(np.int32)
    frames = np.rint(6 * random.uniform(1, 5, documents)).astype(np.int32)
    kinds = random.choice(3, size=documents, p=[mix.large, mix.small, mix.text])
    large, small = _FRAME + _MARKERS + captions, 32 * 33 + 1 + _MARKERS + captions
    lengths = np.choose(kinds, [large, small, texts])
    is_clip = np.zeros(documents, np.bool_)
    if mix.clips:
        clips = frames * _FRAME + _CLIP_MARKERS + captions
        share = lengths.mean() / (lengths.mean() + clips.mean())
        is_clip = random.random(documents) < share
        lengths = np.where(is_clip, clips, lengths)
    return lengths.astype(np.int32), (kinds == 2) & ~is_clip
