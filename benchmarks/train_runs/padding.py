"""Documents as a plain Trainer takes them: one an item, a batch filled up to the longest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

NO_LABEL = -100


class Documents(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Ids and labels of one document an item; transformers shifts labels itself."""

    def __init__(self, path: str) -> None:
        with np.load(path) as found:
            self._ids = torch.from_numpy(found["ids"].astype(np.int64))
            self._labels = self._ids.masked_fill(~torch.from_numpy(found["learned"]), NO_LABEL)
            self._borders = found["borders"].tolist()

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        here = slice(self._borders[number], self._borders[number + 1])
        return {"input_ids": self._ids[here], "labels": self._labels[here]}


def padded(documents: list[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Make a batch of documents, each filled up to the longest."""
    ids, labels = ([document[name] for document in documents] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }
