"""What a model is asked for a score, and what it makes of it: pictures of prompts, answers, clips that go on.

Ids are kept in a table a kind (`pictures`, `answers`, `clips`), as they were drawn; judges decode them, nothing is
encoded again. What is asked is a function of the size alone, the same for all models. How the sampler is set is chosen
by *validation* prompts, those that follow the reported ones in their lists. The trade-off: a table that is there is
complete, so a killed run draws at most one table again, a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.toyworld.exams import clip_exam, exam
from benchmarks.toyworld.judge_pixels import Pixels
from benchmarks.toyworld.judge_scores import score_pictures
from benchmarks.toyworld.motion import draw_motion, motion
from benchmarks.toyworld.prompts import prompts
from benchmarks.toyworld.scenes import HELDOUT_SEEDS, draw
from benchmarks.toyworld.sizes import Size
from benchmarks.toyworld.world import (
    FPS,
    FRAMES,
    MOTION_KINDS,
    PROMPT_KINDS,
    SIZE,
    Motion,
    Prompt,
    Question,
    QuestionKind,
)
from tokenmill.demo.world import Scene
from tokenmill.generate.extending import Clip, extend_clip
from tokenmill.generate.model import ExportedModel, load_model
from tokenmill.generate.pictures import decode_ids
from tokenmill.generate.prompts import question_prompt
from tokenmill.generate.sample import Drawing, draw_documents, generate_text
from tokenmill.generate.sampling import Sampling
from tokenmill.generate.threads import steady_threads
from tokenmill.pipelines.tokens_settings import open_vision
from tokenmill.tokenize.vision import VisionTokenizer

Ids = NDArray[np.int32]
Shown = Scene | Motion

CONTEXT, NEW = 4, 4  # latent frames of a clip that are there, and that are drawn
BATCH = 64
_UNSEEN_PROMPTS = ("counting", "colours", "position", "colour_attribution")
_OF_PICTURES: tuple[QuestionKind, ...] = ("yes_no", "counting", "colour", "relation")
_MAX_ANSWER = 8
_SET = ("guidance", "top_k", "temperature")  # what is chosen of a sampler
_OF_CLIPS = Sampling(temperature=0.0, guidance=1.0)  # physics has one outcome: the likeliest codes
_TRIED = [
    Sampling(guidance=guidance, top_k=top_k, temperature=temperature)
    for guidance in (1.0, 1.5, 2.0)
    for top_k, temperature in ((0, 1.0), (20, 0.7), (20, 0.5))
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model with the tokenizer that its codes are of."""

    model: ExportedModel
    vision: VisionTokenizer


def opened(export: Path, device: str = "cpu") -> Opened:
    """Open an exported model, and its vision tokenizer, which stays on the CPU: pictures are small."""
    model = load_model(export, device=device)
    return Opened(model=model, vision=open_vision(model.vision))


def picture_prompts(size: Size) -> list[Prompt]:
    """Return the prompts that are reported."""
    seen = [one for kind in PROMPT_KINDS for one in prompts(kind, size.prompts)]
    return seen + [
        one for kind in PROMPT_KINDS if kind in _UNSEEN_PROMPTS for one in prompts(kind, size.unseen, unseen=True)
    ]


def validation_prompts(size: Size) -> list[Prompt]:
    """Return prompts that settings are chosen by: those of each list behind the reported ones."""
    return [one for kind in PROMPT_KINDS for one in prompts(kind, size.prompts + size.tried)[size.prompts :]]


def asked_questions(size: Size) -> list[tuple[Shown, Question]]:
    """Return pictures and clips with a question each."""
    asked: list[tuple[Shown, Question]] = [one for kind in _OF_PICTURES for one in exam(kind, size.questions)]
    asked += [one for kind in _OF_PICTURES for one in exam(kind, size.unseen, unseen=True)]
    return [*asked, *clip_exam("motion", size.questions)]


