"""How much of the toy world a run takes: the size that `make toyworld` has, a tiny one for tests, those of the study.

The full size is what two cores do in an hour: three quarters of it go into two trainings of the same model (codes of
its samples included), a tenth into the vision tokenizer. `overrides` are laid over recipes/toyworld.yaml for every
command of the run.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Samples that are written, what is asked for a score, and where the recipe differs."""

    pictures: int
    clips: int
    pairs: int = 4  # questions a picture or clip, at most
    prompts: int = 100  # of each kind, with combinations that occur in training
    unseen: int = 40  # of each kind that can have such, with combinations that do not
    questions: int = 100  # of each kind
    motions: int = 90
    tried: int = 16  # validation prompts of each kind, for each setting of the sampler
    overrides: tuple[str, ...] = ()


FULL = Size(pictures=14_000, clips=3_600)

QUICK = Size(
    pictures=160,
    clips=16,
    prompts=6,
    unseen=2,
    questions=6,
    motions=6,
    tried=1,
    overrides=(
        "tokenizer.steps=4",
        "tokenizer.ranks=1",
        "tokenizer.rise_steps=1",
        "tokenizer.checkpoint_every=2",
        "tokenizer.batches.pictures=8",
        "tokenizer.held_out=0.02",
        "tokenize.video.max_ids=256",
        "plan.phases.pictures={context: 256, mix: {pictures: 1, clips: 0}}",
        "plan.phases.clips={context: 512, seed: 1, mix: {pictures: 0.2, clips: 1}}",
        "train.model={hidden: 32, layers: 2, heads: 2, kv_heads: 1, ffn: 64}",
        "train.ranks=1",
        "train.checkpoint_every=2",
        "train.warmup_steps=2",
    ),
)
