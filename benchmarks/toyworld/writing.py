"""Write the toy world as raw data: pictures as shards of img2dataset's layout, clips as mp4 with captions beside.

Each sample brings its `caption`, further wordings (`captions`), pairs of question and answer (`questions`, JSON for
`form: questions` of the captioner `metadata`) and its exact description. For the control it also brings the words of
another one half the data away (`shuffled_captions`, `shuffled_questions`): nothing fits but all frequencies stay, and
pictures are the same bytes, so their codes are taken over. With `shuffled` those are all the words that it has; with
`spliced` a clip goes on as a third one does, which is for clips what wrong words are for pictures. What is written
already is left, so a killed run goes on; the same seeds give the same bytes. The trade-off: clips are H.264
without loss (RGB, not a player's 4:2:0), 13 kB of 98 a clip and decoded bit by bit; with 4:2:0 at crf 8 they would be
8 kB and 28 dB.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from benchmarks.toyworld.captions import captions, clip_captions
from benchmarks.toyworld.motion import draw_motion, motion
from benchmarks.toyworld.questions import clip_questions, questions
from benchmarks.toyworld.scenes import draw, scene
from benchmarks.toyworld.world import FPS, FRAMES, SIZE, Motion, Question
from tokenmill.demo.img2dataset import COLUMNS, Sample, sample, write_shard
from tokenmill.demo.photo_folder import write_lines
from tokenmill.errors import RunError

VERSION = 1  # goes up when the same seeds give other bytes
SAMPLES_PER_SHARD = 1000  # keys have three digits for the number in a shard
_COLUMNS = {
    **COLUMNS,
    "questions": pl.String,
    "shuffled_captions": pl.List(pl.String),
    "shuffled_questions": pl.String,
}
_LOSSLESS = {"preset": "veryfast", "qp": "0", "threads": "1", "x264-params": "bframes=0"}


def write_pictures(
    folder: Path, seeds: range, *, pairs: int = 2, shuffled: bool = False, unseen_every: int = 0
) -> None:
    """Write the scenes of `seeds` with at most `pairs` questions each, every so many-th with an unseen combination.

    Raises:
        RunError: `folder` holds other ones.
    """
    asked = {"seeds": [seeds.start, seeds.stop], "pairs": pairs, "shuffled": shuffled, **_unseen(unseen_every)}
    _claim(folder, {"what": "pictures", **asked})
    for shard, start in enumerate(range(0, len(seeds), SAMPLES_PER_SHARD)):
        if (folder / f"{shard:05d}_stats.json").exists():
            continue
        numbers = range(start, min(start + SAMPLES_PER_SHARD, len(seeds)))
        samples = [_picture(shard, seeds, number, pairs, shuffled, unseen_every) for number in numbers]
        for written in write_shard(_staging(folder), shard, samples, columns=_COLUMNS):
            written.rename(folder / written.name)
    _staging(folder).rmdir()


def write_clips(
    folder: Path,
    seeds: range,
    *,
    num_frames: int = FRAMES,
    pairs: int = 2,
    shuffled: bool = False,
    spliced: bool = False,
    unseen_every: int = 0,
) -> None:
    """Write the motions of `seeds` as mp4 of `num_frames` frames, 8 a second, and `captions.jsonl`.

    With `spliced` the second half of each is that of another one, a third of the data away; `motion` tells the first.

    Raises:
        RunError: `folder` holds other ones.
    """
    asked = {"seeds": [seeds.start, seeds.stop], "frames": num_frames, "pairs": pairs, "shuffled": shuffled}
    _claim(folder, {"what": "clips", **asked, **({"spliced": True} if spliced else {}), **_unseen(unseen_every)})
    staged = _staging(folder) / "clip.mp4"
    for number, seed in enumerate(seeds):
        if not (folder / _clip_name(number)).exists():
            seen = motion(seed, unseen=_is_unseen(number, unseen_every))
            other = motion(seeds[(number + len(seeds) // 3) % len(seeds)]) if spliced else seen
            encode_lossless(staged, _spliced(seen, other, num_frames), FPS)
            staged.rename(folder / _clip_name(number))
    lines = _staging(folder) / "captions.jsonl"
    write_lines(lines, [_clip_row(seeds, number, pairs, shuffled, unseen_every) for number in range(len(seeds))])
    lines.rename(folder / lines.name)
    _staging(folder).rmdir()


def encode_lossless(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Encode THWC frames as H.264 in RGB without loss, in this process; the same frames give the same bytes."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264rgb", rate=fps, options=_LOSSLESS)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def partner(seeds: range, number: int, *, shuffled: bool) -> int:
    """Return the seed whose words sample `number` gets: its own, or one half the data away."""
    return seeds[(number + len(seeds) // 2) % len(seeds)] if shuffled else seeds[number]


def _spliced(seen: Motion, other: Motion, num_frames: int) -> NDArray[np.uint8]:
    """Draw the first half of one clip and the second half of another."""
    half = num_frames // 2
    return np.concatenate([draw_motion(seen, half), draw_motion(other, num_frames - half, first=half)])


def _unseen(every: int) -> dict[str, int]:
    """Return what a note says of unseen combinations: nothing where there are none."""
    return {"unseen_every": every} if every else {}


def _is_unseen(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _picture(shard: int, seeds: range, number: int, pairs: int, shuffled: bool, unseen_every: int) -> Sample:
    drawn = scene(seeds[number], unseen=_is_unseen(number, unseen_every))
    other = scene(partner(seeds, number, shuffled=True))
    words = _words(*((captions(told), questions(told, pairs)) for told in (other if shuffled else drawn, other)))
    columns = {**words, "url": f"toyworld://scene/{drawn.seed}", "scene": json.dumps(drawn.to_json())}
    return sample(
        shard, number % SAMPLES_PER_SHARD, _png(draw(drawn)), extension="png", size=(SIZE, SIZE), columns=columns
    )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture; noise hardly compresses, so the fastest level is as good as any: 2.4 kB of 3."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _clip_row(seeds: range, number: int, pairs: int, shuffled: bool, unseen_every: int) -> dict[str, Any]:
    seen = motion(seeds[number], unseen=_is_unseen(number, unseen_every))
    other = motion(partner(seeds, number, shuffled=True))
    words = _words(
        *((clip_captions(told), clip_questions(told, pairs)) for told in (other if shuffled else seen, other))
    )
    origin = {"licence": "Apache-2.0", "origin": "tokenmill", "seed": seeds[number]}
    return {"file": _clip_name(number), **words, **origin, "motion": asdict(seen)}


_Told = tuple[Sequence[str], Sequence[Question]]


def _words(own: _Told, shuffled: _Told) -> dict[str, Any]:
    (wordings, asked), (others, others_asked) = own, shuffled
    return {
        "caption": wordings[0],
        "captions": list(wordings),
        "questions": _pairs(asked),
        "shuffled_captions": list(others),
        "shuffled_questions": _pairs(others_asked),
    }


def _pairs(asked: Sequence[Question]) -> str:
    return json.dumps([{"question": one.text, "answer": one.answer} for one in asked])


def _clip_name(number: int) -> str:
    return f"{number:06d}.mp4"


def _staging(folder: Path) -> Path:
    """Return the folder beside `folder` where files lie until they are whole: a source never sees half of one."""
    staging = folder.with_name(f"{folder.name}.writing")
    staging.mkdir(exist_ok=True)
    return staging


def _claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Note what a folder is to hold, or make sure that it is this."""
    note, wanted = folder / "toyworld.json", json.dumps({"version": VERSION, **asked}, indent=4)
    seeds = asked["seeds"]
    if asked["shuffled"] and seeds[1] - seeds[0] < 2:
        raise RunError(f"{folder}: one sample alone cannot be shuffled")
    if asked.get("spliced") and seeds[1] - seeds[0] < 4:
        raise RunError(f"{folder}: fewer than four clips cannot be spliced: words would fit the second half")
    if not note.exists() and folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder}: holds files that are not the toy world's; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if note.exists() and note.read_text() != wanted:
        raise RunError(f"{folder}: holds other samples ({note.name}); remove it or name another folder")
    note.write_text(wanted)
