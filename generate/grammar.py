"""Which ids may follow `SOT`, told from the position alone (EMU3.md §4).

With the grid known, every place of the vision string is either a code or one certain marker, so decoding needs no
parser: a certain marker is written without asking the model (one forward pass in W + 1 saved), and where a code stands
only the codebook's rows of the output layer are multiplied (32,768 of 184,622 for Emu3, a sixth of the work).

The released code tests for EOL first, which at widths 1 and 2 puts an EOL where EOV or EOS belongs; here the end of the
picture comes first, and wider grids are the same.

Offsets count from SOT: 1 is the first code. Shape suffix: B places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vocabulary import Vocabulary

Places: TypeAlias = NDArray[np.integer[Any]] | int


def allowed_ranges(
    vocabulary: Vocabulary, offsets: Places, frames: Places, heights: Places, widths: Places
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give first and last-plus-one id allowed at each offset ≥ 1; the arguments broadcast, so grids may differ.

    Behind EOS only PAD is allowed, so a finished row can wait in its batch.
    """
    offsets_B, frames_B, heights_B, widths_B = np.broadcast_arrays(offsets, frames, heights, widths)
    row_ids_B = heights_B * (widths_B + 1)
    within_B = (offsets_B - 1) % (row_ids_B + 1)
    past_B = offsets_B - frames_B * (row_ids_B + 1)
    places = [past_B > 2, past_B == 2, past_B == 1, within_B == row_ids_B, within_B % (widths_B + 1) == widths_B]
    markers = [vocabulary.pad, vocabulary.eos, vocabulary.eov, vocabulary.eof, vocabulary.eol]
    certain_B = np.select(places, markers, default=-1)
    first_B = np.where(certain_B < 0, vocabulary.vision_base, certain_B)
    return first_B, np.where(certain_B < 0, vocabulary.size, certain_B + 1)


def allowed_mask(
    vocabulary: Vocabulary, offsets: Places, frames: Places, heights: Places, widths: Places
) -> NDArray[np.bool_]:
    """Give the mask (B, vocabulary) of `allowed_ranges`, for samplers that need the whole row."""
    first_B, last_B = allowed_ranges(vocabulary, offsets, frames, heights, widths)
    ids = np.arange(vocabulary.size)
    mask: NDArray[np.bool_] = (ids >= first_B[..., None]) & (ids < last_B[..., None])
    return mask


@dataclass(frozen=True, slots=True)
class VisionGrammar:
    """What follows SOT for one picture (`frames` 1) or one clip of latent frames.

    `num_codes`: of the tokenizer that will decode it, which may have fewer than the vocabulary; None: the vocabulary's.
    """

    vocabulary: Vocabulary
    height: int
    width: int
    frames: int = 1
    num_codes: int | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.frames) < 1:
            raise RecipeError(f"a grid of {self.frames}×{self.height}×{self.width} codes holds nothing")

    @property
    def codes(self) -> range:
        """The ids allowed where a code stands."""
        known = self.vocabulary.codebook_size
        first = self.vocabulary.vision_base
        return range(first, first + min(known, self.num_codes or known))

    @property
    def num_frame_ids(self) -> int:
        """Ids of one frame: its rows, each with EOL, then EOF."""
        return self.height * (self.width + 1) + 1

    @property
    def num_ids(self) -> int:
        """Ids behind SOT: rows with EOL, frames with EOF, then EOV and EOS."""
        return self.frames * self.num_frame_ids + 2

    def places(self, begun: int = 0) -> NDArray[np.int64]:
        """Give the whole mask behind `begun` frames: the marker that stands at each place, -1 where a code does."""
        offsets = np.arange(begun * self.num_frame_ids + 1, self.num_ids + 1)
        first, _ = allowed_ranges(self.vocabulary, offsets, self.frames, self.height, self.width)
        return np.where(first == self.vocabulary.vision_base, -1, first)

    def allowed(self, offset: int) -> range:
        """Give the ids allowed at one offset: the codebook, or a single marker."""
        first, last = allowed_ranges(self.vocabulary, offset, self.frames, self.height, self.width)
        return self._within(int(first), int(last))

    def schedule(self) -> list[range]:
        """Give `allowed` for every offset from 1 to `num_ids`."""
        offsets = np.arange(1, self.num_ids + 1)
        first, last = allowed_ranges(self.vocabulary, offsets, self.frames, self.height, self.width)
        return [self._within(*pair) for pair in zip(first.tolist(), last.tolist(), strict=True)]

    def _within(self, first: int, last: int) -> range:
        """Return a range of ids without the codes that the tokenizer does not have."""
        return range(first, min(last, self.codes.stop))
