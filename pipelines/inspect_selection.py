"""`tokenmill inspect RECIPE`: the funnel of its selection, what other rules would do, and SQL over the annotations.

Reads scores and verdicts that are there already; nothing is computed by a model and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tokenmill.errors import RunError
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.annotations import run_sql
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checked_recipe import MODALITIES
from tokenmill.pipelines.execution_threads import query_threads
from tokenmill.pipelines.funnel import Funnel, Judged, count_funnels
from tokenmill.pipelines.what_if import changed_rules
from tokenmill.recipe import Recipe

_ROWS_SHOWN = 200


def inspect_recipe(recipe: Recipe, *, what_if: Sequence[str] = (), sql: str = "") -> dict[str, Any]:
    """Describe the selection of a recipe, or answer an SQL query over its annotations.

    Raises:
        RecipeError: a rule, a column or the query is wrong. RunError: not all samples are scored.
    """
    chain = Chain(recipe=recipe, options=ChainOptions(work=frozenset(), quiet=True))
    rules = chain.rules_of
    if sql:
        found = run_sql(chain, sql)
        return {"columns": {name: str(kind) for name, kind in found.schema.items()}, "rows": found.to_dicts()}
    after, changes = changed_rules(chain, what_if) if what_if else (rules, [])
    notes: list[str] = []
    modalities = {
        modality: _modality(chain, modality, after if what_if else None, notes)
        for modality in MODALITIES
        if any(chain.scored[name] for name in chain.sources_of(modality))
    }
    return {"modalities": modalities, "what_if": [asdict(change) for change in changes], "notes": notes}


def _modality(chain: Chain, modality: str, after: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any]:
    copies = _copies(chain, modality, notes)
    totals = [Funnel(), Funnel()]
    sources: dict[str, Any] = {}
    first = 0
    for name in chain.sources_of(modality):
        seen = chain.looked_at(modality)
        parts = [part.only(seen) for part in chain.judged[name]]
        commits = [None] * len(parts) if copies is None else copies.commits[first : first + len(parts)]
        slices = [
            Judged(part=part, duplicates=None if copies is None or commit is None else (copies.folder, commit))
            for part, commit in zip(parts, commits, strict=True)
        ]
        first += len(parts)
        rules = [chain.rules_of[name], *([] if after is None else [after[name]])]
        funnels = count_funnels(slices, rules, query_threads(chain.store))
        for total, funnel in zip(totals, funnels, strict=False):
            total += funnel
        sources[name] = {"rules": rules[0].identity, **_told(funnels)}
    if after is not None and totals[1].undecided:
        notes.append(f"{modality}: {totals[1].undecided:,} samples pass that were not compared with the others: copies "
                     "among them are counted as kept")  # fmt: skip
    return {"sources": sources, "total": _told(totals[: 1 if after is None else 2])}


def _told(funnels: Sequence[Funnel]) -> dict[str, Any]:
    return {name: funnel.to_json() for name, funnel in zip(("funnel", "what_if"), funnels, strict=False)}


def _copies(chain: Chain, modality: str, notes: list[str]) -> Snapshot | None:
    """Return the copies of a modality as they were decided under the recipe's rules; None where they were not."""
    settings = chain.recipe.filter.get(modality)  # type: ignore[call-overload]
    if settings is None or settings.duplicates is None:
        return None
    try:
        return chain.duplicates.get(modality)
    except RunError:
        notes.append(f'{modality}: copies are not decided under these rules; run "tokenmill select"')
        return None


def render_selection(found: Mapping[str, Any]) -> str:
    """Return what `inspect_recipe` found as text."""
    if "rows" in found:
        return "\n".join(_table(found["rows"], list(found["columns"])))
    lines: list[str] = []
    for modality, told in found["modalities"].items():
        for name, source in told["sources"].items():
            lines += [f"{modality} {name}", *_funnel(source["funnel"], source.get("what_if")), ""]
        if len(told["sources"]) > 1:
            lines += [f"{modality}, all sources", *_funnel(told["total"]["funnel"], told["total"].get("what_if")), ""]
        lines += [*_rules(told["sources"]), ""]
    lines += [f"what if: {c['source']}: {c['rule']}: {c['after']}  (is {c['before']})" for c in found["what_if"]]
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])]).rstrip()


def _funnel(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield a funnel as a table; with another one beside it, that one's figures follow in columns of their own."""
    head = ["", "in", "dropped", "rescued", "left", "alone", "only"]
    steps, others = _steps(now), _steps(then) if then is not None else {}
    if others:
        head += ["what if:", "dropped", "rescued", "left", "more"]
    rows = [head]
    for name in {**steps, **others}:
        empty = dict.fromkeys(("in", "dropped", "rescued", "left", "alone", "only"), "")
        row = [name, *(_number(steps.get(name, empty)[part]) for part in empty)]
        if others:
            other = others.get(name, empty)
            more = other["left"] - steps[name]["left"] if name in steps and name in others else ""
            row += ["", *(_number(other[part]) for part in ("dropped", "rescued", "left")), _number(more, "+")]
        rows.append(row)
    yield from _aligned(rows)


def _steps(funnel: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the lines of a funnel: what failed, what is taken down, each rule, copies, what is kept."""
    left = funnel["in"]
    steps: dict[str, dict[str, Any]] = {}

    def lose(name: str, number: int, **more: Any) -> None:
        nonlocal left
        steps[name] = {"in": left, "dropped": number, "rescued": "", "alone": "", "only": "", **more}
        left -= number
        steps[name]["left"] = left

    for reason, number in funnel["failed"].items():
        lose(f"failed: {reason}", number)
    if funnel["taken_down"]:
        lose("taken_down", funnel["taken_down"])
    for name, rule in funnel["rules"].items():
        lose(name, rule["dropped"], **{part: rule[part] for part in ("rescued", "alone", "only")})
    if funnel["contaminated"]:
        lose("contaminated", funnel["contaminated"])
    for reason, number in funnel["duplicates"].items():
        lose(reason, number)
    steps["kept"] = dict.fromkeys(("dropped", "rescued", "alone", "only"), "") | {"in": funnel["in"], "left": left}
    return steps


def _rules(sources: Mapping[str, Any]) -> Iterator[str]:
    """Yield every rule's expression, with the sources it holds for where they differ."""
    seen: dict[tuple[str, ...], list[str]] = {}
    for name, source in sources.items():
        for rule in source["rules"]:
            seen.setdefault(tuple(rule), []).append(name)
    for (rule, keep, *rescue), names in seen.items():
        where = "" if len(names) == len(sources) else f" ({', '.join(names)})"
        yield f"  {rule}{where}: {keep}" + (f"; rescued where {rescue[0]}" if rescue else "")


def _number(value: Any, sign: str = "") -> str:
    return f"{value:{sign},}" if isinstance(value, int) else str(value)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    shown = [[_cell(row[column]) for column in columns] for row in rows[:_ROWS_SHOWN]]
    yield from _aligned([list(columns), *shown])
    if len(rows) > _ROWS_SHOWN:
        yield f"… {len(rows) - _ROWS_SHOWN:,} rows more (--json has them all, LIMIT takes fewer)"


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows in columns: the first to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(["", row[0].ljust(widths[0]), *cells]).rstrip()
