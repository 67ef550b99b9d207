"""How many pictures a second one core scores, beside naive scorers and Data-Juicer on the same pictures.

    python benchmarks/curate.py [--pictures 840] [--data-juicer PYTHON] [--text] [--json]

The pictures are crops and scalings of photographs from installed packages, a megapixel on average, written once as
JPEG shards below `--folder`. What is timed of tokenmill is the whole worker of stage score: reading the shards,
checking digests, decoding, six scorers, writing tables and records; one decoding thread. Everything is counted in
CPU-seconds of its own process, the contestants by turns in the same run, so that a busy machine slows all alike.

    naive            six scorers, each of which opens and decodes the picture by itself (Pillow) and computes its figure
                     on every pixel (OpenCV)
    one_decode       the same figures from one shared Pillow decode
    exact, scaled    ours: sharpness of every pixel, or of 512 pixels like the other scorers
    data_juicer      its shape, aspect, size and phash operators, run by the Python of an environment that has them
    memory           peak of the worker's process, also for one unit of pictures of 24 megapixels
    wall             of the stage on all cores ÷ (seconds of all its phases ÷ cores)
    --text           the stage with text detection, ungated and behind a gate that lets one in five through
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenmill.demo.photographs import photographs
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.jobs import Job, Target
from tokenmill.pipelines.score import score_work
from tokenmill.recipe import check_recipe

PER_SHARD = 420
SCORERS: dict[str, dict[str, Any]] = {
    "resolution": {}, "colourfulness": {}, "sharpness": {}, "entropy": {}, "perceptual_hash": {}, "sha256": {},
}  # fmt: skip
EXACT = {**SCORERS, "sharpness": {"longest_side_px": None}}
SAME_AS_DATA_JUICER: dict[str, dict[str, Any]] = {"resolution": {}, "perceptual_hash": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=840)
    parser.add_argument("--naive-every", type=int, default=6, help="the slow contestants see every so manieth picture")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tokenmill-curate")
    parser.add_argument("--data-juicer", metavar="PYTHON", help="of an environment with py-data-juicer")
    parser.add_argument("--text", action="store_true", help="also with text detection (minutes)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all contestants by turns and return figures and ratios."""
    shards = options.folder / f"shards-{options.pictures}"
    write_pictures(shards, options.pictures)
    few = encoded_pictures(shards)[:: options.naive_every]
    rates: dict[str, list[float]] = {}
    memory = 0.0
    for _ in range(options.rounds):
        for name, scorers in (("exact", EXACT), ("scaled", SCORERS), ("same_as_data_juicer", SAME_AS_DATA_JUICER)):
            cpu_s, _, peak = alone(score_all, shards, scorers)
            rates.setdefault(name, []).append(options.pictures / cpu_s)
            memory = max(memory, peak)
        for name, contestant in (("naive", naive), ("one_decode", one_decode)):
            cpu_s, *_ = alone(each, contestant, few)
            rates.setdefault(name, []).append(len(few) / cpu_s)
        if options.data_juicer:
            rates.setdefault("data_juicer", []).append(data_juicer(options.data_juicer, few))
    best = {name: max(some) for name, some in rates.items()}
    large = options.folder / "shards-large"
    write_pictures(large, 40, megapixels=24.0)
    text = text_figures(shards, options.pictures) if options.text else {}
    return {
        "pictures": options.pictures,
        "mean_megapixels": round(mean_megapixels(few), 3),
        "pictures_per_cpu_s": {name: round(rate, 1) for name, rate in best.items()},
        "ratio_vs_naive_exact": round(best["exact"] / best["naive"], 2),
        "ratio_vs_naive_scaled": round(best["scaled"] / best["naive"], 2),
        "ratio_vs_one_decode_exact": round(best["exact"] / best["one_decode"], 2),
        "ratio_vs_data_juicer": round(best["same_as_data_juicer"] / best["data_juicer"], 2)
        if options.data_juicer
        else None,
        "peak_mb": round(memory),
        "peak_mb_24_megapixels": round(alone(score_all, large, EXACT)[2]),
        **wall_figures(shards),
        **text,
    }


def write_pictures(folder: Path, number: int, *, megapixels: float = 1.0) -> None:
    """Write JPEG shards of crops and scalings of photographs, `megapixels` on average; done once."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    whole = [Image.open(photograph.path).convert("RGB") for photograph in photographs()]
    random = np.random.default_rng(4)
    for first in range(0, number, PER_SHARD):
        with ArchiveWriter(folder / f"{first // PER_SHARD:05d}.tar") as writer:
            for index in range(first, min(number, first + PER_SHARD)):
                image = whole[index % len(whole)]
                area = megapixels * 1e6 * random.uniform(0.6, 1.5)
                data = BytesIO()
                cut(image, area, random).save(data, "JPEG", quality=int(random.integers(82, 95)))
                writer.add(f"{index:09d}", {"jpg": data.getvalue()})
    (folder / "done").touch()


def cut(image: Image.Image, area: float, random: np.random.Generator) -> Image.Image:
    """Return a random crop of a picture, scaled to an area in pixels."""
    share = random.uniform(0.6, 1.0, size=2)
    width, height = (max(64, int(side * part)) for side, part in zip(image.size, share, strict=True))
    left, top = (int(random.integers(0, s - c + 1)) for s, c in zip(image.size, (width, height), strict=True))
    scale = (area / (width * height)) ** 0.5
    crop = image.crop((left, top, left + width, top + height))
    return crop.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)


def encoded_pictures(folder: Path) -> list[bytes]:
    """Return the bytes of all pictures."""
    import tarfile

    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [file.read() for member in tar if (file := tar.extractfile(member)) is not None]
    return found


def mean_megapixels(pictures: Sequence[bytes]) -> float:
    """Return the mean size of pictures."""
    sizes = [Image.open(BytesIO(data)).size for data in pictures]
    return float(np.mean([width * height for width, height in sizes])) / 1e6


def recipe_of(root: Path, shards: Path, scorers: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return the recipe that scores all shards."""
    return {
        "root": str(root),
        "execution": {"executor": "inline", "decode_threads": threads},
        "sources": {"pictures": {"kind": "webdataset", "url": str(shards)}},
        "filter": {"image": {"scorers": scorers}},
    }


