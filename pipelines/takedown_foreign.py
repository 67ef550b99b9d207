"""Taking samples out of the indexes of token shards that others wrote; the archives themselves are theirs.

No selection stands before such a source, so an index without the sample is what keeps it out of every later plan. It is
written as soon as the list is, as the unit's next attempt: one index a touched archive, no archive is read.
"""

from __future__ import annotations

from tokenmill.faults import fault_point
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.records import Commit
from tokenmill.manifests.stagedir import StageDir
from tokenmill.manifests.storage import Store
from tokenmill.manifests.takedowns import Takedowns
from tokenmill.pipelines.foreign_tokens import publish_index, without
from tokenmill.pipelines.jobs import Job, Target, Unit
from tokenmill.pipelines.takedown_find import all_commits, stage_dirs


def is_foreign(folder: StageDir) -> bool:
    """Say whether a tokenize folder holds indexes alone, of archives that others wrote."""
    return "foreign" in folder.config.settings


def redact_foreign(store: Store, lists: Takedowns) -> int:
    """Write the newest index of every foreign archive again without the samples; returns how many had one."""
    done = 0
    for folder in filter(is_foreign, stage_dirs(store, "tokenize")):
        for commit in {commit.unit: commit for commit in all_commits(folder)}.values():  # in order of attempt
            done += _redact(folder, commit, lists)
    return done


def _redact(folder: StageDir, commit: Commit, lists: Takedowns) -> bool:
    rows = folder.read_rows(commit)
    mask = lists.mask(rows, folder.source)
    if not mask.any():
        return False
    target = Target(folder=folder, attempt=commit.attempt + 1, predecessor=sha256_hex(commit.to_bytes()))
    job = Job(unit=Unit(inputs=commit.inputs), targets=(target,))
    publish_index(job, commit.data, without(rows, mask, commit.unit))
    fault_point("takedown:after-rewrite")
    return True
