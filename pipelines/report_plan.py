"""The report's part on plans: how full each phase is, what it is made of, how often each source is gone through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.manifests.plans import Plan
from tokenmill.pipelines.plan_figures import RANKS, warnings_of
from tokenmill.pipelines.report_charts import Part, stacked_bar
from tokenmill.pipelines.report_html import Child, Markup, count, element, facts_list, join, note, table


def plans_part(plans: Mapping[str, Plan]) -> Markup:
    """Show the plan of every phase."""
    if not plans:
        return join(element("h3", "Plan"), note("Nothing is planned yet."))
    parts: list[Child] = []
    for phase, plan in plans.items():
        parts.append(element("h3", "Plan" if len(plans) == 1 else f"Plan of phase {phase}"))
        parts.append(_plan(plan.description))
    return join(*parts)


def _plan(about: Mapping[str, Any]) -> Markup:
    left_out = {**about["counts"]["dropped"], **about["counts"]["failed"]}
    reasons = ", ".join(f"{why.replace('_', ' ')} {count(number)}" for why, number in sorted(left_out.items()))
    groups = [("ids by template", about["templates"]), ("ids by source", about["sources"])]
    groups += [("ids by modality", about["modalities"])] if about.get("modalities") else []
    return join(
        facts_list(_facts(about)),
        [element("p", f"Look at this: {warning}.") for warning in warnings_of(about)],
        element("div", *(_shares(title, group) for title, group in groups), class_="cards"),
        _sources(about),
        _costs(about.get("cost_spread") or {}),
        note(f"Left out of this plan: {reasons}.") if reasons else None,
    )


def _facts(about: Mapping[str, Any]) -> list[tuple[str, Child]]:
    totals = about["totals"]
    facts: list[tuple[str, Child]] = [
        ("packs", count(about["num_packs"])),
        ("ids a pack", count(about["context"])),
        ("filled", f"{100 * about['fill']:.1f} %"),
    ]
    if about.get("supply_bound"):
        facts.append(("at most, by what there is to pack", f"{100 * about['supply_bound']:.1f} %"))
    facts += [
        ("documents", count(totals["documents"])),
        ("text ids learned", count(totals["text_tokens"])),
        ("vision ids learned", count(totals["vision_tokens"])),
        ("texts cut to fill holes", count(totals.get("cut_documents", 0))),
    ]
    facts += [("ids of the longest document", count(about["longest"]))] if about.get("longest") else []
    if about["num_windows"] > 1 and "window_mix" in about:
        mix = about["window_mix"]
        facts.append(("windows off the plan's mix", f"{100 * mix['mean']:.1f} %, worst {100 * mix['worst']:.1f} %"))
    return facts


def _sources(about: Mapping[str, Any]) -> Markup:
    rows: list[list[Child]] = []
    whole = sum(one["tokens"] for one in about["sources"].values()) or 1
    for name, one in about["sources"].items():
        asked = one.get("share_asked")
        lost = ", ".join(f"{why.replace('_', ' ')} {count(n)}" for why, n in one.get("dropped", {}).items())
        rows.append([
            name, count(one["tokens"]), f"{100 * one['tokens'] / whole:.1f} %",
            "–" if asked is None else f"{100 * asked:.1f} %", f"{one['epochs']:.3g}",
            f"{one.get('epochs_got', one['epochs']):.3g}", lost,
        ])  # fmt: skip
    head = ("source", "ids", "share", "share asked", "epochs asked", "epochs got", "left out")
    return table(head, rows, numbers=range(1, 6))


def _costs(spread: Mapping[str, Mapping[str, float]]) -> Markup | None:
    if not spread:
        return None
    rows = [[size, f"{one['dealt']:.3f}", f"{one['undealt']:.3f}"] for size, one in spread.items()]
    told = f"Largest ÷ mean cost of the packs that {RANKS} ranks have at the same time: what is above 1 they wait."
    return join(note(told), table(("packs of a step", "dealt by cost", "as they come"), rows, numbers=range(3)))


def _shares(title: str, groups: Mapping[str, Mapping[str, Any]]) -> Markup:
    whole = max((int(group.get("tokens", 0)) for group in groups.values()), default=0) or 1
    total = sum(int(group.get("tokens", 0)) for group in groups.values()) or 1
    lines = []
    for name, group in sorted(groups.items(), key=lambda item: -int(item[1].get("tokens", 0))):
        tokens = int(group.get("tokens", 0))
        told = element("div", element("span", name), element("span", f"{100 * tokens / total:.1f} %"), class_="row")
        bar = stacked_bar([Part(value=tokens, kind="plain", title=count(tokens))], whole, f"{name}: {tokens} ids")
        lines.append(element("div", told, bar, class_="stage"))
    return element("article", element("h3", title), lines, class_="card")
