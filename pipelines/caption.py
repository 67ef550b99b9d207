"""Stage caption: each column's questions about the kept samples → answers, each asked once and kept for ever.

A unit is a slice with its selection; its table holds what was answered there. Whatever an earlier unit about the same
files or the journal of a killed run has answered is found by its question and not asked again. Answers are judged here
so that bad ones are counted, and judged again by `choose`, whose checks may be newer: no text is thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tokenmill.captions.prompts import prompt_hash
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.answers import SCHEMA
from tokenmill.pipelines.caption_worker import CaptionWorker
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.earlier_records import EarlierRecords, references_of_last
from tokenmill.pipelines.jobs import StageWork, Unit
from tokenmill.pipelines.questions import Asking
from tokenmill.pipelines.selected import Selected
from tokenmill.settings_caption import CaptionColumn

VERSION = 2
_HIDDEN = re.compile(r"key|secret|password|credential|auth|header|url|api_token", re.IGNORECASE)


def caption_work(
    store: Store,
    name: str,
    column: CaptionColumn,
    modality: str,
    selected: Sequence[Selected],
    limits: DecodeLimits,
    parents: Mapping[str, str],
    *,
    retry_failed: bool = False,
) -> StageWork:
    """Describe the asking of one column about one source.

    With `retry_failed` new units, too, ask again what other units have no good answer to.
    """
    piece = selected[0].piece
    asking = Asking.of(column, modality, piece.source)
    folder = caption_folder(store, asking, limits)
    earlier = EarlierRecords(folder)
    units = [
        Unit(
            inputs=(part.piece.reference("rows"), part.kept_reference, *references_of_last(part.piece)),
            payload={
                "part": part,
                "earlier": earlier.about(part.piece) if asking.captioner.asks else (),
                "retry_failed": retry_failed,
            },
        )
        for part in selected
    ]
    return StageWork(
        title=f"caption {piece.source} {name}",
        folders=(folder,),
        units=units,
        make_worker=partial(CaptionWorker, name, column, modality, piece.source, dict(piece.settings), limits),
        parents=parents,
        revisits=asking.captioner.asks,
    )


def caption_folder(store: Store, asking: Asking, limits: DecodeLimits) -> StageDir:
    """Return the folder of a column's answers about one source."""
    captioner = asking.captioner
    config = StageConfig(
        stage="caption",
        version=VERSION,
        schema=SCHEMA,
        settings={**asking.identity, **(limits.settings if captioner.takes != "text" else {})},
        fingerprints={asking.column.engine: captioner.fingerprint},
        about=engine_described(asking.column) if captioner.asks else {},
    )
    return StageDir(store=store, source=asking.source, config=config)


def engine_described(column: CaptionColumn) -> dict[str, Any]:
    """Return what the fingerprint hides from a person: the engine's settings, but for places and possible secrets."""
    return {"engine_settings": _shown(column.options), "prompt_hash": prompt_hash(column.prompt, column.system)}


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shown(one) for name, one in value.items() if not _HIDDEN.search(str(name))}
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    return "…" if isinstance(value, str) and "://" in value else value
