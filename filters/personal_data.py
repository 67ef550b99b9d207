"""How much personal data a text holds, by kind; what is found is in `personal_patterns.py`.

Scorers make columns and nothing else: a rule can drop texts by these counts. To keep a text without its addresses, name
the kinds in the recipe's `tokenize.mask` (`personal_mask.py`); raw data is never rewritten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import polars as pl
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from tokenmill.filters.personal_patterns import KINDS, VERSION, find
from tokenmill.filters.scorer import Columns, fingerprint_of

COLUMNS = {
    "credentials": "num_credentials",
    "secret": "num_secrets",
    "email": "num_emails",
    "iban": "num_ibans",
    "card": "num_cards",
    "ip": "num_ip_addresses",
    "phone": "num_phone_numbers",
}


def known_regions(regions: tuple[str, ...]) -> tuple[str, ...]:
    """Return `regions`; raises ValueError that names one without a numbering plan."""
    from phonenumbers import SUPPORTED_REGIONS

    for region in regions:
        if region not in SUPPORTED_REGIONS:
            raise ValueError(f"no numbering plan of {region!r}; regions are ISO 3166 codes such as US, GB or CN")
    return regions


def tables_version() -> str:
    """Name what decides besides the settings: the patterns' version and that of the numbering plans."""
    from phonenumbers import __version__

    return f"patterns {VERSION}, phonenumbers {__version__}"


@dataclass(frozen=True, kw_only=True)
class PersonalData:
    """Numbers of addresses, numbers and keys; overlapping ones count once, as the kind that `KINDS` names first.

    Args:
        phone_regions: countries whose telephone numbers are known without a country code; `+49 30 …` always is.
    """

    phone_regions: Annotated[tuple[str, ...], AfterValidator(known_regions)] = ("US",)

    name: ClassVar = "personal_data"
    version: ClassVar = 1
    takes: ClassVar[Literal["text"]] = "text"
    batch_size: ClassVar = 64
    columns: ClassVar = {column: pl.Int32() for column in COLUMNS.values()}

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self, weights=tables_version())

    def score(self, batch: Sequence[str]) -> Columns:
        """Count in texts one by one."""
        counts = [Counter(span.kind for span in find(text, self.phone_regions)) for text in batch]
        return {COLUMNS[kind]: [count[kind] for count in counts] for kind in KINDS}
