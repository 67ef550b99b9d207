"""The recipe: one YAML file that describes a whole run, validated before anything starts.

Nothing here imports Ray or torch, so a typing mistake costs under a second. An error names the file, the key path, what
was found and what is allowed. `key.path=value` on the command line overrides; a value is read as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from tokenmill.errors import RecipeError
from tokenmill.settings_caption import CaptionSettings
from tokenmill.settings_evaluation import check_evaluation
from tokenmill.settings_generate import DrawingJob, QuestionJob
from tokenmill.settings_scenes import Scenes
from tokenmill.settings_tokenize import TokenizeSettings
from tokenmill.settings_tokenizer import TokenizerTraining
from tokenmill.settings_train import PlanSettings, TrainSettings

Modality = Literal["image", "video", "text", "document"]
Pooled = Literal[
    "ingest", "split", "score", "decontaminate", "compare", "duplicates", "caption", "tokenize", "plan", "generate"
]
Positive = Annotated[int, Field(ge=1)]
_STARTS_WITH_KEY = re.compile(r"[a-z_]+(\.[A-Za-z0-9_-]+)*: ")
Size = Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, protected_namespaces=())


class Workers(Section):
    """Some equal processes and what each one reserves; what is absent comes from `execution` itself."""

    workers: Positive | None = None
    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0, description="0.25: four processes share a device")
    memory_gb: float | None = Field(default=None, gt=0, description="reserved, not enforced")


class StagePool(Workers):
    """The pool of one stage; with `decode` it is two: decoding on CPUs anywhere, the models where the devices are."""

    decode: Workers | None = Field(default=None, description="score only")


class Execution(Section):
    """How to run; of what is written only sizes of units, `max_pixels` and `video_hwaccel` change anything."""

    executor: Literal["ray", "inline"] = "ray"
    workers: Positive = Field(default=2, description="processes of a stage's pool")
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    pools: dict[Pooled, StagePool] = Field(default_factory=dict, description="stage → its pool, where it differs")
    address: str | None = Field(default=None, description="of a Ray cluster; absent = a small one on this machine")
    decode_threads: Positive = 2
    tries: Positive = Field(default=3, description="times a unit that dies is handed out in all")
    unit_timeout_s: float = Field(default=14_400.0, gt=0, description="after which a unit is handed out again")
    start_timeout_s: float = Field(default=600.0, gt=0, description="for the first worker of a pool to begin")
    drain_s: float = Field(default=25.0, ge=0, description="after SIGTERM, for units in flight to be committed")
    workspace: str | None = Field(
        default=None, description="a folder that all machines see, for more near copies than memory holds"
    )
    metrics_port: int | None = Field(default=None, ge=0, le=65_535, description="Prometheus, while a stage runs")
    failure_budget: Positive = Field(default=100, description="samples that may fail in a row before the run stops")
    unit_bytes: Positive = Field(default=2**30, description="raw bytes of a unit, at most")
    unit_rows: Positive = Field(default=20_000, description="samples of a unit, at most")
    max_pixels: Positive = Field(default=100_000_000, description="of a picture, checked before decoding")
    clip_timeout_s: float = Field(default=60.0, gt=0, description="for opening a clip and decoding from it")
    clip_timeout_per_second_s: float = Field(default=4.0, ge=0, description="more, for each second of film decoded")
    video_memory_bytes: int = Field(
        default=2**32, ge=0, description="by which a decoding process may grow; 0 = no limit"
    )
    video_hwaccel: str | None = Field(default=None, description="device that decodes, FFmpeg's name: cuda, qsv, …")

    @field_validator("pools")
    @classmethod
    def _only_scoring_has_halves(cls, value: dict[str, StagePool]) -> dict[str, StagePool]:
        for stage, pool in value.items():
            if pool.decode is not None and stage != "score":
                raise ValueError(f"{stage}.decode: only score runs as two pools; leave decode out")
        return value


class SourceSettings(BaseModel):
    """Raw data: where it lies and what kind it is. Further keys go to the kind, which checks them."""

    model_config = ConfigDict(defer_build=True, extra="allow", frozen=True)

    kind: str = Field(description="one of docs/sources.md, or a plug-in's name")
    url: str
    licence: str = ""


class ScorerSettings(BaseModel):
    """A scorer's own settings, and the gate that lets only some samples through to it."""

    model_config = ConfigDict(defer_build=True, extra="allow", frozen=True)

    when: str = ""
    score_only: bool = Field(default=False, description="scored, reported and carried; no rule may look at it")
    frames: int | Literal["all"] | None = Field(
        default=None, description="video: how many frames of a clip a scorer of pictures sees; absent: the middle one"
    )
    reduce: Literal["min", "max", "mean", "median"] | None = Field(
        default=None, description="video: what its numbers become, mean where absent"
    )

    @field_validator("frames", mode="before")
    @classmethod
    def _some_frames(cls, value: Any) -> Any:
        if value is None or value == "all" or (type(value) is int and 1 <= value <= 1000):
            return value
        raise ValueError("is a number of frames, 1 to 1000, or all")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Semantic(Section):
    """Copies by meaning: vectors with a large cosine."""

    min_cosine: float = Field(default=0.96, gt=0, le=1)
    column: str = "clip_embedding"


