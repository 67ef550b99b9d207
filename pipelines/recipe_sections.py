"""What a stage gets of a recipe: its sections as the settings the stages know. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tokenmill.errors import RecipeError
from tokenmill.filters.clip import Sampling
from tokenmill.filters.personal_data import known_regions
from tokenmill.filters.personal_mask import PersonalMask
from tokenmill.filters.scene_settings import scene_settings
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.execution_threads import available_cpus
from tokenmill.pipelines.pools import stage_pool
from tokenmill.pipelines.scoring_pass import ScorerSpec
from tokenmill.pipelines.split import SplitSettings
from tokenmill.pipelines.tokens_clip import ClipPolicy
from tokenmill.pipelines.tokens_page import PagePolicy
from tokenmill.pipelines.tokens_settings import TokenSettings, fingerprint_of_vision
from tokenmill.recipe import ClipFrames, Execution, Recipe, ScorerSettings
from tokenmill.settings_scenes import Scenes
from tokenmill.settings_tokenize import ClipSettings, DocumentSettings, TokenizeSettings
from tokenmill.settings_tokens import TokenShards
from tokenmill.tokenize.vocabulary import build_vocabulary


def absolute(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a source's section, its path made absolute: a worker may run in another folder."""
    settings = dict(source)
    if "://" not in settings["url"]:
        settings["url"] = str(Path(settings["url"]).expanduser().absolute())
    return settings


def token_shards(recipe: Recipe) -> dict[str, TokenShards]:
    """Return the sources that are tokenized already; raises RecipeError for a section that is none."""
    sections = {name: section.model_dump() for name, section in recipe.sources.items() if section.kind == "tokens"}
    return {name: parse_token_shards(name, absolute(section)) for name, section in sections.items()}


def parse_token_shards(source: str, section: Mapping[str, Any]) -> TokenShards:
    """Read the section of a source of kind `tokens`; raises RecipeError naming the key."""
    try:
        return TokenShards.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        allowed = f"; allowed: {', '.join(TokenShards.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise RecipeError(f"sources.{source}.{place}: {first['msg']} (found {first['input']!r}{allowed})") from error


def decode_limits(run: Execution) -> DecodeLimits:
    """Return what a sample may cost."""
    return DecodeLimits(
        max_pixels=run.max_pixels,
        clip_timeout_s=run.clip_timeout_s,
        clip_timeout_per_second_s=run.clip_timeout_per_second_s,
        video_memory_bytes=run.video_memory_bytes,
        video_hwaccel=run.video_hwaccel,
        threads=run.decode_threads,
        failure_budget=run.failure_budget,
    )


def scorer_spec(name: str, section: ScorerSettings) -> ScorerSpec:
    """Return a scorer as a pass knows it."""
    return ScorerSpec(
        name=name, settings=section.options, when=section.when, frames=section.frames, reduce=section.reduce
    )  # fmt: skip


def sampling(section: ClipFrames) -> Sampling:
    """Return which frames of clips are looked at."""
    return Sampling(fps=section.fps, short_side_px=section.short_side_px)


def split_settings(section: Scenes) -> SplitSettings:
    """Return how films are cut into clips; raises RecipeError where TransNetV2 is asked for and is not there."""
    scenes = section.model_dump()
    return SplitSettings(
        short_side_px=scenes.pop("short_side_px"),
        range_seconds=scenes.pop("range_seconds"),
        unit_seconds=scenes.pop("unit_seconds"),
        scenes=scene_settings(scenes),
    )


def token_settings(recipe: Recipe, source: str, modality: str) -> TokenSettings:
    """Return how a source is tokenized."""
    tokens = recipe.tokenize
    area = {"video": tokens.video, "document": tokens.document}.get(modality, tokens.image)
    return TokenSettings(
        modality=modality,
        vocabulary=tokens.vocabulary,
        vision=tokens.vision.model_dump(),
        min_area=area.min_area,
        max_area=area.max_area,
        max_aspect=area.max_aspect,
        clip=clip_policy(tokens.video) if modality == "video" else None,
        page=page_policy(tokens.document) if modality == "document" else None,
        licence=recipe.sources[source].licence,
        mask=personal_mask(tokens),
    )


def clip_policy(section: ClipSettings) -> ClipPolicy:
    """Return what becomes of clips of different lengths."""
    return ClipPolicy(
        fps=section.fps,
        long=section.long,
        max_ids=section.max_ids,
        min_fps=section.min_fps,
        max_seconds=section.max_seconds,
    )


def page_policy(section: DocumentSettings) -> PagePolicy:
    """Return what becomes of the parts of a page or conversation."""
    return PagePolicy(
        leave_out=section.broken_pictures == "leave_out",
        max_pictures=section.max_pictures,
        between_texts=section.between_texts,
    )


def personal_mask(section: TokenizeSettings) -> PersonalMask | None:
    """Return what replaces personal data in texts, None where nothing does; raises RecipeError for unknown regions."""
    if not section.mask.kinds:
        return None
    try:
        return PersonalMask(kinds=section.mask.kinds, phone_regions=known_regions(section.mask.phone_regions))
    except ValueError as error:
        raise RecipeError(f"tokenize.mask.phone_regions: {error}") from error


def token_fingerprints(section: TokenizeSettings) -> dict[str, dict[str, str]]:
    """Return, by modality, the fingerprints that name a folder of tokens."""
    vocabulary = {"vocabulary": build_vocabulary(section.vocabulary).fingerprint}
    pixels = vocabulary | {"vision": fingerprint_of_vision(section.vision.model_dump())}
    return {"image": pixels, "video": pixels, "text": vocabulary, "document": pixels}


def cpus_of_worker(run: Execution, stage: str) -> int:
    """Return how many cores a worker of a stage may use: what its pool gives it or, in this process, all there are."""
    return max(1, int(stage_pool(run, stage).cpus)) if run.executor == "ray" else available_cpus()


def run_options(run: Execution, stage: str, *, retry_failed: bool, allow_work: bool, quiet: bool) -> RunOptions:
    """Return how a stage is run; without Ray planning alone goes on all cores: it is compiled, and holds no lock."""
    in_threads = stage == "plan" and run.executor != "ray"
    return RunOptions(
        pool=stage_pool(run, stage) if run.executor == "ray" else None,
        threads=available_cpus() if in_threads else 1,
        cores=available_cpus() if in_threads else 1,
        tries=run.tries,
        retry_failed=retry_failed,
        allow_work=allow_work,
        quiet=quiet,
        unit_timeout_s=run.unit_timeout_s,
        start_timeout_s=run.start_timeout_s,
        drain_s=run.drain_s,
        metrics_port=run.metrics_port,
    )
