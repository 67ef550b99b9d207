"""What captions would cost to ask for, without asking: how many questions, times what one has cost so far.

An estimate must not spend money, nor wait for a model. The measured units get the sources' own captions in the place of
those columns, so that what comes behind is measured on some text; the questions are counted, and what a question costs
is told by the records of those that were asked before, if any were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.pipelines.asked_totals import AskedTotals
from tokenmill.pipelines.caption import caption_folder
from tokenmill.pipelines.captioning import CAPTIONED
from tokenmill.pipelines.questions import Asking
from tokenmill.settings_caption import CaptionColumn, CaptionSettings


@dataclass(frozen=True, kw_only=True)
class AskingEstimate:
    """What a column would ask about a source; what that costs is None where nothing was ever asked.

    `worker_hours` are those of workers that wait for answers, `asked` the questions that the other figures come from.
    """

    source: str
    column: str
    questions: int
    asked: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    worker_hours: float | None = None
    cost: float | None = None
    currency: str = "USD"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        text = f"caption {self.source} {self.column}: {self.questions:,} questions in all"
        text += "; none was asked for this estimate"
        if not self.asked:
            return f"{text}, and none before, so what they cost is not known (run --limit 1 asks some)"
        text += f"; by the {self.asked:,} asked before: {self.input_tokens:,} tokens in, {self.output_tokens:,} out, "
        text += f"{self.worker_hours:,.3g} worker-hours"
        return f"{text}, {self.cost:,.4g} {self.currency}" if self.cost else text


def without_asking(captions: CaptionSettings, modality: str) -> CaptionSettings:
    """Return how a modality is captioned with the sources' own captions in the place of what costs something."""
    own = CaptionColumn.model_validate({"engine": "metadata", "missing": "empty"})
    free = {
        name: own if _asks_somewhere(column, modality) else column
        for name, column in captions.columns.items()
        if column.form == "caption"
    }
    return captions.model_copy(update={"columns": free or {"caption": own}})


def _asks_somewhere(column: CaptionColumn, modality: str) -> bool:
    """Say whether a column costs something at any source: one may have an engine of its own."""
    return any(Asking.of(column, modality, source).captioner.asks for source in ("", *column.sources))


def asking_estimates(chain: Any, sampled: Any) -> Iterator[AskingEstimate]:
    """Yield what each column would ask of each source: `chain` is the recipe's, `sampled` has selected some of it."""
    for source, modality in chain.modality.items():
        for name, column in chain.captions_of(modality).columns.items() if modality in CAPTIONED else ():
            asking = Asking.of(column, modality, source)
            if asking.captioner.asks and sampled.selected[source]:
                yield _estimate(chain, sampled, name, asking)


def _estimate(chain: Any, sampled: Any, name: str, asking: Asking) -> AskingEstimate:
    parts, size = sampled.selected[asking.source], sampled.sizes[asking.source]
    number = sum(1 for part in parts for _ in asking.questions(part.read(), part.carried()))
    measured = size.bytes_in("caption")
    questions = round(number * size.bytes / measured) if measured else number
    folder = caption_folder(chain.store, asking, chain.limits)
    totals = AskedTotals.of(folder, asking.column.prices.currency)
    told: dict[str, Any] = {"source": asking.source, "column": name, "questions": questions}
    told["currency"] = totals.currency
    if not totals.questions:
        return AskingEstimate(asked=0, **told)
    times = questions / totals.questions
    return AskingEstimate(
        asked=totals.questions,
        input_tokens=round(totals.input_tokens * times),
        output_tokens=round(totals.output_tokens * times),
        worker_hours=round(totals.asking_ms * times / 3.6e6, 6),
        cost=round(totals.cost_millionths * times / 1e6, 6),
        **told,
    )