class NearTexts(Section):
    """Copies among texts: signatures that share much."""

    min_jaccard: float = Field(default=0.8, gt=0, le=1, description="of the sets of word sequences")
    column: str = "minhash"


class Duplicates(Section):
    """Copies over all sources of a modality."""

    exact: bool = True
    max_distance: int | None = Field(
        default=None, ge=0, le=16, description="bits between perceptual hashes; absent: not asked"
    )
    semantic: Semantic | None = None
    text: NearTexts | None = None
    prefer: tuple[str, ...] = Field(
        default=(), description="who survives: SQL expressions, each with DESC or ASC; absent: more pixels"
    )
    keep_earlier: bool = Field(default=True, description="what was kept before survives whatever comes later")


class Decontaminate(Section):
    """Evaluation samples of which no near copy may be trained on; further keys go to the kind of source."""

    model_config = ConfigDict(defer_build=True, extra="allow", frozen=True, protected_namespaces=())

    name: Name
    kind: str = Field(description="as of a source")
    url: str
    exact: bool = True
    max_distance: int | None = Field(default=None, ge=0, le=16, description="bits between perceptual hashes")
    min_cosine: float | None = Field(default=None, gt=0, le=1, description="between vectors of `cosine_column`")
    cosine_column: str = "clip_embedding"
    min_jaccard: float | None = Field(default=None, gt=0, le=1, description="between signatures of `jaccard_column`")
    jaccard_column: str = "minhash"
    ngram: int | None = Field(default=None, ge=2, le=64, description="texts: so many words in a row in common")

    @property
    def source(self) -> dict[str, Any]:
        """The section of a source."""
        return {"kind": self.kind, "url": self.url, **(self.model_extra or {})}


class ClipFrames(Section):
    """Which frames of a clip its scorers see: decoded once, for all of them."""

    fps: float = Field(default=2.0, gt=0, le=240, description="frames a second")
    short_side_px: int = Field(default=256, ge=16, description="frames are shrunk to this, never enlarged")


class RuleSettings(Section):
    """What kept samples fulfil, and what keeps a sample that does not; a plain text is a rule without rescue."""

    keep: str = Field(description="SQL expression")
    rescue: str | None = Field(default=None, description="SQL expression: keeps what fails the rule")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, dict | RuleSettings):
            return value
        if isinstance(value, str):
            return {"keep": value}
        raise ValueError("a rule is an SQL expression such as 'min_side_px >= 512', or keep and rescue")


class SourceFilter(Section):
    """Where one source differs from its modality."""

    rules: dict[str, RuleSettings | None] = Field(
        default_factory=dict, description="replaces rules of the same name, adds others at the end; null takes one out"
    )


class FilterSettings(Section):
    """How one modality is scored and selected."""

    scorers: dict[str, ScorerSettings] = Field(default_factory=dict)
    rules: dict[str, RuleSettings] = Field(default_factory=dict, description="name → what is kept, in order")
    sources: dict[Name, SourceFilter] = Field(default_factory=dict, description="source → where it differs")
    duplicates: Duplicates | None = None
    decontaminate: tuple[Decontaminate, ...] = Field(default=(), description="evaluation sets; none may be trained on")
    carry: tuple[str, ...] = Field(default=(), description="scores that are stored with the tokens")
    scenes: Scenes = Field(default_factory=Scenes, description="video only")
    frames: ClipFrames = Field(default_factory=ClipFrames, description="video only")

    @field_validator("decontaminate")
    @classmethod
    def _different_names(cls, value: tuple[Decontaminate, ...]) -> tuple[Decontaminate, ...]:
        names = [one.name for one in value]
        if len(set(names)) < len(names):
            raise ValueError(f"two sets have one name; found {', '.join(sorted(names))}")
        return value


class ClipPrompts(Section):
    """What to draw as clips."""

    prompts: tuple[str, ...] = Field(min_length=1)
    height: Positive = Field(default=512, description="pixels")
    width: Positive = Field(default=512, description="pixels")
    fps: float = Field(default=24.0, gt=0)
    seconds: float = Field(default=5.0, gt=0, description="rounded to whole latent frames")


