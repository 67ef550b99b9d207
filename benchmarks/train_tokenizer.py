"""A tokenizer trained for some CPU-minutes on the demo's pictures, against k-means on patches of the same pictures.

    python -m benchmarks.train_tokenizer --json --cpu-minutes 15

Both get 2,048 codes for 8x8 pixels and the same crops: the demo's scenes, photographs (without the six held out) and
clips, as `train/recipes/vision_tokenizer_quick.yaml` mixes them. CPU-minutes are of this process and its decoders from
the first batch to the last step: solving for the first weights counts, measuring doesn't. How many steps fit is told
from the first ones, so that the learning rate ends at zero. Measured: 256 scenes with seeds never drawn and the six
photographs, whole, at about 256² pixels; PSNR and SSIM of each picture (uint8), then their means. Usage is the share of
the codebook that occurs in 1,024 training crops, the photographs and 64 of the scenes.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.vision_tokenizer import Passes, learn_patches, passes_of_patches
from tokenmill.commands import make_chain, run_one_stage
from tokenmill.demo.assemble import assemble
from tokenmill.demo.photographs import HELDOUT_PHOTOGRAPHS
from tokenmill.manifests.sample_list import read_list
from tokenmill.pipelines.sample_list import places_of, sources_of_training, write_sample_list
from tokenmill.recipe import Recipe, load_recipe
from tokenmill.tokenize.picture_quality import ssim
from tokenmill.tokenize.vision import Codes, Pixels
from tokenmill.tokenize.vision_frames import latents, nearest_codes
from tokenmill.train.vision_data import Batches, as_pixels
from tokenmill.train.vision_loop import starting_pictures
from tokenmill.train.vision_measure import (
    as_picture,
    heldout_photographs,
    heldout_scenes,
    mean,
    psnr_db,
    through,
)
from tokenmill.train.vision_model import build_model
from tokenmill.train.vision_run import TokenizerRun
from tokenmill.train.vision_samples import Place, Samples

RECIPE = Path(__file__).parents[1] / "train" / "recipes" / "vision_tokenizer_quick.yaml"
TRIED_STEPS = 12
log = logging.getLogger("train_tokenizer")


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu-minutes", type=float, default=15.0)
    parser.add_argument("--work", type=Path, default=Path("demo-out/train-tokenizer"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--patches", type=int, default=200_000, help="for k-means")
    parser.add_argument("--save", type=Path, help="write the trained tokenizer to this folder")
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as tokenizer.learning_rate=0.002")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    found = benchmark(options)
    print(
        json.dumps(found, indent=1) if options.json else "\n".join(f"{key:32} {value}" for key, value in found.items())
    )


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Assemble, train, learn patches, measure both."""
    recipe = demo_recipe(options)
    assert recipe.tokenizer is not None
    samples = listed(recipe)
    try:
        run, figures = trained(recipe, samples, options.cpu_minutes * 60)
        batches = plain_batches(samples, recipe)
        crops = [crop for _, crop in zip(range(1024), batches, strict=False)]
        centres = learn_patches(mixed(samples, recipe), options.patches, run.model.config.codebook_size, seed=19)
        by_patches = passes_of_patches(centres)
        figures |= scores("tokenizer", passes_of(run.average), options.scenes)
        figures |= scores("kmeans", by_patches, options.scenes)
        figures["tokenizer_usage"] = usage(codes_of(run.average), crops, len(centres))
        figures["kmeans_usage"] = usage(lambda crop: by_patches(crop)[1], crops, len(centres))
    finally:
        samples.close()
    for name in ("psnr_scenes_db", "psnr_photographs_db", "ssim_scenes", "ssim_photographs"):
        figures[f"gain_{name}"] = round(figures[f"tokenizer_{name}"] - figures[f"kmeans_{name}"], 4)
    if options.save:
        run.average.save_pretrained(options.save)
    return figures


def demo_recipe(options: argparse.Namespace) -> Recipe:
    """Assemble the demo's data below the work folder; returns the recipe on it."""
    data = options.work / "data"
    assemble(data, progress=log.info)
    for path in sorted(data.glob("photos/scikit-*/*")):
        if path.stem not in HELDOUT_PHOTOGRAPHS:
            target = data / "photos-training" / path.relative_to(data / "photos")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    places = {"scenes": "scenes", "photos": "photos-training", "clips": "clips"}
    moved = [f"sources.{name}.url={data / folder}" for name, folder in places.items()]
    return load_recipe(options.recipe, [f"root={options.work / 'run'}", *moved, *options.overrides])


def listed(recipe: Recipe) -> Samples:
    """Run the stages up to the selection, and open what was kept."""
    assert recipe.tokenizer is not None
    chain = make_chain(recipe, quiet=True)
    for stage in ("ingest", "split", "score", "select"):
        run_one_stage(stage, recipe, chain)
    folder = f"checkpoints/{recipe.tokenizer.folder}"
    write_sample_list(chain, recipe.tokenizer, folder, is_begun=False)
    rows, _ = read_list(chain.store, folder)
    places = places_of(chain, sources_of_training(chain, recipe.tokenizer))
    return Samples(
        rows,
        Place(url=chain.store.url),
        {name: Place(url=url, options=dict(given)) for name, (url, given) in places.items()},
        cache_bytes=recipe.tokenizer.cache_mb << 20,
        max_pixels=recipe.tokenizer.max_pixels,
    )


