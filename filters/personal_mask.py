"""Text without its personal data: every address becomes `<EMAIL>`, `<PHONE>`, … before the text is tokenized.

The raw text stays as it is; the mask is part of the token stage's settings, so another mask makes another archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.filters.personal_data import tables_version
from tokenmill.filters.personal_patterns import Span, find

_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class PersonalMask:
    """Which kinds of `personal_patterns.KINDS` are replaced; see `PersonalData` for `phone_regions`."""

    kinds: tuple[str, ...]
    phone_regions: tuple[str, ...] = ("US",)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the masked text."""
        return {"kinds": sorted(self.kinds), "phone_regions": list(self.phone_regions), "tables": tables_version()}

    def __call__(self, text: str) -> str:
        """Replace what is found until nothing is: a placeholder may set free what its neighbour had hidden."""
        for _ in range(_ROUNDS):
            spans = [span for span in find(text, self.phone_regions) if span.kind in self.kinds]
            if not spans:
                break
            text = _replaced(text, spans)
        return text

    def in_json(self, value: Any) -> Any:
        """Mask every string in a value that JSON can hold; numbers and the names of fields stay."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {name: self.in_json(one) for name, one in value.items()}
        return [self.in_json(one) for one in value] if isinstance(value, list) else value


def _replaced(text: str, spans: Sequence[Span]) -> str:
    pieces, last = [], 0
    for span in spans:
        pieces += [text[last : span.start], f"<{span.kind.upper()}>"]
        last = span.end
    return "".join((*pieces, text[last:]))