def score_all(shards: Path, scorers: dict[str, Any], threads: int = 1) -> tuple[float, float]:
    """Score all shards in this process, warm already; return CPU-seconds and the sum of all phases' seconds."""
    warm = shards.parent / "shards-warm"
    if shards != warm:
        write_pictures(warm, 8)
        score_all(warm, scorers, threads)
        for path in shards.glob("*.tar"):
            path.read_bytes()
    with tempfile.TemporaryDirectory() as root:
        recipe = check_recipe(recipe_of(Path(root), shards, scorers, threads), "benchmark")
        chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
        work = score_work(chain.store, chain.passes["image"], chain.pieces["pictures"], chain.limits, {})
        worker = work.make_worker()
        targets = tuple(Target(folder=folder) for folder in work.folders)
        jobs = [Job(unit=unit, targets=targets) for unit in work.units]
        before, phases = time.process_time(), 0.0
        for job in jobs:
            phases += sum(worker(job).seconds.values())
        used = time.process_time() - before
        worker.close()
        return used, phases


def each(function: Callable[[bytes], Any], pictures: Sequence[bytes]) -> tuple[float, float]:
    """Apply a function to all pictures; return CPU-seconds."""
    import cv2

    cv2.setNumThreads(1)
    function(pictures[0])
    before = time.process_time()
    for data in pictures:
        function(data)
    return time.process_time() - before, 0.0


def alone(function: Callable[..., tuple[float, float]], *arguments: Any) -> tuple[float, float, float]:
    """Run a function in a fresh process; return what it returns and its peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_with_peak, (function, arguments))


def _with_peak(function: Callable[..., tuple[float, float]], arguments: tuple[Any, ...]) -> tuple[float, float, float]:
    cpu_s, other = function(*arguments)
    return cpu_s, other, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def decoded(data: bytes) -> Any:
    """Decode a picture the way everybody does."""
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def naive(data: bytes) -> list[Any]:
    """Compute six figures, decoding the picture for each."""
    return [figure(decoded(data)) for figure in FIGURES]


def one_decode(data: bytes) -> list[Any]:
    """Compute six figures of one decoded picture."""
    image = decoded(data)
    return [figure(image) for figure in FIGURES]


def colourfulness(image: Any) -> float:
    """Compute Hasler–Süsstrunk on floats, as it is usually written."""
    red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    deviation = np.hypot(red_green.std(), yellow_blue.std())
    return float(deviation + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def monochrome(image: Any) -> bool:
    """Compare the saturation of all pixels with a threshold."""
    import cv2

    return bool(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean() < 10)


def sharpness(image: Any) -> float:
    """Compute the variance of the Laplacian."""
    import cv2

    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def entropy(image: Any) -> float:
    """Compute the entropy of the histogram of greys."""
    import cv2

    counts = cv2.calcHist([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)], [0], None, [256], [0, 256]).ravel()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def phash(image: Any) -> Any:
    """Hash greys of 32 x 32 by their DCT."""
    import cv2

    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:8, :8]
    return low > np.median(low)


FIGURES: list[Callable[[Any], Any]] = [
    lambda image: image.shape, colourfulness, monochrome, sharpness, entropy, phash,
]  # fmt: skip


def data_juicer(python: str, pictures: Sequence[bytes]) -> float:
    """Return the pictures a CPU-second that Data-Juicer gets through."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index, data in enumerate(pictures):
            paths.append(Path(folder, f"{index:05d}.jpg"))
            paths[-1].write_bytes(data)
        listed = Path(folder, "list")
        listed.write_text("\n".join(map(str, paths)))
        script = Path(__file__).with_name("curate_data_juicer.py")
        done = subprocess.run([python, str(script), str(listed)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{python} {script.name}: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
    return float(found["pictures"] / found["cpu_s"])


def wall_figures(shards: Path) -> dict[str, float]:
    """Run the stage with a decoding thread a core, by the command's own code; return wall ÷ (phases ÷ cores)."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as root:
        recipe = check_recipe(recipe_of(Path(root), shards, EXACT, cores), "benchmark")
        chain = Chain(recipe=recipe, options=ChainOptions(quiet=True))
        _ = chain.pieces
        cpu, wall = time.process_time(), time.perf_counter()
        snapshots = chain.score["pictures"]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rows = sum(snapshot.commits[0].counts.rows_in for snapshot in snapshots)
    assert rows
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "wall_ratio": round(wall / (cpu / cores), 3)}


def text_figures(shards: Path, pictures: int) -> dict[str, Any]:
    """Score a shard with text detection for all pictures and for the fifth that a gate lets through."""
    first = shards.parent / "shards-text"
    first.mkdir(exist_ok=True)
    target = first / "00000.tar"
    if not target.exists():
        target.write_bytes((shards / "00000.tar").read_bytes())
    ungated, *_ = alone(score_all, first, {**EXACT, "text_coverage": {}})
    gated, *_ = alone(score_all, first, {**EXACT, "text_coverage": {"when": "colourfulness < 20"}})
    number = min(PER_SHARD, pictures)
    return {"with_text_per_cpu_s": round(number / ungated, 1), "with_gated_text_per_cpu_s": round(number / gated, 1)}


if __name__ == "__main__":
    main()