def trained(recipe: Recipe, samples: Samples, budget_s: float) -> tuple[TokenizerRun, dict[str, Any]]:
    """Train for `budget_s` seconds of CPU."""
    settings = recipe.tokenizer
    assert settings is not None
    batches = Batches(samples, settings.batches, seed=settings.seed, shares=settings.sources)
    began, wall = cpu_s(), time.perf_counter()
    run = TokenizerRun(settings, build_model(settings), torch.device("cpu"))
    if run.needs_pictures():
        run.start_from(starting_pictures(samples, settings))
    started = cpu_s() - began
    log.info("start: %.0f CPU-s; %s", started, quick_psnr(run))
    stopwatch = cpu_s()
    while run.step < settings.steps:
        if run.needs_codebook():
            run.settle_codebook(starting_pictures(samples, settings))
        row = run.advance(batches(run.step).pixels_BTCHW)
        if run.step == TRIED_STEPS:
            each = (cpu_s() - stopwatch) / TRIED_STEPS
            steps = max(TRIED_STEPS + 1, int((budget_s - started) / each))
            run.settings = settings = settings.model_copy(update={"steps": steps})
            log.info("%.2f CPU-s a step: %d steps", each, steps)
        if run.step % 100 == 0:
            used = cpu_s() - began
            log.info("step %d, %.0f CPU-s: l2 %.5f, perplexity %.0f", run.step, used, row["l2"], row["perplexity"])
        if cpu_s() - began > 1.05 * budget_s:
            break
    used = cpu_s() - began
    return run, {
        "cpu_minutes": round(used / 60, 2), "wall_minutes": round((time.perf_counter() - wall) / 60, 2),
        "start_cpu_s": round(started, 1), "steps": run.step, "parameters": run.model.num_parameters(),
    }  # fmt: skip


def cpu_s() -> float:
    """CPU seconds of this process and of the children that ended."""
    ours, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


def quick_psnr(run: TokenizerRun) -> str:
    """A first look, of 16 scenes."""
    pictures = heldout_scenes(16)
    return f"{mean(psnr_db(picture, through(run.average, picture[None])[0][0]) for picture in pictures):.2f} dB"


def mixed(samples: Samples, recipe: Recipe) -> Iterator[Pixels]:
    """Yield 64-pixel pieces of the very steps that the tokenizer is trained on, single frames of windows included."""
    settings = recipe.tokenizer
    assert settings is not None
    batches, step = Batches(samples, settings.batches, seed=settings.seed, shares=settings.sources), 0
    while True:
        for crop in batches(step).pixels_BTCHW[:, 0]:
            picture = as_picture(crop)
            for top in range(0, len(picture), settings.batches.side):
                for left in range(0, len(picture), settings.batches.side):
                    yield picture[top : top + settings.batches.side, left : left + settings.batches.side]
        step += 1


def plain_batches(samples: Samples, recipe: Recipe) -> Iterator[Pixels]:
    """Yield crops of training pictures of `side` pixels."""
    assert recipe.tokenizer is not None
    for pixels in starting_pictures(samples, recipe.tokenizer):
        yield from (as_picture(crop[0]) for crop in pixels)


def passes_of(model: Any) -> Passes:
    """Encode and decode with a model."""

    def passes(picture: Pixels) -> tuple[Pixels, Codes]:
        back, codes = through(model, picture[None])
        return back[0], codes.numpy().astype(np.uint32)

    return passes


def codes_of(model: Any) -> Callable[[Pixels], Codes]:
    """Encode alone."""

    @torch.inference_mode()
    def codes(picture: Pixels) -> Codes:
        found: Codes = nearest_codes(model, latents(model, as_pixels([picture[None]]))).numpy().astype(np.uint32)
        return found

    return codes


def scores(name: str, passes: Passes, scenes: int) -> dict[str, Any]:
    """Mean PSNR and SSIM of held-out scenes and photographs."""
    found: dict[str, Any] = {}
    for label, pictures in (("scenes", heldout_scenes(scenes)), ("photographs", list(heldout_photographs().values()))):
        pairs = [(picture, passes(picture)[0]) for picture in pictures]
        found[f"{name}_psnr_{label}_db"] = round(mean(psnr_db(one, other) for one, other in pairs), 2)
        found[f"{name}_ssim_{label}"] = round(mean(float(ssim(one[None], other[None])[0]) for one, other in pairs), 4)
    return found


def usage(codes_of_crop: Callable[[Pixels], Codes], crops: list[Pixels], size: int) -> float:
    """The share of the codebook that occurs in training crops, the held-out photographs and 64 held-out scenes."""
    pictures = [*crops, *heldout_photographs().values(), *heldout_scenes(64)]
    used = np.unique(np.concatenate([codes_of_crop(picture).ravel() for picture in pictures]))
    return round(len(used) / size, 3)


if __name__ == "__main__":
    main()
