"""Stage tokenize: kept samples → token archives, one sample = `codes.npy`, `text.npy`, `json` (DESIGN §3).

What a unit is and what names its folder stands here; `tokens_worker` makes a unit, `tokens_archive` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tokenmill.manifests.records import InputRef
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageConfig, StageDir
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.earlier_records import references_of_last
from tokenmill.pipelines.jobs import StageWork, Unit
from tokenmill.pipelines.selected import Selected
from tokenmill.pipelines.tokens_before import EarlierCodes
from tokenmill.pipelines.tokens_settings import TokenSettings
from tokenmill.pipelines.tokens_worker import TokenWorker
from tokenmill.tokenize.vocabulary import build_vocabulary

VERSIONS = {"image": 3, "text": 2, "video": 4, "document": 1}
SCHEMA = 1


def tokenize_work(
    store: Store,
    settings: TokenSettings,
    fingerprints: Mapping[str, str],
    selected: Sequence[Selected],
    captions: Snapshot | None,
    limits: DecodeLimits,
    parents: Mapping[str, str],
    *,
    cpus: int = 1,
) -> StageWork:
    """Describe the tokenizing of one source; `captions` is None for text, which needs none.

    `cpus` is what a worker may use of them for a model that computes on CPUs.
    """
    piece, vocabulary = selected[0].piece, build_vocabulary(settings.vocabulary)
    config = StageConfig(
        stage="tokenize",
        version=VERSIONS[settings.modality],
        schema=SCHEMA,
        settings={**settings.identity, **(limits.settings if settings.modality != "text" else {})},
        fingerprints=fingerprints,
        about={"text_ids": vocabulary.text.size, "codes": vocabulary.codebook_size},
    )
    folder = StageDir(store=store, source=piece.source, config=config)
    earlier = EarlierCodes(folder) if settings.modality != "text" else None
    units = []
    for index, part in enumerate(selected):
        commit = None if captions is None else captions.commits[index]
        extra = () if commit is None else (InputRef(name="captions", digest=commit.digests["captions"]),)
        words = (*extra, *references_of_last(part.piece))
        inputs = (part.piece.reference("rows"), part.kept_reference, *words)  # metadata is in the archive
        before = earlier.about(part.piece) if earlier else ()
        units.append(Unit(inputs=inputs, payload={"part": part, "captions": commit, "earlier": before}))
    return StageWork(
        title=f"tokenize {piece.source}",
        folders=(folder,),
        units=units,
        make_worker=partial(
            TokenWorker,
            piece.source,
            dict(piece.settings),
            settings,
            limits,
            captions.folder if captions else None,
            cpus,
        ),
        parents=parents,
    )
