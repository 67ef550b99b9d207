"""Stage caption: each column's questions about the kept samples → answers, each asked once and kept for ever.

A unit is a slice with its selection; its table holds what was first answered there. Whatever an earlier unit about the
same shard or the journal of a killed run has answered is found by its question and not asked again. Answers are judged
here so that bad ones are counted, and judged again by `choose`, whose checks may be newer: no text is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.answers import SCHEMA, records_by_shard, shard_of
from tokenmill.pipelines.caption_worker import CaptionWorker
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.jobs import StageWork, Unit
from tokenmill.pipelines.questions import Asking
from tokenmill.pipelines.selected import Selected
from tokenmill.settings_caption import CaptionColumn

VERSION = 2


def caption_work(
    store: Store,
    name: str,
    column: CaptionColumn,
    modality: str,
    selected: Sequence[Selected],
    limits: DecodeLimits,
    parents: Mapping[str, str],
) -> StageWork:
    """Describe the asking of one column about one source."""
    piece = selected[0].piece
    asking = Asking.of(column, modality, piece.source)
    folder = caption_folder(store, asking, limits)
    earlier = records_by_shard(folder) if asking.captioner.asks else {}
    units = [
        Unit(
            inputs=(part.piece.reference("rows"), part.kept_reference),
            payload={"part": part, "earlier": earlier.get(shard_of(part.piece.commit.inputs[0].name), ())},
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
    )
    return StageDir(store=store, source=asking.source, config=config)
