"""Which verdicts a new decision follows, and how they outlive a takedown.

Snapshots of `duplicates` form chains: each says which one it was decided after, and under which rules. A decision
follows the newest one of its own rules, so an experiment with a rule leaves no trace once it is undone; only where its
rules are new does it follow what was decided under others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from tokenmill.manifests.snapshots import read_description, read_snapshot, snapshot_names
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.verdicts import Decision


def earlier_verdicts(compare: StageDir, duplicates: StageDir, inputs: str, rules: str) -> str:
    """Return the digest of the snapshot of `duplicates` whose kept samples win; empty where there is none.

    These very inputs are decided after what they were decided after before: a decision made twice must be the same.
    """
    decided, made = (
        {one["digest"]: one["parents"] for one in (read_description(folder, name) for name in snapshot_names(folder))}
        for folder in (compare, duplicates)
    )
    for known, is_stored in ((decided, True), (made, False)):
        for parents in known.values():
            previous = str(parents["previous"])
            if parents["inputs"] == inputs and (is_stored or not previous or previous in made):
                return previous
    steps = list(made.items())
    started_by = {parents.get("compare") for parents in made.values()}
    again = [digest for digest, known in decided.items() if known.get("rules") == rules and digest not in started_by]
    steps += [(stored, decided[digest]) for digest, stored in _stored_already(compare, duplicates, again, made)]
    own = [(digest, parents) for digest, parents in steps if parents.get("rules") == rules] or steps
    all_of_them = {digest for digest, _ in own}
    heads = all_of_them - {parents["previous"] for digest, parents in own if parents["previous"] != digest}
    return min(heads or all_of_them, default="")


def _stored_already(
    compare: StageDir, duplicates: StageDir, decided: Sequence[str], made: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (decision, snapshot of `duplicates`) of decisions whose verdicts were those of an earlier one.

    The snapshot tells of the first decision alone. One that was killed before its verdicts were stored has none.
    """
    verdicts = {
        digest: [commit.inputs[-1].digest for commit in read_snapshot(duplicates, digest).commits]
        for digest in (made if decided else ())
    }
    for digest in decided:
        (commit,) = read_snapshot(compare, digest).commits
        wanted = Decision(folder=compare, commit=commit).parts()["verdicts"].to_list()
        yield from ((digest, stored) for stored, found in verdicts.items() if found == wanted)


def keep_verdicts_without(folder: StageDir, records: Collection[tuple[str, int]]) -> None:
    """Publish every snapshot of `duplicates` that names one of some records again, without them.

    Who was kept in the slices that stay is not forgotten when a sample of another one is taken down. In the slices
    that go it is: their samples are decided about afresh.
    """
    old = {one.digest: one for one in (read_snapshot(folder, name) for name in snapshot_names(folder))}
    left = {
        digest: replace(one, commits=tuple(c for c in one.commits if (c.unit, c.attempt) not in records))
        for digest, one in old.items()
    }
    new = {digest: one.digest if one.commits else "" for digest, one in left.items()}
    for digest, one in left.items():
        if new[digest] in ("", digest):
            continue
        previous = one.parents["previous"]
        while previous in new and new[previous] in ("", new[digest]):  # nothing is left of it, or the same
            previous = old[previous].parents["previous"]
        parents = {"inputs": "", "previous": new.get(previous, previous), "rules": one.parents.get("rules", "")}
        replace(one, parents=parents).publish()
