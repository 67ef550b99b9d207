"""`tokenmill takedown`: find samples, leave them out from now on, say who has seen them, and take out their bytes.

The list is published before anything else, so from then on no selection, plan or ingest takes the samples; all that
follows can be repeated. Costs one reading of every index under the root (two where samples were found), and no pixel.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tokenmill.errors import RecipeError
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.takedowns import Identifier, Takedowns, normal_url, read_takedowns, write_list
from tokenmill.pipelines.takedown_find import Found, find, raw_files, widened
from tokenmill.pipelines.takedown_foreign import redact_foreign
from tokenmill.pipelines.takedown_plans import plans_with
from tokenmill.pipelines.takedown_rewrite import rewrite
from tokenmill.recipe import Recipe

Asked = Literal["keys", "urls", "hashes"]
_SHA256, _PHASH = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}")
_MOST_DISTANT = 16


@dataclass(frozen=True, kw_only=True)
class TakedownOptions:
    """What to do beyond leaving the samples out: `rewrite` takes out their bytes; `reason` is stored with the list."""

    rewrite: bool = False
    reason: str = ""


def read_identifiers(path: Path, asked: Asked, *, distance: int = 0) -> list[Identifier]:
    """Read a file of keys, URLs or hashes, one a line; empty lines and lines that begin with `# ` are left out.

    Raises RecipeError for a file that cannot be read or is empty, or a line that is no hash.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]  # a key may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from error
    found = [_identifier(line, asked, distance, path) for line in lines if line and not line.startswith("# ")]
    if not found:
        raise RecipeError(f"{path}: holds no line that names a sample")
    return sorted(set(found))


def _identifier(line: str, asked: Asked, distance: int, path: Path) -> Identifier:
    if asked == "keys":
        return Identifier(kind="key", value=line)
    if asked == "urls":
        return Identifier(kind="url", value=normal_url(line))
    digits = line.lower()
    if _SHA256.fullmatch(digits):
        return Identifier(kind="sha256", value=digits)
    if _PHASH.fullmatch(digits) and 0 <= distance <= _MOST_DISTANT:
        return Identifier(kind="phash", value=digits, distance=distance)
    raise RecipeError(f"{path}: {line[:80]!r} is no hash; 64 hex digits (sha256 of the bytes) or 16 (perceptual hash)")


def take_down(recipe: Recipe, asked: Sequence[Identifier], options: TakedownOptions) -> dict[str, Any]:
    """Take samples down and return what was found, who has seen them, and what is left to do."""
    store = open_store(recipe.root, recipe.storage)
    before = read_takedowns(store) or Takedowns(frozenset())
    found = find(store, Takedowns(frozenset(asked)))
    report: dict[str, Any] = {
        "list": _publish(store, asked, found, before, options),
        "asked": len(asked),
        "not_found": [_named(i) for i in sorted(set(asked) - found.answered - before.found)],
        "samples": _by_source(found),
        "archives": sorted({part.archive for part in found.tokenized}),
        "plans": plans_with(store, found.tokenized),
        "raw_files": raw_files(found.hits),
        "foreign_indexes": redact_foreign(store, widened(read_takedowns(store) or before, found)),
    }
    if options.rewrite:
        every = read_takedowns(store) or before
        whole = find(store, every)
        report["rewritten"] = asdict(rewrite(store, widened(every, whole), whole.names))
    return report


def _publish(
    store: Store, asked: Sequence[Identifier], found: Found, before: Takedowns, options: TakedownOptions
) -> str | None:
    """Write down what no list holds yet; returns the new list's 16 digits, or None if all is there."""
    new = [i for i in asked if i not in before.identifiers or (i in found.answered and i not in before.found)]
    derived = [i for i in found.derived if i not in before.identifiers]
    if not new and not derived:
        return None
    about = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "reason": options.reason}
    return write_list(store, new, derived, frozenset(found.answered) | frozenset(derived), about)


def _by_source(found: Found) -> dict[str, int]:
    return dict(sorted(Counter(source for source, _ in found.names).items()))


def _named(identifier: Identifier) -> str:
    return identifier.value


def _seen(run: Mapping[str, Any]) -> str:
    if run["steps_done"] is None:
        return "of which only an exported model is left: may have seen all of them"
    if not run["steps"]:
        return f"{run['steps_done']:,} steps: had not come to them"
    return f"{run['steps_done']:,} steps: has seen {len(run['packs_seen'])} of them, at steps {_some(run['steps'])}"


def render_takedown(report: dict[str, Any]) -> str:
    """Return a report for people."""
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterable[str]:
    samples = ", ".join(f"{source} {number:,}" for source, number in report["samples"].items()) or "none"
    yield f"asked for {report['asked']:,}; samples found: {samples}; not found: {len(report['not_found']):,}"
    yield from (f"  not found: {name}" for name in report["not_found"])
    yield f"list: takedowns/{report['list']}.parquet" if report["list"] else "all of it was on the lists already"
    for plan in report["plans"]:
        yield f"{plan['plan']}: in {len(plan['packs']):,} of {plan['num_packs']:,} packs ({_some(plan['packs'])})"
        for run in plan["runs"]:
            yield f"  run {run['run']}, {_seen(run)}"
    for raw in report["raw_files"]:
        yield f"raw file {raw['source']}: {raw['file']} holds {len(raw['keys'])} of them; it is yours to change"
    if report["foreign_indexes"]:
        yield f"{report['foreign_indexes']} indexes of token shards of others leave them out; the shards are theirs"
    done = report.get("rewritten")
    if done is None:
        yield 'they are in no later selection; "tokenmill run" makes selection and plan anew'
        return
    yield f"rewrote {len(done['archives'])} archives and {done['indexes']} indexes, removed {done['records']} records"
    if done["answers"]:
        yield f"wrote {done['answers']} records of paid captions again; no other sample is asked about again"
    for plan in done["plans"]:
        yield f"{plan}: removed; it cannot be trained on any more, plan again"
    yield 'next: "tokenmill run" makes what was removed anew without them, "tokenmill gc --apply" removes leftovers'


def _some(numbers: Sequence[int], limit: int = 12) -> str:
    told = ", ".join(str(number) for number in numbers[:limit])
    return told + (f", … {len(numbers) - limit} more" if len(numbers) > limit else "")
