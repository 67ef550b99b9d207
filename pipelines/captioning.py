"""What the stages caption and choose have to do for a recipe: every column about every source that has captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.caption import caption_work
from tokenmill.pipelines.choose import choose_work
from tokenmill.pipelines.jobs import StageWork

if TYPE_CHECKING:
    from tokenmill.pipelines.chain import Chain

CAPTIONED = ("image", "video")  # texts are their own captions, and documents hold theirs
Column = tuple[str, str]  # source and column


def caption_works(chain: Chain) -> dict[Column, tuple[str, StageWork]]:
    """Describe the asking of every column about every source, and where its folder is: an estimate's may share one."""
    works: dict[Column, tuple[str, StageWork]] = {}
    is_retry = chain.options.retry_failed and "caption" in chain.options.work
    for name in _captioned(chain):
        modality = chain.modality[name]
        parents = chain.parents(name, chain.ingest, chain.split, chain.select)
        for column, settings in chain.captions_of(modality).columns.items():
            work = caption_work(
                chain.store, column, settings, modality, chain.selected[name], chain.limits, parents,
                retry_failed=is_retry,
            )  # fmt: skip
            works[name, column] = work.folders[0].path, work
    return works


def choose_works(chain: Chain, answered: Mapping[Column, Snapshot]) -> dict[str, StageWork]:
    """Describe the choice among the answers about every source."""
    works = {}
    for name in _captioned(chain):
        captions = chain.captions_of(chain.modality[name])
        answers = {column: answered[name, column] for column in captions.columns}
        parents = chain.parents(name, chain.ingest, chain.split, chain.select)
        parents |= {f"caption/{column}": snapshot.digest for column, snapshot in answers.items()}
        works[name] = choose_work(
            chain.store, captions, chain.modality[name], chain.selected[name], answers, parents
        )  # fmt: skip
    return works


def _captioned(chain: Chain) -> list[str]:
    """Name the sources that get captions."""
    return [name for name, modality in chain.modality.items() if modality in CAPTIONED and chain.selected[name]]
