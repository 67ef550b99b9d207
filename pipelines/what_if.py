"""`--what-if`: rules as they would be with another threshold or expression, beside those of the recipe.

Nothing is written: the changed rules exist in memory only, and the funnel is counted under both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.filters.rules import Rules
from tokenmill.pipelines.chain import Chain
from tokenmill.recipe import RuleSettings

_FORM = re.compile(r"(?:([A-Za-z0-9_-]+)/)?([A-Za-z0-9_.-]+)\s*([=:])\s*(\S.*)", re.DOTALL)
_NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])"
_THRESHOLD = re.compile(rf"(?<=[<>=])\s*({_NUMBER})|({_NUMBER})\s*(?=[<>=!])")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One `--what-if`: `[modality|source/]rule[.rescue]`, then `=number` or `: expression`."""

    text: str
    of: str
    rule: str
    value: str
    is_threshold: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a change did to one source's rule; `part` is `keep` or `rescue`."""

    source: str
    rule: str
    part: str
    before: str
    after: str


def parse_change(text: str) -> Change:
    """Read one `--what-if`; raises RecipeError that says what it may look like."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"--what-if {text!r}: is rule=number or 'rule: expression', as in aesthetic=5.0")
    of, rule, sign, value = found.groups()
    value = value.strip()
    if sign == "=" and re.fullmatch(_NUMBER, value) is None:
        raise RecipeError(f"--what-if {text!r}: {value!r} is no number; an expression is given as '{rule}: {value}'")
    return Change(text=text, of=of or "", rule=rule, value=value, is_threshold=sign == "=")


def changed_rules(chain: Chain, texts: Sequence[str]) -> tuple[dict[str, Rules], list[Changed]]:
    """Return every source's rules after all changes, and what was changed.

    Raises:
        RecipeError: a rule, source or column is unknown, or a rule has not exactly one threshold.
    """
    settings = {name: _settings(rules) for name, rules in chain.rules_of.items()}
    told: list[Changed] = []
    for change in map(parse_change, texts):
        told += [_apply(settings[source], source, change) for source in _sources(chain, settings, change)]
    rules = dict(chain.rules_of)
    for name in {one.source for one in told}:
        rules[name] = chain.parse_rules(chain.modality[name], _rules(settings[name]), "--what-if")
    return rules, told


def _settings(rules: Rules) -> dict[str, dict[str, str]]:
    return {
        name: {"keep": keep, **({"rescue": rules.rescues[name]} if name in rules.rescues else {})}
        for name, keep in rules.keeps.items()
    }


def _rules(settings: Mapping[str, Mapping[str, str]]) -> dict[str, RuleSettings]:
    return {name: RuleSettings(**rule) for name, rule in settings.items()}


def _sources(chain: Chain, settings: Mapping[str, Mapping[str, Any]], change: Change) -> list[str]:
    """Name the sources a change speaks of: those whose rules have it, of one modality."""
    allowed = {*chain.modality, *chain.modality.values()}
    if change.of and change.of not in allowed:
        raise RecipeError(f"--what-if {change.text!r}: no source {change.of!r}; allowed: {', '.join(sorted(allowed))}")
    candidates = [n for n, modality in chain.modality.items() if change.of in ("", n, modality)]
    found = [name for name in candidates if _place(settings[name], change.rule) is not None]
    if not found:
        names = sorted({rule for name in candidates for rule in settings[name]})
        near = difflib.get_close_matches(change.rule, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        rules = ", ".join(names) or "none"
        raise RecipeError(f"--what-if {change.text!r}: no rule {change.rule!r}{hint}; rules: {rules}")
    modalities = sorted({chain.modality[name] for name in found})
    if len(modalities) > 1:
        which = ", ".join(f"{modality}/{change.rule}" for modality in modalities)
        raise RecipeError(f"--what-if {change.text!r}: {' and '.join(modalities)} have such a rule; say {which}")
    return found


def _place(rules: Mapping[str, Any], name: str) -> tuple[str, str] | None:
    """Return the rule and the part of it that a name means."""
    if name in rules:
        return name, "keep"
    rule = name.removesuffix(".rescue")
    return (rule, "rescue") if rule != name and rule in rules else None


def _apply(rules: dict[str, dict[str, str]], source: str, change: Change) -> Changed:
    place = _place(rules, change.rule)
    assert place is not None
    rule, part = place
    before = rules[rule].get(part, "")
    after = _with_threshold(before, change) if change.is_threshold else change.value
    rules[rule][part] = after
    return Changed(source=source, rule=rule, part=part, before=before, after=after)


def _with_threshold(expression: str, change: Change) -> str:
    """Put a number in the place of the only one that the expression compares with."""
    hidden = _QUOTED.sub(lambda found: "_" * len(found.group()), expression)
    found = list(_THRESHOLD.finditer(hidden))
    if len(found) != 1:
        told = f"{expression!r} compares with {len(found) or 'no'} numbers" if expression else "there is no rescue"
        raise RecipeError(f"--what-if {change.text!r}: {told}; give all of it: '{change.rule}: …'")
    group = 1 if found[0].group(1) is not None else 2
    start, end = found[0].span(group)
    return expression[:start] + change.value + expression[end:]
