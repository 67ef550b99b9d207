"""A made-up source and its plan, and the very documents of that plan for who pads them.

Everything weighs 1, so a step's weight is the number of ids that are supervised in it, for everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.documents import Assembled, assemble
from tokenmill.tokenize.vocabulary import Vocabulary, byte_vocabulary
from tokenmill.train.samples import SampleReader

TEMPLATES = {"image": {"generation": 1.0}, "text": {"language": 1.0}}


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """Pictures of side² codes with captions (60 %) and texts (40 %) of so many words on average, and their plan."""

    documents: int
    side: int
    words: int
    context: int
    codebook: int

    @property
    def vocabulary(self) -> Vocabulary:
        return byte_vocabulary(self.codebook)

    def write(self, folder: Path) -> Plan:
        """Write source and plan into a store in `folder`."""
        store = open_store(str(folder))
        images = self.documents * 6 // 10
        amounts = Amounts(images=images, texts=self.documents - images, side=self.side, text_words=self.words)
        snapshot = write_token_source(store, "made-up", self.vocabulary, amounts)
        settings: dict[str, Any] = {"context": self.context, "templates": TEMPLATES, "vision_weight": 1.0}
        return write_plan(store, [snapshot], PlanSettings.model_validate(settings))


def whole_documents(plan: Plan, vocabulary: Vocabulary) -> Iterator[Assembled]:
    """Yield every document of a plan once and whole, where the plan may have cut it in pieces."""
    samples = SampleReader(plan.folder.store, plan.index_of)
    weights = plan.description["vision_weight"], plan.description["text_weight"]
    seen = set()
    for pack in range(plan.num_packs):
        for placed in plan.documents(pack):
            if (placed.shard, placed.sample) in seen:
                continue
            seen.add((placed.shard, placed.sample))
            sample = samples.read(placed.shard, placed.sample)
            yield assemble(
                sample.segments, sample.text_ids, sample.codes, placed.template, vocabulary, placed.variant, *weights
            )


def write_documents(path: Path, documents: Iterator[Assembled]) -> int:
    """Write documents for `plain_trainer.py`; returns how many ids of them are supervised."""
    found = list(documents)
    learned = np.concatenate([document.weights > 0 for document in found])
    borders = np.cumsum([0, *(len(document.ids) for document in found)])
    np.savez(path, ids=np.concatenate([document.ids for document in found]), learned=learned, borders=borders)
    return int(learned.sum() - learned[borders[:-1]].sum())  # nothing predicts the first id of a document
