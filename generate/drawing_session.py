"""Requests to drawings: what a folder has already is taken from there, the rest is drawn batch by batch and kept.

A batch is written as soon as it is drawn, so a run that is killed loses one batch. A drawing hangs on its request
alone, never on those beside it: a resumed run, whose batches are others, ends with the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.generate.drawing_requests import DrawingRequest
from tokenmill.generate.drawn_files import Drawn
from tokenmill.generate.drawn_folder import DrawnFolder, identity_of
from tokenmill.generate.opened_model import OpenedModel
from tokenmill.generate.pictures import decode_ids
from tokenmill.generate.sample import draw_documents
from tokenmill.generate.sampling import Sampling

OnDrawn = Callable[[int, Drawn], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How much of what was asked is done: drawings in all, found in the folder, drawn so far, their ids."""

    asked: int
    found: int
    drawn: int
    ids: int


def draw_requests(
    model: OpenedModel,
    requests: Sequence[DrawingRequest],
    sampling: Sampling,
    on_drawn: OnDrawn,
    *,
    batch_size: int = 8,
    folder: DrawnFolder | None = None,
    progress: Callable[[Share], None] | None = None,
) -> Share:
    """Draw, calling `on_drawn(index of the request, drawing)` for each, those found first.

    Raises RunError where there is no room on the device or the model gives no numbers.
    """
    here = {} if folder is None else folder.rows
    rows = {index: here.get(identity_of(request.about)) for index, request in enumerate(requests)}
    missing = [index for index, row in rows.items() if row is None]
    share = Share(asked=len(requests), found=len(requests) - len(missing), drawn=0, ids=0)
    if folder is not None:
        for index, row in rows.items():
            if row is not None:
                on_drawn(index, _drawn(model, requests[index], folder.ids(row["file"])))

    def keep(indexes: Sequence[int], documents: list[NDArray[np.int32]]) -> None:
        nonlocal share
        numbers = [missing[index] for index in indexes]
        drawn = [_drawn(model, requests[number], ids) for number, ids in zip(numbers, documents, strict=True)]
        if folder is not None:
            folder.add(drawn)
        for number, one in zip(numbers, drawn, strict=True):
            on_drawn(number, one)
        ids = share.ids + sum(map(len, documents))
        share = Share(asked=share.asked, found=share.found, drawn=share.drawn + len(drawn), ids=ids)
        if progress is not None:
            progress(share)

    if missing:
        draw_documents(
            model.model,
            [requests[index].drawing for index in missing],
            sampling,
            batch_size=batch_size,
            num_codes=model.vision.codebook_size,
            on_batch=keep,
        )
    return share


def _drawn(model: OpenedModel, request: DrawingRequest, ids: NDArray[np.int32]) -> Drawn:
    frames = np.stack(decode_ids(ids, model.model.vocabulary, model.vision))
    return Drawn(about=request.about, ids=ids, frames=frames, fps=request.drawing.fps)
