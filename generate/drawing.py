"""One thing to draw: what is asked, at which size, and what of it is there already.

The ids that go before it are those of the training templates. Of a clip that was begun they hold the begun frames too,
so the rest is drawn by the same rule as a whole clip: only the grammar starts further on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.grammar import VisionGrammar
from tokenmill.generate.prompts import drawing_prompt
from tokenmill.tokenize.documents import VisionSegment
from tokenmill.tokenize.vision import Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture, or a clip of `frames` latent frames with its `fps` and `seconds`; all sizes in codes.

    Attributes:
        prompt: what is asked; empty: anything, as the unconditional template of training has it.
        frames: latent frames of the whole clip, those of `begun` included.
        negative: guidance leads away from it; empty: from the unconditional prompt.
        seed: together with the rest it says what is drawn, in whatever batch.
        begun: (n, height, width) with n < frames: latent frames that are there already; they are kept.

    Raises:
        RecipeError: sizes that hold nothing, a clip without fps and seconds, begun frames of another grid.
    """

    prompt: str
    height: int
    width: int
    frames: int = 1
    fps: float | None = None
    seconds: float | None = None
    negative: str = ""
    seed: int = 0
    begun: Codes | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.frames) < 1:
            raise RecipeError(f"a grid of {self.frames}×{self.height}×{self.width} codes holds nothing")
        if (self.fps is None) != (self.seconds is None) or (self.fps is None and self.frames > 1):
            found = f"{self.frames} frames, fps {self.fps}, seconds {self.seconds}"
            raise RecipeError(f"a clip needs both fps and seconds, a picture neither: found {found}")
        if not 0 <= self.seed < 2**63:
            raise RecipeError(f"seed is {self.seed}; it is a whole number from 0 to 2^63 - 1")
        if self.begun is not None and (
            self.begun.shape[1:] != (self.height, self.width) or not 0 < len(self.begun) < self.frames
        ):
            raise RecipeError(
                f"begun frames of shape {self.begun.shape} in a clip of {self.frames}×{self.height}×{self.width} codes"
            )

    @property
    def num_begun(self) -> int:
        """Latent frames that are there already."""
        return 0 if self.begun is None else len(self.begun)

    def ids_before(self, grammar: VisionGrammar, text: str) -> NDArray[np.int32]:
        """Give `BOS text SOV meta SOT` and the begun frames, for the prompt or for what guidance leads away from.

        Raises SampleError (`out_of_range`) for a begun code that is never drawn.
        """
        segment = VisionSegment(self.frames, self.height, self.width, 0, self.fps, self.seconds)
        opening = drawing_prompt(grammar.vocabulary, text, segment)
        if self.begun is None:
            return opening
        if int(self.begun.max()) >= len(grammar.codes):
            raise SampleError(
                "out_of_range", f"begun frames have code {self.begun.max()}; the last one is {len(grammar.codes) - 1}"
            )
        places = grammar.places()[: self.num_begun * grammar.num_frame_ids]
        places[places < 0] = self.begun.reshape(-1).astype(np.int64) + grammar.codes.start
        return np.concatenate([opening, places]).astype(np.int32)