def extended_motions(size: Size) -> list[Motion]:
    """Return held-out clips to go on with, of each kind equally many."""
    each = max(1, size.motions // len(MOTION_KINDS))
    return [motion(HELDOUT_SEEDS + 10_000 + number, kind=kind) for kind in MOTION_KINDS for number in range(each)]


def choose_sampler(export: Path, size: Size, device: str = "cpu") -> dict[str, Any]:
    """Draw validation prompts with each setting; returns the best one and the share that each got right."""
    both = opened(export, device)
    asked = validation_prompts(size)
    tried = []
    for sampling in _TRIED:
        pictures = [_pixels(ids, both)[0] for ids in drawn_pictures(both, asked, sampling, first_seed=10_000_000)]
        scores = [one for one in score_pictures(asked, pictures) if one.split == "all"]
        right = float(np.mean([one.right.value for one in scores]))
        setting = {key: getattr(sampling, key) for key in _SET}
        tried.append({**setting, "right": right, "by_kind": {one.kind: one.right.value for one in scores}})
    best = max(tried, key=lambda one: one["right"])
    return {**{key: best[key] for key in _SET}, "prompts": len(asked), "tried": tried}


def exhibit(export: Path, folder: Path, size: Size, sampler: Mapping[str, Any], device: str = "cpu") -> None:
    """Let a model make all that is judged; a table of ids each."""
    folder.mkdir(parents=True, exist_ok=True)
    both: Opened | None = None
    sampling = Sampling(**{key: sampler[key] for key in _SET})
    makers = {
        "pictures": lambda both: drawn_pictures(both, picture_prompts(size), sampling),
        "answers": lambda both: answered(both, asked_questions(size)),
        "clips": lambda both: extended(both, extended_motions(size)),
    }
    for name, make in makers.items():
        path = folder / f"{name}.parquet"
        if not path.exists():
            both = both or opened(export, device)
            _write(path, make(both))


def drawn_pictures(both: Opened, asked: Sequence[Prompt], sampling: Sampling, first_seed: int = 0) -> list[Ids]:
    """Draw one picture a prompt: whole documents."""
    side = SIZE // both.vision.spatial_factor
    drawings = [
        Drawing(prompt=one.text, height=side, width=side, seed=seed) for seed, one in enumerate(asked, first_seed)
    ]
    return draw_documents(both.model, drawings, sampling, batch_size=BATCH, num_codes=both.vision.codebook_size)


def answered(both: Opened, asked: Sequence[tuple[Shown, Question]]) -> list[Ids]:
    """Answer one question a picture or clip, with the likeliest words."""
    vocabulary = both.model.vocabulary
    asked_ids = []
    for shown, question in asked:
        codes, times = _seen(shown, both.vision)
        asked_ids.append(question_prompt(vocabulary, question.text, codes, *times))
    with steady_threads(both.model.model):
        return generate_text(both.model.model, vocabulary, asked_ids, max_new=_MAX_ANSWER, min_new=1, batch_size=BATCH)


def extended(both: Opened, motions: Sequence[Motion]) -> list[Ids]:
    """Go on with clips of `CONTEXT` latent frames for `NEW` more, without a prompt: whole documents."""
    clips = [
        Clip(
            codes=both.vision.encode_video(draw_motion(made, CONTEXT * both.vision.temporal_factor)[None])[0],
            fps=float(FPS),
            seed=seed,
        )
        for seed, made in enumerate(motions)
    ]
    found = extend_clip(
        both.model, clips, _OF_CLIPS, context=CONTEXT, new=NEW, total=CONTEXT + NEW,
        frames_per_code=both.vision.temporal_factor, batch_size=BATCH, num_codes=both.vision.codebook_size,
    )  # fmt: skip
    return [one.windows[-1].ids for one in found]


def pictures_of(folder: Path, both: Opened) -> list[Pixels]:
    """Decode the pictures of a model."""
    return [_pixels(ids, both)[0] for ids in _read(folder / "pictures.parquet")]


def answers_of(folder: Path, both: Opened) -> list[str]:
    """Decode the answers of a model."""
    return [both.model.vocabulary.text.decode(ids.tolist()) for ids in _read(folder / "answers.parquet")]


def clips_of(folder: Path, both: Opened) -> list[Pixels]:
    """Decode what a model made of clips: the frames behind the context alone."""
    first = CONTEXT * both.vision.temporal_factor
    return [np.stack(_pixels(ids, both)[first:]) for ids in _read(folder / "clips.parquet")]


def _pixels(ids: Ids, both: Opened) -> list[Pixels]:
    return list(decode_ids(ids, both.model.vocabulary, both.vision))


def _seen(shown: Shown, vision: VisionTokenizer) -> tuple[NDArray[np.uint32], tuple[float | None, float | None]]:
    if isinstance(shown, Scene):
        return vision.encode_images(draw(shown)[None]), (None, None)
    return vision.encode_video(draw_motion(shown)[None])[0], (float(FPS), FRAMES / FPS)


def _write(path: Path, documents: Sequence[Ids]) -> None:
    staged = path.with_name(f"{path.name}.writing")
    pl.DataFrame({"ids": [ids.tolist() for ids in documents]}, schema={"ids": pl.List(pl.Int32)}).write_parquet(staged)
    staged.replace(path)


def _read(path: Path) -> list[Ids]:
    return [np.array(ids, np.int32) for ids in pl.read_parquet(path)["ids"].to_list()]
