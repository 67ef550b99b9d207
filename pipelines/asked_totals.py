"""What asking cost: of every column that asks somebody, over all it was ever asked in a folder.

A snapshot's records tell of the samples that are kept now; what was paid for those that went since stands in others, so
the newest records of the whole folder are added up. Answers of a unit that is not finished lie in journals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenmill.manifests.ledger import sum_of_numbers
from tokenmill.manifests.rollups import read_ledger
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.answer_journal import FOLDER
from tokenmill.pipelines.caption import caption_folder
from tokenmill.pipelines.captioning import CAPTIONED
from tokenmill.pipelines.questions import Asking

_RETRIED = "retried."
_SUMS = ("questions", "requests", "input_tokens", "output_tokens", "cost_millionths", "asking_ms")


@dataclass(frozen=True, kw_only=True)
class AskedTotals:
    """What questions cost, in all.

    Attributes:
        requests: sent, tries included; `retried` says why some were sent again.
        asking_ms: for how long workers waited for answers, added up over workers.
        unanswered: questions of finished units without a good answer.
        journaled: answers of units that are not finished; they are in no other figure.
    """

    questions: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_millionths: int = 0
    asking_ms: int = 0
    currency: str = "USD"
    retried: Mapping[str, int] = field(default_factory=dict)
    unanswered: int = 0
    journaled: int = 0

    @classmethod
    def of(cls, folder: StageDir, currency: str) -> AskedTotals:
        """Add up a folder's newest records."""
        sums = sum_of_numbers(read_ledger(folder)[0].in_order_of_name(), "totals")
        retried = {name.removeprefix(_RETRIED): n for name, n in sums.items() if name.startswith(_RETRIED)}
        return cls(
            **{name: sums.get(name, 0) for name in _SUMS},
            currency=currency,
            retried=retried,
            unanswered=sums.get("unanswered", 0),
            journaled=journaled_answers(folder),
        )

    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens a second and worker, while it asks."""
        return self.output_tokens / (self.asking_ms / 1e3) if self.asking_ms else None

    def __sub__(self, before: AskedTotals) -> AskedTotals:
        """Return what came since `before`."""
        sums = {name: getattr(self, name) - getattr(before, name) for name in _SUMS}
        retried = {why: number - before.retried.get(why, 0) for why, number in self.retried.items()}
        return AskedTotals(
            **sums,
            currency=self.currency,
            retried={why: number for why, number in retried.items() if number},
            unanswered=self.unanswered,
            journaled=self.journaled,
        )

    def to_json(self) -> dict[str, Any]:
        speed = self.tokens_per_s
        return {
            "questions": self.questions,
            "requests": self.requests,
            "retried": dict(sorted(self.retried.items())),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "output_tokens_per_s_worker": None if speed is None else round(speed, 2),
            "cost": self.cost_millionths / 1e6,
            "currency": self.currency,
            "unanswered": self.unanswered,
            "in_journals": self.journaled,
        }


def journaled_answers(folder: StageDir) -> int:
    """Count the answers in a folder's journals, torn lines left out."""
    files = folder.store.files(folder.at(FOLDER))
    return sum(folder.store.read_bytes(entry.path).count(b"\n") for entry in files)


@dataclass(frozen=True, kw_only=True)
class ColumnFolder:
    """A folder of answers, and the columns of a recipe that lie there: two that ask for the same share one."""

    folder: StageDir
    asking: Asking
    names: list[str]


def column_folders(chain: Any) -> dict[str, ColumnFolder]:
    """Return the folders of a recipe's columns by path; takes the fingerprint of every engine, which may be slow."""
    found: dict[str, ColumnFolder] = {}
    for source, modality in chain.modality.items():
        for name, column in chain.captions_of(modality).columns.items() if modality in CAPTIONED else ():
            asking = Asking.of(column, modality, source)
            folder = caption_folder(chain.store, asking, chain.limits)
            found.setdefault(folder.path, ColumnFolder(folder=folder, asking=asking, names=[])).names.append(name)
    return found


def asked_in(columns: Mapping[str, ColumnFolder]) -> dict[str, AskedTotals]:
    """Return what asking cost so far, by folder of each column that costs something."""
    return {
        path: AskedTotals.of(one.folder, one.asking.column.prices.currency)
        for path, one in columns.items()
        if one.asking.captioner.asks
    }


def told_totals(totals: Mapping[str, Any]) -> str:
    """Write what `AskedTotals.to_json` gives as a line for people."""
    retried = ", ".join(f"{why} {number:,}" for why, number in totals["retried"].items())
    text = f"asked {totals['questions']:,} questions in {totals['requests']:,} requests"
    text += f" (again for {retried})" if retried else ""
    text += f", {totals['input_tokens']:,} tokens in, {totals['output_tokens']:,} out"
    speed = totals["output_tokens_per_s_worker"]
    text += f" ({speed:,.0f}/s a worker)" if speed is not None else ""
    text += f", {totals['cost']:,.4g} {totals['currency']}" if totals["cost"] else ""
    return text + (f"; {totals['in_journals']:,} answers in journals" if totals["in_journals"] else "")