class GenerateSettings(Section):
    """What to draw with the trained model."""

    prompts: tuple[str, ...] = ()
    height: Positive = Field(default=512, description="pixels")
    width: Positive = Field(default=512, description="pixels")
    sizes: tuple[Size, ...] = Field(default=(), description="HxW in pixels, each for every prompt; absent: the above")
    per_prompt: Positive = 1
    clips: ClipPrompts | None = None
    negative: str = Field(default="", description="what guidance leads away from")
    top_k: Positive = 2048
    top_p: float = Field(default=1.0, gt=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    guidance: float = Field(default=3.0, ge=0)
    seed: int = 0
    evaluate_documents: int = Field(default=200, ge=0, description="held-out documents for the evaluation")
    jobs: dict[Name, DrawingJob] = Field(
        default_factory=dict, description="tables of prompts (docs/generation_jobs.md)"
    )
    questions: dict[Name, QuestionJob] = Field(default_factory=dict, description="tables of questions about pictures")

    @field_validator("questions")
    @classmethod
    def _names_of_their_own(cls, value: dict[str, QuestionJob], info: ValidationInfo) -> dict[str, QuestionJob]:
        both = sorted(value.keys() & info.data.get("jobs", {}).keys())
        if both:
            raise ValueError(f"{both[0]} is the name of a job, too; take another")
        return value


class Recipe(Section):
    """A whole run."""

    root: str
    storage: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="how to reach `root`; never shown (docs/storage.md)"
    )
    execution: Execution = Field(default_factory=Execution)
    sources: dict[Name, SourceSettings] = Field(min_length=1)
    filter: dict[Modality, FilterSettings] = Field(default_factory=dict)
    caption: dict[Modality, CaptionSettings] = Field(default_factory=dict)
    tokenize: TokenizeSettings = Field(default_factory=TokenizeSettings)
    plan: PlanSettings = Field(default_factory=PlanSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    tokenizer: TokenizerTraining | None = Field(default=None, description="what train-tokenizer trains")
    generate: GenerateSettings = Field(default_factory=GenerateSettings)

    @model_validator(mode="after")
    def _runs_are_planned(self) -> Recipe:
        split = [phase.split_long_clips for phase in self.plan.resolved().values()]
        if self.tokenize.video.long == "runs" and not any(split):
            raise ValueError("tokenize.video.long: runs are made by the plan; set plan.split_long_clips to true")
        return self

    @model_validator(mode="after")
    def _evaluated_on_what_is_held_out(self) -> Recipe:
        plans = self.plan.resolved()
        for settings in self.train.resolved().values():
            if settings.evaluation is not None:
                check_evaluation(settings.evaluation, plans, settings.phase)
        return self

    @field_validator("storage")
    @classmethod
    def _reachable(cls, value: dict[str, Any]) -> dict[str, Any]:
        from tokenmill.manifests.storage_options import parse_options

        try:
            parse_options(value)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return value


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; raises RecipeError that names the file and every wrong key."""
    return check_recipe(read_recipe(path, overrides), str(path))


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe and apply the overrides, without looking at its keys; raises RecipeError if it is no mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text in UTF-8 (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with root, sources, …; found {type(value).__name__}")
    for override in overrides:
        _override(value, override)
    return value


def check_recipe(value: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe given as a mapping; raises RecipeError naming `where` and every wrong key."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise RecipeError("; ".join(_described(item, where) for item in error.errors())) from error


def _described(item: Mapping[str, Any], where: str) -> str:
    path = ".".join(str(part) for part in item["loc"] if part != "[key]")
    if item["type"] == "extra_forbidden":
        return f"{where}: {path}: no such key{_allowed(item['loc'][:-1])}"
    if item["type"] == "missing":
        return f"{where}: {path}: is missing"
    if not path:  # of several sections: the whole recipe would be shown, credentials too
        return f"{where}: {item['msg'].removeprefix('Value error, ')}"
    if path.split(".")[0] == "storage" or "options" in path.split("."):  # may hold credentials: no value is shown
        return f"{where}: {path}: {item['msg'].removeprefix('Value error, storage.')}"
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):  # of several keys, which it names
        told = item["msg"].removeprefix("Value error, ")
        return f"{where}: {path}{'.' if _STARTS_WITH_KEY.match(told) else ': '}{told}"
    return f"{where}: {path}: {item['msg']}, found {item['input']!r}"


def _allowed(path: Sequence[Any]) -> str:
    """Name the keys a section takes, where the path leads to one."""
    section: Any = Recipe
    for part in path:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = next(_sections_in(field.annotation), section) if field is not None else section
    return f"; allowed: {', '.join(section.model_fields)}" if hasattr(section, "model_fields") else ""


def _sections_in(annotation: Any) -> Iterator[Any]:
    """Yield the sections that a type is made of."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections_in(inner)


def storage_options(given: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts as a storage section; raises RecipeError that names the key, never the value."""
    options: dict[str, Any] = {}
    for text in given:
        if "=" not in text:
            raise RecipeError("--storage: is given as KEY=VALUE")
        _override(options, text)
    return options


def _override(value: dict[str, Any], text: str) -> None:
    path, separator, given = text.partition("=")
    if not separator or not path:
        raise RecipeError(f"{text if not separator else path}: an override is key.path=value")
    *parents, last = path.split(".")
    place = value
    for part in parents:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise RecipeError(f"{path}: {part} is not a section")
    try:
        place[last] = yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: the value is not YAML") from (None if parents[:1] == ["storage"] else error)
