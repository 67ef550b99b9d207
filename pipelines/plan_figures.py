"""What a plan's windows came to: how evenly sources lie along it, how even its packs cost, what each source gave.

All of it is read off commit records, but for costs, which come from the pack tables of at most 16 windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.manifests.plans import read_named_table
from tokenmill.manifests.records import Commit
from tokenmill.manifests.snapshots import Snapshot

RANKS = 8  # that costs are dealt to, one pack each at a time
ATTENTION_SHARE = (
    1.5e-5  # what a unit of Σ len² costs in tokens: Emu3's 32 layers of width 4,096 against 8.5 B parameters
)
_STEPS = (16, 64, 256, 1024)  # packs of a step
_WINDOWS_READ = 16


def mix_spread(commits: Sequence[Commit]) -> dict[str, float]:
    """Tell how far windows are from the plan's mix of tokens, as the share that would have to change its source."""
    names = sorted({name for commit in commits for name in commit.totals if _is_tokens_of_source(name)})
    tokens_WS = np.array([[commit.totals.get(name, 0) for name in names] for commit in commits], np.float64)
    tokens_WS = tokens_WS[tokens_WS.sum(axis=1) > 0] if len(names) else np.zeros((0, 0))
    if not len(tokens_WS):
        return {"mean": 0.0, "worst": 0.0}
    plan_S, window_W = tokens_WS.sum(axis=0) / tokens_WS.sum(), tokens_WS.sum(axis=1)
    off_W = np.abs(tokens_WS / window_W[:, None] - plan_S).sum(axis=1) / 2
    return {"mean": round(float(np.average(off_W, weights=window_W)), 4), "worst": round(float(off_W.max()), 4)}


def _is_tokens_of_source(name: str) -> bool:
    return name.startswith("source.") and name.endswith(".tokens")


def cost_spread(plan: Snapshot) -> dict[str, dict[str, float]]:
    """Tell, by packs of a step, the mean over micro-steps of largest ÷ mean cost of 8 ranks: dealt by cost, and not.

    A rank that waits loses as much: 1.1 means that a tenth of the ranks' time is waiting.
    """
    commits = [commit for commit in plan.commits if commit.file("packs") is not None]
    chosen = sorted({len(commits) * n // _WINDOWS_READ for n in range(_WINDOWS_READ)}) if commits else []
    costs = [_costs(plan, commits[number]) for number in chosen if number < len(commits)]
    spreads = {}
    for size in _STEPS:
        steps = [part.reshape(-1, size) for part in (one[: len(one) // size * size] for one in costs) if len(part)]
        if steps:
            costs_SG = np.concatenate(steps)
            dealt = np.sort(costs_SG, axis=1)
            spreads[str(size)] = {"dealt": _spread(dealt), "undealt": _spread(costs_SG)}
    return spreads


def _costs(plan: Snapshot, commit: Commit) -> NDArray[np.float64]:
    entry = commit.file("packs")
    assert entry is not None
    table = read_named_table(plan.folder.store, plan.folder.at(entry.name), ["tokens", "squares"])
    return np.asarray(table["tokens"].to_numpy() + ATTENTION_SHARE * table["squares"].to_numpy(), np.float64)


def _spread(costs_SG: NDArray[np.float64]) -> float:
    micro_MR = costs_SG.reshape(-1, RANKS)
    return round(float((micro_MR.max(axis=1) / micro_MR.mean(axis=1)).mean()), 4)


def grouped(totals: Mapping[str, int], prefix: str) -> dict[str, dict[str, int]]:
    """Turn `template.generation.tokens` and the like into nested mappings."""
    found: dict[str, dict[str, int]] = {}
    for name, value in totals.items():
        if name.startswith(f"{prefix}."):
            middle, _, last = name[len(prefix) + 1 :].partition(".")
            found.setdefault(middle, {})[last] = value
    return found


def source_figures(totals: Mapping[str, int], epochs: float) -> dict[str, Any]:
    """Say what a source gave, of its totals (`tokens`, `documents`, `samples`, `rows`, `dropped.<reason>`).

    `epochs_got` is how often its samples were drawn, of those that the plan's part has.
    """
    dropped = {name.removeprefix("dropped."): n for name, n in totals.items() if name.startswith("dropped.")}
    beside = sum(dropped.get(reason, 0) for reason in ("held_out", "training", "excluded"))
    there = totals.get("rows", 0) - beside
    got = math.ceil(epochs) * (there - dropped.get("not_drawn", 0)) / there if there else 0.0
    return {
        "epochs": epochs,
        "epochs_got": round(got, 6),
        **{name: totals.get(name, 0) for name in ("tokens", "documents", "samples")},
        "dropped": dict(sorted(dropped.items())),
    }


def told_plan(description: Mapping[str, Any]) -> list[str]:
    """Return a plan's description as lines for people."""
    told = [f"{description['num_packs']:,} packs of {description['context']:,}", _told_fill(description)]
    if description.get("window_mix"):
        told.append(f"windows are {100 * description['window_mix']['mean']:.1f} % off the plan's mix")
    return [", ".join(told), *told_shares(description), *(f"look at this: {one}" for one in warnings_of(description))]


def _told_fill(description: Mapping[str, Any]) -> str:
    bound = description.get("supply_bound")
    return f"{100 * description['fill']:.2f} % full" + (f" (at most {100 * bound:.2f} %)" if bound else "")


def told_shares(description: Mapping[str, Any]) -> list[str]:
    """Return a line for every source: its tokens, its share of them, how often it is gone through."""
    whole = sum(one["tokens"] for one in description["sources"].values()) or 1
    lines = []
    for name, one in description["sources"].items():
        asked = f" (asked {100 * one['share_asked']:.1f} %)" if one.get("share_asked") is not None else ""
        line = (
            f"{name}: {one['tokens']:,} tokens, {100 * one['tokens'] / whole:.1f} %{asked}, {one['epochs']:.3g} epochs"
        )
        lost = {reason: n for reason, n in one.get("dropped", {}).items() if reason != "not_drawn"}
        told = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in lost.items())
        lines.append(line + (f"; left out: {told}" if told else ""))
    return lines


def warnings_of(description: Mapping[str, Any]) -> list[str]:
    """Name what somebody should look at before training: sources that are asked for and give nothing."""
    found = []
    for name, one in description["sources"].items():
        if one["epochs"] and not one["tokens"]:
            lost = ", ".join(f"{reason} {number:,}" for reason, number in one.get("dropped", {}).items())
            found.append(f"no document of {name} is in the plan ({lost or 'it has no sample'})")
    return found
