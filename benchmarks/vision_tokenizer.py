"""How well a vision tokenizer keeps a picture, against a k-means patch quantizer with as many codes.

    python benchmarks/vision_tokenizer.py --json

Held-out scenes at 64x64 and the demo's held-out photographs, whole, at about 256² pixels; PSNR of each picture (uint8),
then their mean. The k-means quantizer replaces each 8x8x3 patch by the nearest of 2,048 patches: as many codes per
picture and as large a codebook, learned by Lloyd's algorithm from 200,000 patches of the tokenizer's own training data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from tokenmill.demo.scenes import motion, render_motion
from tokenmill.tokenize.nearest import nearest
from tokenmill.tokenize.vision import Codes, Pixels, VisionTokenizer, load_vision_tokenizer
from tokenmill.train.vision_codebook import Codebook, perplexity
from tokenmill.train.vision_data import HELDOUT_SEEDS, Pool, batch
from tokenmill.train.vision_measure import SCENE_SIDE, as_picture, heldout_photographs, heldout_scenes, mean, psnr_db
from tokenmill.train.vision_recipe import VisionRecipe, load_recipe
from tokenmill.train.vision_sources import load_pool

RECIPE = Path(__file__).parent.parent / "train" / "recipes" / "vision_tokenizer.yaml"
PATCH = 8
Passes = Callable[[Pixels], tuple[Pixels, Codes]]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokenizer", default="scenes", help="name or folder")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--photographs", nargs="*", help="what the k-means learns from, in place of the recipe's")
    parser.add_argument("--patches", type=int, default=200_000, help="for k-means; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = benchmark(options)
    print(
        json.dumps(found, indent=1) if options.json else "\n".join(f"{key:44} {value}" for key, value in found.items())
    )


def benchmark(options: argparse.Namespace) -> dict[str, float | str]:
    """Measure the tokenizer and, unless left out, k-means."""
    tokenizer = load_vision_tokenizer(options.tokenizer)
    found: dict[str, float | str] = {"fingerprint": tokenizer.fingerprint}
    found |= scores("tokenizer", passes_of(tokenizer), tokenizer.codebook_size, options.scenes)
    found["tokenizer_psnr_moving_db"] = round(moving_psnr_db(tokenizer), 2)
    if options.patches:
        recipe = load_recipe(options.recipe, **({"photographs": options.photographs} if options.photographs else {}))
        centres = learn_patches(recipe, load_pool(recipe), options.patches, tokenizer.codebook_size)
        found |= scores("kmeans", passes_of_patches(centres), len(centres), options.scenes)
    return found


def scores(name: str, passes: Passes, codebook_size: int, scenes: int) -> dict[str, float | str]:
    """Mean PSNR per set, of each photograph, and the perplexity of the codes."""
    photographs = heldout_photographs()
    found: dict[str, float | str] = {}
    sets: Mapping[str, list[Pixels]] = {"scenes": heldout_scenes(scenes), "photographs": list(photographs.values())}
    for label, pictures in sets.items():
        passed = [passes(picture) for picture in pictures]
        values = [psnr_db(picture, back) for picture, (back, _) in zip(pictures, passed, strict=True)]
        codes = torch.from_numpy(np.concatenate([codes.ravel() for _, codes in passed]).astype(np.int64))
        found[f"{name}_psnr_{label}_db"] = round(mean(values), 2)
        found[f"{name}_perplexity_{label}"] = round(perplexity(codes, codebook_size), 1)
        if label == "photographs":
            found |= {f"{name}_psnr_{key}_db": round(value, 2) for key, value in zip(photographs, values, strict=True)}
    return found


def moving_psnr_db(tokenizer: VisionTokenizer, clips: int = 24, frames: int = 8) -> float:
    """Mean over moving scenes of the PSNR of a whole clip; four frames have as many codes as one image."""
    drawn = [render_motion(motion(HELDOUT_SEEDS + clip), 24, SCENE_SIDE)[:frames] for clip in range(clips)]
    back = tokenizer.decode_video(tokenizer.encode_video(np.stack(drawn)))
    return mean(psnr_db(clip, rebuilt) for clip, rebuilt in zip(drawn, back, strict=True))


def passes_of(tokenizer: VisionTokenizer) -> Passes:
    """Encode and decode with a tokenizer."""

    def passes(picture: Pixels) -> tuple[Pixels, Codes]:
        codes = tokenizer.encode_images(picture[None])
        return tokenizer.decode_images(codes)[0], codes

    return passes


def passes_of_patches(centres_VD: torch.Tensor) -> Passes:
    """Replace every patch by its nearest centre."""

    def passes(picture: Pixels) -> tuple[Pixels, Codes]:
        codes = nearest(as_patches(picture), centres_VD)
        height, width = picture.shape[0] // PATCH, picture.shape[1] // PATCH
        patches = centres_VD[codes].round().clamp(0, 255).to(torch.uint8).numpy()
        blocks = patches.reshape(height, width, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
        return blocks.reshape(picture.shape), codes.numpy().astype(np.uint32)

    return passes


def learn_patches(recipe: VisionRecipe, pool: Pool, count: int, size: int) -> torch.Tensor:
    """K-means over `count` patches of training pictures."""
    settings = recipe.batches.model_copy(update={"windows": 0.0})
    patches: list[torch.Tensor] = []
    while sum(map(len, patches)) < count:
        pixels = batch(pool, settings, seed=recipe.seed + 2, step=len(patches))
        patches.append(torch.cat([as_patches(as_picture(picture)) for picture in pixels[:, 0]]))
    codebook = Codebook.of(torch.zeros(size, PATCH * PATCH * 3))
    codebook.settle(torch.cat(patches), generator=torch.Generator().manual_seed(recipe.seed), rounds=20)
    return codebook.embedding_VD


def as_patches(picture: Pixels) -> torch.Tensor:
    """The 8x8x3 patches of a picture as rows of 192 numbers."""
    height, width = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    blocks = picture.reshape(height, PATCH, width, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(blocks.reshape(height * width, -1).astype(np.float32))


if __name__ == "__main__":
    main()
