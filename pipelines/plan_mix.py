"""From shares of tokens to epochs: how often a plan goes through each source.

Epochs need no counting. Shares do (plan_measure.py), so what they came to is kept in `mix.json` in the plan's folder:
a resume and `status` read a file instead of indexes. It is a pure function of what the plan's folder is named by, and
is found again where it is missing or damaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.plan_exclusion import Exclusion
from tokenmill.pipelines.plan_windows import fixed_epochs
from tokenmill.settings_mix import SUM_OF_SHARES, SourceMix
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import Vocabulary

MIX_FILE = "mix.json"
_OFF = 0.01  # by which fixed epochs may miss what plan.tokens leaves them: counting is no better


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTokens:
    """What one pass over a source makes.

    Attributes:
        tokens: expected ids of its documents, markers included.
        samples: those that the plan's part has of it, estimated where not all files were read.
        files, read: index files it has, and how many were read.
        error: standard error of `tokens` as a share of it, from how files differ; 0 where all were read.
        reasons: why samples that were read make no document, with how many (weighted by template shares).
    """

    tokens: float
    samples: float
    files: int
    read: int
    error: float = 0.0
    reasons: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How often each source is gone through; of a mix with shares also the tokens wanted and what was counted."""

    epochs: Mapping[str, float]
    tokens: float | None = None
    measured: Mapping[str, SourceTokens] = field(default_factory=dict)


def find_mix(
    folder: StageDir,
    snapshots: Sequence[Snapshot],
    settings: PlanSettings,
    vocabulary: Vocabulary,
    exclusion: Exclusion,
    *,
    may_write: bool,
) -> Mix:
    """Say how often each source is gone through; raises RecipeError naming the source whose share cannot be met."""
    if not settings.has_shares:
        return Mix(epochs=fixed_epochs(snapshots, settings))
    known = _stored(folder)
    if known is not None:
        return known
    from tokenmill.pipelines.plan_measure import measured_sources  # brings numba, which most commands do without

    measured = dict(measured_sources(snapshots, settings, vocabulary, exclusion))
    mix = solve_mix(
        {s.folder.source: settings.of_source(s.folder.source) for s in snapshots}, measured, settings.tokens
    )
    if may_write:
        folder.describe()
        value = {"epochs": mix.epochs, "tokens": mix.tokens, "measured": {n: asdict(m) for n, m in measured.items()}}
        text = json.dumps(value | {"digest": digest_of(value)}, indent=1, sort_keys=True)
        folder.store.put(folder.at(MIX_FILE), (text + "\n").encode())
    return mix


def _stored(folder: StageDir) -> Mix | None:
    """Read what was found before; None where there is nothing, or nothing whole."""
    if not folder.store.exists(folder.at(MIX_FILE)):
        return None
    try:
        value: dict[str, Any] = json.loads(folder.store.read_bytes(folder.at(MIX_FILE)))
        if value.pop("digest") != digest_of(value):
            return None
        measured = {name: SourceTokens(**one) for name, one in value["measured"].items()}
        return Mix(epochs=value["epochs"], tokens=value["tokens"], measured=measured)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def solve_mix(asked: Mapping[str, SourceMix], measured: Mapping[str, SourceTokens], tokens: int | None) -> Mix:
    """Turn shares into epochs: share × all tokens ÷ tokens of one pass.

    All tokens are `tokens`; or what leaves sources by epochs exactly the rest of the shares; or, with shares alone, as
    many as the first source to reach its `max_epochs` allows.

    Raises:
        RecipeError: a source with a share has no document, or too few tokens for its share at `max_epochs`; sources by
            epochs are not what `tokens` leaves them.
    """
    shares = {name: one.share for name, one in asked.items() if one.share}
    fixed = {name: one.epochs for name, one in asked.items() if one.epochs}
    for name in shares:
        _check_has_tokens(name, measured[name])
    given = {name: epochs * measured[name].tokens for name, epochs in fixed.items()}
    if fixed and not sum(given.values()):
        raise RecipeError(
            f"plan.mix: shares are of a plan whose rest is {', '.join(fixed)}, which has no document; give shares that "
            "add up to 1"
        )
    whole = _whole(asked, shares, given, measured, tokens)
    epochs = {name: fixed.get(name, 0.0) for name in asked}
    for name, share in shares.items():
        wanted, most = share * whole / measured[name].tokens, _most(asked[name])
        if wanted > most * (1 + 1e-9):
            raise RecipeError(_too_little(name, share, whole, wanted, measured[name].tokens, most))
        epochs[name] = min(round(wanted, 9), most)
    return Mix(epochs=epochs, tokens=whole, measured=measured)


def _most(said: SourceMix) -> float:
    return 1.0 if said.max_epochs is None else said.max_epochs


def _whole(
    asked: Mapping[str, SourceMix],
    shares: Mapping[str, float],
    fixed: Mapping[str, float],
    measured: Mapping[str, SourceTokens],
    tokens: int | None,
) -> float:
    """Say how many tokens the plan has."""
    left, given = 1 - sum(shares.values()), sum(fixed.values())
    if not fixed or left <= SUM_OF_SHARES:
        return float(
            tokens or min(_most(asked[name]) * measured[name].tokens / share for name, share in shares.items())
        )
    if tokens is not None and abs(left * tokens - given) > _OFF * given:
        raise RecipeError(
            f"plan.tokens: of {tokens:,} the shares leave {left * tokens:,.0f} to {', '.join(fixed)}, whose epochs in "
            f"plan.mix make {given:,.0f}; leave plan.tokens out (it is {given / left:,.0f} then), or change the epochs"
        )
    return given / left


def _check_has_tokens(name: str, found: SourceTokens) -> None:
    if not found.tokens:
        lost = ", ".join(f"{reason} {number:,.0f}" for reason, number in found.reasons.items())
        why = f"none of its {found.samples:,.0f} samples makes a document ({lost})" if found.samples else "it is empty"
        raise RecipeError(
            f"plan.mix.{name}.share: {why}; see plan.context, plan.templates, plan.held_out, or take the source out"
        )


def _too_little(name: str, share: float, whole: float, wanted: float, has: float, most: float) -> str:
    return (
        f"plan.mix.{name}: share {share:g} of {whole:,.0f} tokens is {share * whole:,.0f}, that is {wanted:.3g} epochs "
        f"of the {has:,.0f} it has, and max_epochs is {most:g}; raise max_epochs, lower the share, or let the plan "
        f"have {most * has / share:,.0f} tokens (plan.tokens, or fewer epochs of other sources)"
    )
