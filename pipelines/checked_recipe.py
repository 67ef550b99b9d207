"""What a recipe says of sources, scorers, rules and copies, checked against each other before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tokenmill.errors import RecipeError
from tokenmill.filters.rules import Rules
from tokenmill.pipelines import recipe_sections as sections
from tokenmill.pipelines.compare import DuplicateSettings
from tokenmill.pipelines.compare_settings import duplicate_settings
from tokenmill.pipelines.scoring_pass import ScoringPass, scoring_pass
from tokenmill.pipelines.sources.source import open_source
from tokenmill.recipe import FilterSettings, Recipe, RuleSettings

MODALITIES = ("image", "video", "text", "document")


@dataclass(kw_only=True)
class CheckedRecipe:
    """A recipe by modality and by source; each part is checked when first asked for. Raises RecipeError."""

    recipe: Recipe

    @cached_property
    def modality(self) -> dict[str, str]:
        """Map every source to its modality."""
        return {name: open_source(name, self._settings(name)).modality for name in self.recipe.sources}

    def sources_of(self, modality: str) -> list[str]:
        """Name a modality's sources in alphabetical order: what is decided over all must not hang on the recipe's."""
        return sorted(name for name, found in self.modality.items() if found == modality)

    @cached_property
    def passes(self) -> dict[str, ScoringPass]:
        """The scorers of every modality, built (without their models) and checked."""
        found = {}
        for modality in MODALITIES:
            scorers = self._filter(modality).scorers
            specs = [sections.scorer_spec(name, scorer) for name, scorer in sorted(scorers.items())]
            found[modality] = scoring_pass(modality, specs, sections.sampling(self._filter(modality).frames))
            pool = self.recipe.execution.pools.get("score")
            if pool is not None and pool.decode is not None:
                found[modality].check_halves()
        return found

    @cached_property
    def rules(self) -> dict[str, Rules]:
        """The rules of every modality, checked; what a source changes of them is in `rules_of`."""
        found = {}
        for modality in MODALITIES:
            columns = self.passes[modality].columns
            where = f"filter.{modality}"
            found[modality] = self.parse_rules(modality, self._filter(modality).rules, f"{where}.rules")
            for name in self._filter(modality).carry:
                if name not in columns:
                    raise RecipeError(f"{where}.carry: no score {name!r}; allowed: {', '.join(sorted(columns))}")
        return found

    @cached_property
    def rules_of(self) -> dict[str, Rules]:
        """The rules of every source: its modality's, and what `filter.<modality>.sources` says of it."""
        found = {name: self.rules[modality] for name, modality in self.modality.items()}
        for modality in MODALITIES:
            for name, changes in self._filter(modality).sources.items():
                where = f"filter.{modality}.sources.{name}"
                if self.modality.get(name) != modality:
                    allowed = ", ".join(self.sources_of(modality)) or "none"
                    raise RecipeError(f"{where}: no {modality} source of that name; allowed: {allowed}")
                merged = {**self._filter(modality).rules, **changes.rules}
                rules = {rule: one for rule, one in merged.items() if one is not None}
                found[name] = self.parse_rules(modality, rules, f"{where}.rules")
        return found

    def parse_rules(self, modality: str, rules: Mapping[str, RuleSettings], where: str) -> Rules:
        """Check rules against the scores of a modality; raises RecipeError that starts with `where`."""
        scoring = self.passes[modality]
        closed = {
            column: f"its scorer {name} is score_only (filter.{modality}.scorers.{name}.score_only)"
            for name in self.score_only(modality)
            for column in scoring.scorers[name].columns
        }
        rescues = {name: rule.rescue for name, rule in rules.items() if rule.rescue is not None}
        keeps = {name: rule.keep for name, rule in rules.items()}
        return Rules.parse(keeps, scoring.columns, where, rescues=rescues, closed=closed)

    def score_only(self, modality: str) -> frozenset[str]:
        """Name the scorers that no rule may look at."""
        return frozenset(name for name, one in self._filter(modality).scorers.items() if one.score_only)

    def looked_at(self, modality: str) -> frozenset[str]:
        """Name the scorers a selection looks at: a new one that is `score_only` and not carried touches none."""
        carry = set(self._filter(modality).carry)
        scorers = self.passes[modality].scorers
        closed = self.score_only(modality)
        return frozenset(n for n, scorer in scorers.items() if n not in closed or carry.intersection(scorer.columns))

    @cached_property
    def duplicate_settings(self) -> dict[str, DuplicateSettings]:
        """What counts as a copy and who survives, of the modalities that ask for it; checked."""
        asked = {
            modality: duplicate_settings(modality, self._filter(modality).duplicates, self.passes[modality].columns)
            for modality in MODALITIES
        }
        return {name: one for name, one in asked.items() if one is not None and self.sources_of(name)}

    def _rules_in(self, modality: str) -> dict[str, Rules]:
        return {name: self.rules_of[name] for name in self.sources_of(modality)}

    def _settings(self, name: str) -> dict[str, object]:
        """Return a source's section, its path made absolute: a worker may run in another folder."""
        return sections.absolute(self.recipe.sources[name].model_dump())

    def _filter(self, modality: str) -> FilterSettings:
        return self.recipe.filter.get(modality) or FilterSettings()  # type: ignore[call-overload]
