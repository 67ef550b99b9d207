"""What can be wrong with a recipe beyond its keys: checked as a whole, before anything starts.

Builds what is cheap to build (sources, scorers without their models, rules, captioners, the vocabulary) and compares
sections with each other. Neither Ray nor torch is imported, so a wrong recipe costs about a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tokenmill.errors import RecipeError
from tokenmill.filters.scorer import reads_caption
from tokenmill.pipelines.caption_checks import check_captions
from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.checked_recipe import MODALITIES
from tokenmill.pipelines.evaluation_sets import check_sets
from tokenmill.pipelines.plan_exclusion import check_exclude_files
from tokenmill.pipelines.recipe_sections import personal_mask
from tokenmill.recipe import Recipe
from tokenmill.settings_mix import DEFAULT_TEMPLATES, PAIRS
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.templates import TEMPLATES
from tokenmill.tokenize.vision import vision_codebook_size
from tokenmill.tokenize.vocabulary import build_vocabulary


def check_chain(chain: Chain) -> None:
    """Check a recipe as a whole; raises RecipeError naming the key path, what was found and what is allowed."""
    recipe = chain.recipe
    _ = chain.modality, chain.passes, chain.rules_of, chain.duplicate_settings
    personal_mask(recipe.tokenize)
    for modality in MODALITIES:
        settings = recipe.filter.get(modality)  # type: ignore[call-overload]
        asked = settings.decontaminate if settings else ()
        check_sets(modality, asked, chain.passes[modality].columns, recipe.sources)
    _check_kinds(chain)
    check_captions(chain)
    _within("tokenize.vocabulary", partial(build_vocabulary, recipe.tokenize.vocabulary))
    _within("tokenize.vision", partial(_check_codes, chain))
    _check_areas(recipe)
    _check_clips(chain)
    _check_mix(recipe, [*recipe.sources, *chain.tokens])
    _check_training(recipe)


def _check_kinds(chain: Chain) -> None:
    """Refuse what would only fail in the workers: a misplaced scorer, films inside tars, unknown templates."""
    for modality, scoring in chain.passes.items():
        takes = {"video": ("image", "video"), "document": ("image", "text", "document")}.get(modality, (modality,))
        for name, scorer in scoring.scorers.items():
            if modality == "document" and reads_caption(scorer):
                raise RecipeError(f"filter.document.scorers.{name}: reads captions, and a document has texts instead")
            if scorer.takes not in takes:
                raise RecipeError(f"filter.{modality}.scorers.{name}: takes {scorer.takes}, not {' or '.join(takes)}")
    for modality, section in chain.recipe.filter.items():
        if modality != "video" and "frames" in section.model_fields_set:
            raise RecipeError(f"filter.{modality}.frames: a sample of {modality} has none; only under filter.video")
    for name, settings in chain.recipe.sources.items():
        if settings.kind == "webdataset" and chain.modality[name] == "video":
            raise RecipeError(f"sources.{name}.modality: video inside tars is not supported yet; use kind videos")
    for where, phase in _phases(chain.recipe):
        _check_templates(where, phase)


def _phases(recipe: Recipe) -> list[tuple[str, PlanSettings]]:
    """Return the plans of a recipe, each with the key path that its own keys stand under."""
    if not recipe.plan.phases:
        return [("plan", recipe.plan)]
    return [(f"plan.phases.{name}", one) for name, one in recipe.plan.resolved().items()]


def _check_templates(where: str, phase: PlanSettings) -> None:
    known = (*DEFAULT_TEMPLATES, PAIRS)
    for modality in phase.templates:
        if modality not in known:
            raise RecipeError(f"{where}.templates: no modality {modality!r}; allowed: {', '.join(known)}")
    named = [(f"templates.{modality}", shares) for modality, shares in phase.templates.items()]
    named += [(f"mix.{name}.templates", phase.of_source(name).templates or {}) for name in phase.mix]
    for place, shares in named:
        for template in shares:
            if template not in TEMPLATES:
                allowed = ", ".join(sorted(TEMPLATES))
                raise RecipeError(f"{where}.{place}: no template {template!r}; allowed: {allowed}")


def _check_codes(chain: Chain) -> None:
    """Refuse a vocabulary with fewer codes than the vision tokenizer has, where its files tell."""
    if not any(modality != "text" for modality in chain.modality.values()):
        return
    section = chain.recipe.tokenize
    known, needed = build_vocabulary(section.vocabulary).codebook_size, vision_codebook_size(section.vision.name)
    if needed is not None and needed > known:
        raise RecipeError(
            f"{section.vision.name} has {needed} codes, the vocabulary {known}; "
            f"set tokenize.vocabulary.codebook_size to {needed}"
        )


def _check_areas(recipe: Recipe) -> None:
    for name, area in (
        ("image", recipe.tokenize.image), ("video", recipe.tokenize.video), ("document", recipe.tokenize.document)
    ):  # fmt: skip
        if area.min_area > area.max_area:
            raise RecipeError(f"tokenize.{name}: min_area {area.min_area} is above max_area {area.max_area}")


def _check_clips(chain: Chain) -> None:
    """Refuse clips that would be tokenized for more ids than a document of the recipe's plan may have."""
    video = chain.recipe.tokenize.video
    for where, plan in _phases(chain.recipe):
        taken = [name for name in chain.sources_of("video") if plan.of_source(name).is_taken]
        if not taken or plan.split_long_clips:
            continue
        if video.long == "runs":
            raise RecipeError(
                f"{where}.split_long_clips: is false, takes {taken[0]}, and tokenize.video.long: runs needs it true"
            )
        if "context" in plan.model_fields_set and video.max_ids > plan.context:
            raise RecipeError(
                f"tokenize.video.max_ids: {video.max_ids} is above {where}.context, {plan.context}, so longer clips of "
                f"{taken[0]} would be left out; lower it, or set {where}.split_long_clips"
            )


def _check_training(recipe: Recipe) -> None:
    phases = recipe.plan.resolved()
    told = f"the plan's is {recipe.plan.phase!r}" if not recipe.plan.phases else f"allowed: {', '.join(phases)}"
    for name, train in recipe.train.resolved().items():
        if train.phase not in phases:
            where = f"train.phases.{name}" if recipe.train.phases else "train"
            raise RecipeError(f"{where}.phase: is {train.phase!r}, but {told}")


def _check_mix(recipe: Recipe, sources: Sequence[str]) -> None:
    """Refuse a mix of other sources than the recipe's, and lists of samples that are not there."""
    for where, phase in _phases(recipe):
        for name in phase.mix:
            if name not in sources:
                raise RecipeError(f"{where}.mix: no source {name!r}; allowed: {', '.join(sources)}")
        unnamed = sorted(set(sources) - set(phase.mix))
        if phase.has_shares and unnamed:
            raise RecipeError(
                f"{where}.mix: has shares, so every source needs share or epochs; missing: {', '.join(unnamed)}"
            )
        check_exclude_files(phase, recipe.storage)


def _within(where: str, build: Callable[[], object]) -> None:
    """Build a part, and put its key path before what it complains of."""
    try:
        build()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
