"""A document as the scorers of a pass share it: its texts, and its pictures opened when somebody looks.

Pictures are shared between scorers, up to 32 of them: what their views take has a bound then (25 MB at 512 pixels), and
those beyond are decoded again for each scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from tokenmill.filters.picture import Picture

_SHARED = 32


class Pages:
    """A document's texts and pictures, in its order.

    Args:
        texts: the texts, and the role of each.
        open_picture: opens picture `number`; raises SampleError where it cannot be read.
    """

    def __init__(
        self, texts: Sequence[tuple[str, str]], num_pictures: int, open_picture: Callable[[int], Picture]
    ) -> None:  # fmt: skip
        self.texts, self.num_pictures = tuple(texts), num_pictures
        self._open = open_picture
        self._made: dict[int, Picture] = {}

    @cached_property
    def text(self) -> str:
        """All texts, a line break between them."""
        return "\n".join(text for text, _ in self.texts)

    def picture(self, number: int) -> Picture:
        """Return a picture, opened anew where it is not shared."""
        if number in self._made:
            return self._made[number]
        picture = self._open(number)
        if number < _SHARED:
            self._made[number] = picture
        return picture

    def release(self) -> None:
        """Let go of all pixels; the encoded pictures stay."""
        self._made = {}
