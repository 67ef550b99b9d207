"""The stages in their order: ingest → split → score → takedown → compare → duplicates → select → caption → …

Every stage is described from the snapshots before it, so `status`, a resume and a fresh run walk the same code; what
differs is only whether missing units may be worked on. A stage runs for all sources at once, on one pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from tokenmill.manifests.plans import Plan
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.takedowns import Takedowns, read_takedowns
from tokenmill.pipelines import recipe_sections as sections
from tokenmill.pipelines.captioning import caption_works, choose_works
from tokenmill.pipelines.checked_recipe import MODALITIES, CheckedRecipe
from tokenmill.pipelines.compare import compare_work
from tokenmill.pipelines.compare_engines import engines_of
from tokenmill.pipelines.compare_settings import scorers_compared
from tokenmill.pipelines.contamination import decontaminate_work, with_contaminated
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.duplicates import duplicates_folder, duplicates_work
from tokenmill.pipelines.evaluation_sets import EvaluationSet, read_sets
from tokenmill.pipelines.execution_threads import query_threads
from tokenmill.pipelines.foreign_tokens import finished_tokens, index_work
from tokenmill.pipelines.ingest import ingest_work
from tokenmill.pipelines.jobs import StageWork
from tokenmill.pipelines.plan_phases import plan_phases
from tokenmill.pipelines.pools import is_worth_a_pool
from tokenmill.pipelines.runner import run_stage
from tokenmill.pipelines.samples import SampleSlice, slices
from tokenmill.pipelines.score import score_works
from tokenmill.pipelines.scored import Scored, scored_slices
from tokenmill.pipelines.selected import Selected, selected_slices
from tokenmill.pipelines.selection import select_work
from tokenmill.pipelines.split import split_work
from tokenmill.pipelines.takedown_stage import takedown_work, with_takedowns
from tokenmill.pipelines.tokens import tokenize_work
from tokenmill.settings_caption import CaptionSettings
from tokenmill.settings_tokens import TokenShards

K = TypeVar("K")
STAGES = (
    "ingest", "split", "score", "takedown", "decontaminate", "compare", "duplicates", "select", "caption", "choose",
    "tokenize", "plan",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """Which stages may work, and how.

    Attributes:
        work: names of the stages that may compute; the others only read what is there.
        limit: only the first so many units of every source.
    """

    work: frozenset[str] = frozenset(STAGES)
    limit: int | None = None
    retry_failed: bool = False
    quiet: bool = False


@dataclass(kw_only=True)
class Chain(CheckedRecipe):
    """A recipe's stages, each computed once when first asked for; holds nothing but snapshots.

    Sources that are tokenized already stand apart (`tokens`): they come in at the stage tokenize.
    """

    options: ChainOptions = field(default_factory=ChainOptions)
    tokens: Mapping[str, TokenShards] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sections.token_shards(self.recipe)
        raw = {name: section for name, section in self.recipe.sources.items() if name not in self.tokens}
        self.recipe = self.recipe.model_copy(update={"sources": raw})

    @cached_property
    def store(self) -> Store:
        return open_store(self.recipe.root, self.recipe.storage)

    @cached_property
    def limits(self) -> DecodeLimits:
        return sections.decode_limits(self.recipe.execution)

    @cached_property
    def ingest(self) -> dict[str, Snapshot]:
        works = {name: self._ingest_work(name) for name in self.recipe.sources}
        return self._single("ingest", works)

    @cached_property
    def split(self) -> dict[str, Snapshot]:
        """Clips of the video sources; every clip is a row."""
        works = {name: self._split_work(name) for name in self.sources_of("video")}
        return self._single("split", works)

    def _split_work(self, name: str) -> StageWork:
        settings = sections.split_settings(self._filter("video").scenes)
        return split_work(self.store, self.ingest[name], self._settings(name), settings, self.limits)

    @cached_property
    def pieces(self) -> dict[str, list[SampleSlice]]:
        """The slices of every source that the later stages work on."""
        run = self.recipe.execution
        samples = {**self.ingest, **self.split}
        return {
            name: slices(samples[name], self._settings(name), max_rows=run.unit_rows, max_bytes=run.unit_bytes)
            for name in self.recipe.sources
        }

    @cached_property
    def score(self) -> dict[str, tuple[Snapshot, ...]]:
        works = {}
        for name in (name for name in self.recipe.sources if self.pieces[name]):
            scoring, parents = self.passes[self.modality[name]], self.parents(name, self.ingest, self.split)
            for kind, work in score_works(self.store, scoring, self.pieces[name], self.limits, parents).items():
                works[name, kind] = work
        found = self._run("score", works)
        return {
            n: tuple(one for key, some in found.items() if key[0] == n for one in some) for n in self.recipe.sources
        }

    @cached_property
    def scored(self) -> dict[str, list[Scored]]:
        found = {}
        for name, modality in self.modality.items():
            offers = {n: frozenset(scorer.columns) for n, scorer in self.passes[modality].scorers.items()}
            found[name] = scored_slices(self.pieces[name], self.score[name], self.score_only(modality), offers)
        return found

    @cached_property
    def takedowns(self) -> Takedowns | None:
        """The union of the takedown lists under the root."""
        return read_takedowns(self.store)

    @cached_property
    def takedown(self) -> dict[str, Snapshot]:
        """What is taken down of every source; empty where there is no list."""
        if self.takedowns is None:
            return {}
        works = {n: takedown_work(self.store, n, s, self.takedowns) for n, s in self.scored.items() if s}
        return self._single("takedown", works, inline=True)

    @cached_property
    def judged(self) -> dict[str, list[Scored]]:
        """The scored slices, with what is taken down of them and what is a copy of evaluation samples."""
        return {
            name: with_contaminated(with_takedowns(scored, self.takedown.get(name)), self.decontaminate.get(name))
            for name, scored in self.scored.items()
        }

    @cached_property
    def evaluation_sets(self) -> dict[str, list[EvaluationSet]]:
        """Samples of which no copy may be trained on, by modality: indexed and scored, and never a source."""
        run = partial(self._run, "decontaminate")
        found = {}
        for modality in MODALITIES:
            asked = self._filter(modality).decontaminate
            if asked and self.sources_of(modality):
                how, scoring = self.recipe.execution, self.passes[modality]
                found[modality] = read_sets(self.store, modality, asked, scoring, self.limits, how, run)
        return found

    @cached_property
    def decontaminate(self) -> dict[str, Snapshot]:
        """Copies of evaluation samples in every source; empty where no set is named."""
        works = {
            name: decontaminate_work(
                self.store, name, self.scored[name], sets, self.passes[modality], self.limits
            )
            for modality, sets in self.evaluation_sets.items()
            for name in self.sources_of(modality)
            if self.scored[name]
        }  # fmt: skip
        return self._single("decontaminate", works)

    @cached_property
    def compare(self) -> dict[str, Snapshot]:
        """Who is a copy of whom, by modality: decided over all sources of it at once."""
        works = {
            modality: compare_work(
                self.store, modality, self._judged_of(modality), self._rules_in(modality), settings,
                duplicates_folder(self.store, modality, settings),
                engines_of(self.recipe.execution, "compare", self._num_rows(modality)),
            )
            for modality, settings in self.duplicate_settings.items()
            if self._judged_of(modality)
        }  # fmt: skip
        # The decision is taken in this process; what it maps over parts runs on the stage's pool.
        return self._single("compare", works, inline=True)

    @cached_property
    def duplicates(self) -> dict[str, Snapshot]:
        """The verdicts of `compare`, slice by slice."""
        works = {
            modality: duplicates_work(
                duplicates_folder(self.store, modality, self.duplicate_settings[modality]),
                self._judged_of(modality), self._rules_in(modality), compared,
            )
            for modality, compared in self.compare.items()
        }  # fmt: skip
        num_rows = sum(self._num_rows(modality) for modality in works)
        here = not is_worth_a_pool(self.recipe.execution, "duplicates", num_rows)
        return self._single("duplicates", works, inline=here, threads=query_threads(self.store))

    def _num_rows(self, modality: str) -> int:
        return sum(part.piece.num_rows for name in self.sources_of(modality) for part in self.judged[name])

    def _judged_of(self, modality: str) -> list[Scored]:
        """Return the slices of a modality as a comparison sees them: a scorer it does not read decides nothing anew."""
        settings, scorers = self.duplicate_settings[modality], self.passes[modality].scorers
        seen = scorers_compared(settings, self._rules_in(modality), scorers)
        return [part.seen_by(seen) for name in self.sources_of(modality) for part in self.judged[name]]

    @cached_property
    def select(self) -> dict[str, Snapshot]:
        works = {}
        for modality in MODALITIES:
            first = 0
            for name in self.sources_of(modality):
                parents = self.parents(name, self.ingest, self.split)
                seen = self.looked_at(modality)
                parents |= {
                    f"score/{scorer}": s.digest
                    for s in self.score[name]
                    if (scorer := s.folder.config.settings["scorer"]) in seen
                }
                scored = [part.only(seen) for part in self.judged[name]]
                works[name] = select_work(
                    self.store, name, scored, self.duplicates.get(modality), first,
                    self.rules_of[name], self._filter(modality).carry, parents,
                )  # fmt: skip
                first += len(self.scored[name])
        # A query over small tables: a pool would take longer to start than the work takes.
        return self._single("select", works, inline=True, threads=query_threads(self.store))

    @cached_property
    def selected(self) -> dict[str, list[Selected]]:
        return {name: selected_slices(self.pieces[name], self.select[name]) for name in self.recipe.sources}

    def captions_of(self, modality: str) -> CaptionSettings:
        """Return how a modality is captioned; what the recipe does not say is the source's own caption."""
        return self.recipe.caption.get(modality) or CaptionSettings()  # type: ignore[call-overload]

    @cached_property
    def caption(self) -> dict[tuple[str, str], Snapshot]:
        """The answers of every column, by source and column: free ones in this process, the others on a pool."""
        works = caption_works(self)
        free = {path: work for path, work in works.values() if not work.revisits}
        asked = {path: work for path, work in works.values() if work.revisits}
        found = self._single("caption", free, inline=True)
        found |= self._single("caption", asked) if asked else {}
        return {column: found[path] for column, (path, _) in works.items()}

    @cached_property
    def choose(self) -> dict[str, Snapshot]:
        """The captions that are used, by source."""
        works = choose_works(self, self.caption)
        return self._single("choose", works, inline=True, threads=query_threads(self.store))

    @cached_property
    def tokenize(self) -> dict[str, Snapshot]:
        works, cpus = {}, sections.cpus_of_worker(self.recipe.execution, "tokenize")
        for name in self.recipe.sources:
            if self.selected[name]:
                parents = self.parents(name, self.ingest, self.split, self.select, self.choose)
                works[name] = tokenize_work(
                    self.store, sections.token_settings(self.recipe, name, self.modality[name]),
                    self._fingerprints[self.modality[name]], self.selected[name], self.choose.get(name),
                    self.limits, parents, cpus=cpus,
                )  # fmt: skip
        finished = {name: finished_tokens(self.store, name, shards) for name, shards in self.tokens.items()}
        works |= {name: self._index_work(name) for name, found in finished.items() if found is None}
        there = {name: found for name, found in finished.items() if found is not None}
        return self._single("tokenize", works, cores=cpus) | there

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plan of every phase, planned together."""
        return self._planned(list(self.recipe.plan.resolved()))

    @cached_property
    def plan(self) -> Plan:
        """The plan that is trained on, last if there are several."""
        return self.plan_of(self.recipe.train.last.phase)

    def plan_of(self, phase: str) -> Plan:
        """Return the plan of one phase; where nothing may be planned, those of others need not be there."""
        return (self.plans if "plan" in self.options.work else self._planned([phase]))[phase]

    def _planned(self, phases: Sequence[str]) -> dict[str, Plan]:
        return plan_phases(self.store, list(self.tokenize.values()), self.recipe, phases, self._run_options("plan"))

    def snapshots(self, stage: str) -> list[Snapshot]:
        """Return a stage's snapshots, bringing it up to date if it may work."""
        found: Mapping[str, Snapshot | tuple[Snapshot, ...]] = getattr(self, stage)
        if stage == "decontaminate":  # what was made of the sets belongs to it
            found = {**found, **{s.source: s.snapshots for sets in self.evaluation_sets.values() for s in sets}}
        return [one for value in found.values() for one in (value if isinstance(value, tuple) else (value,))]

    def _ingest_work(self, name: str) -> StageWork:
        work = ingest_work(self.store, name, self._settings(name), unit_bytes=self.recipe.execution.unit_bytes)
        return replace(work, units=work.units[: self.options.limit])

    def _index_work(self, name: str) -> StageWork:
        """Say how shards of others are indexed."""
        section = self.recipe.tokenize
        work = index_work(self.store, name, self.tokens[name], section.vocabulary, section.vision.model_dump())
        return replace(work, units=work.units[: self.options.limit])

    def parents(self, name: str, *stages: Mapping[str, Snapshot]) -> dict[str, str]:
        """Return the digests of some stages' snapshots of a source, by stage."""
        found = [stage[name] for stage in stages if name in stage]
        return {snapshot.folder.config.stage: snapshot.digest for snapshot in found}

    def _single(self, stage: str, works: Mapping[K, StageWork], **how: Any) -> dict[K, Snapshot]:
        return {name: snapshots[0] for name, snapshots in self._run(stage, works, **how).items()}

    def _run(
        self, stage: str, works: Mapping[K, StageWork], *, inline: bool = False, threads: int = 1, cores: int = 1
    ) -> dict[K, tuple[Snapshot, ...]]:
        options = replace(self._run_options(stage), cores=cores)
        if inline:
            options = replace(options, pool=None, threads=threads)
        found = run_stage(stage, list(works.values()), options)
        return dict(zip(works, found, strict=True))

    def _run_options(self, stage: str) -> RunOptions:
        return sections.run_options(
            self.recipe.execution,
            stage,
            retry_failed=self.options.retry_failed and stage in self.options.work,  # what is only read is complete
            allow_work=stage in self.options.work,
            quiet=self.options.quiet,
        )

    @cached_property
    def _fingerprints(self) -> dict[str, dict[str, str]]:
        return sections.token_fingerprints(self.recipe.tokenize)
