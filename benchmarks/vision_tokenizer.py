"""How well a vision tokenizer keeps a picture, against a k-means patch quantizer with as many codes.

    python benchmarks/vision_tokenizer.py --json

Held-out scenes at 64x64 and the demo's held-out photographs, whole, at about 256² pixels; PSNR of each picture (uint8),
then their mean. The k-means quantizer replaces each 8x8x3 patch by the nearest of 2,048 patches: as many codes per
picture and as large a codebook, learned by Lloyd's algorithm from 200,000 patches of scenes and photographs that are
not measured, in the shares that the shipped tokenizer was trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenmill.demo.photographs import training_photographs
from tokenmill.demo.scenes import motion, render, render_motion, scene
from tokenmill.tokenize.nearest import nearest
from tokenmill.tokenize.vision import Codes, Pixels, VisionTokenizer, load_vision_tokenizer
from tokenmill.train.vision_codebook import Codebook, perplexity
from tokenmill.train.vision_measure import HELDOUT_SEEDS, SCENE_SIDE, heldout_photographs, heldout_scenes, mean, psnr_db
from tokenmill.train.vision_pictures import short_sides, shrunk

PATCH = 8
SCENES_SHARE = 0.585  # of the patches that the shipped tokenizer's steps had, pictures of all sizes together
TRAINING_SEEDS = 5_000_000
SUFFIXES = {".jpg", ".jpeg", ".png"}
Passes = Callable[[Pixels], tuple[Pixels, Codes]]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokenizer", default="scenes", help="name or folder")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--photographs", nargs="*", type=Path, default=[], help="folders the k-means learns from, too")
    parser.add_argument("--seed", type=int, default=19)
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
        crops = training_crops(options.photographs, options.seed)
        centres = learn_patches(crops, options.patches, tokenizer.codebook_size, options.seed)
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


def training_crops(folders: Sequence[Path], seed: int) -> Iterator[Pixels]:
    """Yield 64-pixel scenes and crops of photographs at several sizes, without end; never of what is measured."""
    rng = np.random.default_rng(seed)
    paths = [photograph.path for photograph in training_photographs()]
    paths += [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    pictures = [picture for picture in map(_opened, paths) if min(picture.shape[:2]) >= SCENE_SIDE]
    while True:
        if rng.random() < SCENES_SHARE:
            yield render(scene(TRAINING_SEEDS + int(rng.integers(900_000_000))), SCENE_SIDE)
            continue
        picture = pictures[rng.integers(len(pictures))]
        small = shrunk(picture, int(rng.choice(short_sides(SCENE_SIDE, min(picture.shape[:2])))))
        top, left = (int(rng.integers(length - SCENE_SIDE + 1)) for length in small.shape[:2])
        yield small[top : top + SCENE_SIDE, left : left + SCENE_SIDE]


def learn_patches(crops: Iterator[Pixels], count: int, size: int, seed: int) -> torch.Tensor:
    """K-means over `count` patches of training pictures."""
    needed = -(-count // (SCENE_SIDE // PATCH) ** 2)
    patches = [as_patches(next(crops)) for _ in range(needed)]
    codebook = Codebook.of(torch.zeros(size, PATCH * PATCH * 3))
    codebook.settle(torch.cat(patches), generator=torch.Generator().manual_seed(seed), rounds=20)
    return codebook.embedding_VD


def _opened(path: Path) -> Pixels:
    with Image.open(path) as image:
        image.thumbnail((2048, 2048))
        return np.asarray(image.convert("RGB"))


def as_patches(picture: Pixels) -> torch.Tensor:
    """The 8x8x3 patches of a picture as rows of 192 numbers."""
    height, width = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    blocks = picture.reshape(height, PATCH, width, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(blocks.reshape(height * width, -1).astype(np.float32))


if __name__ == "__main__":
    main()
