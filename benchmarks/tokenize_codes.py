"""Codes and pictures per second against transformers' `Emu3VQVAE` as it is, in one run, with the same weights.

    python benchmarks/tokenize.py --json                  CPU, float32
    python benchmarks/tokenize.py --json --device cuda    bfloat16 and torch.compile

Random weights of the released shape (270 M parameters) at 128² and of a small one at 256²; the codebook is drawn from
the model's own latents, so that thousands of codes are in play. Both ways alternate, the median of `--repeat` counts.
Memory: highest resident set during one call above what the process holds with the model loaded and one small picture
encoded, each way in a process of its own (CUDA: the allocator's peak above what was allocated before).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from tokenmill.tokenize.nearest import ties
from tokenmill.tokenize.preprocess import normalise, resize
from tokenmill.tokenize.vision import Codes, Pixels
from tokenmill.tokenize.vision_changes import changed_codes
from tokenmill.tokenize.vision_emu3 import Emu3VisionTokenizer, load
from tokenmill.train.vision_measure import heldout_photographs

CASES: dict[str, dict[str, int]] = {
    "full_width_128": {"base_channels": 256, "hidden_size": 1024, "side": 128, "pictures": 1},
    "small_width_256": {"base_channels": 32, "hidden_size": 128, "side": 256, "pictures": 2},
}
Row = dict[str, float | int | str]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for bfloat16 with torch.compile")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one")
    parser.add_argument("--pictures", type=int, help="at a time, in place of the case's")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(peak_bytes(*options.peak, pictures_of(options, options.case[0]), options.device)))
        return
    found = {name: case(options, name) for name in options.case or CASES}
    if options.json:
        print(json.dumps({"device": options.device, "threads": options.threads, **found}, indent=1))
        return
    for name, row in found.items():
        print("\n".join([name, *(f"  {key:32} {value}" for key, value in row.items())]))


def case(options: argparse.Namespace, name: str) -> Row:
    """Measure one shape of the network."""
    images = pictures_of(options, name)
    with TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), name, images)
        tokenizer = opened(folder, options.device, len(images))
        port = as_shipped(folder, options.device)
        row: Row = {"pictures_at_a_time": len(images), "side_px": images.shape[1]}
        row |= encoding(tokenizer, port, images, options)
        if options.device == "cpu":
            row |= memory(options, name, folder)
        else:
            exact = load(folder, device=options.device, batch_size=len(images))
            changed = changed_codes(tokenizer, exact, images)
            row["changed_share_vs_float32"] = round(changed.share, 5)
    return row


def encoding(tokenizer: Emu3VisionTokenizer, port: Any, images: Pixels, options: argparse.Namespace) -> Row:
    """Time both ways of encoding and decoding, alternating, and compare their codes."""
    ours, theirs = tokenizer.encode_images(images), port_encodes(port, images)
    ways = {
        "reference": lambda: port_encodes(port, images),
        "ours": lambda: tokenizer.encode_images(images),
        "one_by_one": lambda: [tokenizer.encode_images(image[None]) for image in images],
        "reference_decode": lambda: port_decodes(port, theirs),
        "ours_decode": lambda: tokenizer.decode_images(theirs),
    }
    seconds, cpu_seconds = alternating(ways, options.repeat)
    gflop = gigaflops(tokenizer, images)
    return {
        "ratio_vs_reference": round(seconds["reference"] / seconds["ours"], 2),
        "decode_ratio_vs_reference": round(seconds["reference_decode"] / seconds["ours_decode"], 2),
        "cpu_ratio_vs_reference": round(cpu_seconds["reference"] / cpu_seconds["ours"], 2),
        **compared(tokenizer, port, images, ours, theirs),
        "images_per_s": round(len(images) / seconds["ours"], 3),
        "reference_images_per_s": round(len(images) / seconds["reference"], 3),
        "one_by_one_images_per_s": round(len(images) / seconds["one_by_one"], 3),
        "decoded_images_per_s": round(len(images) / seconds["ours_decode"], 3),
        "tflop_per_s": round(gflop / 1e3 / seconds["ours"], 3),
    }


def compared(tokenizer: Emu3VisionTokenizer, port: Any, images: Pixels, ours: Codes, theirs: Codes) -> Row:
    """Return the share of equal codes, ties aside, and how many are ties (`tokenize/nearest.py` says what that is)."""
    latents = tokenizer.latents(images[:, None]).permute(0, 1, 3, 4, 2).flatten(0, 3).cpu()
    one, other = (torch.from_numpy(codes.astype(np.int64).ravel()) for codes in (ours, theirs))
    differing = one != other
    tied = differing & ties(latents, one, other, port.quantize.embedding.weight.detach().float().cpu())
    return {
        "codes_equal": round(1 - float((differing & ~tied).double().mean()), 6),
        "ties": int(tied.sum()),
        "codes": one.numel(),
        "distinct_codes": len(other.unique()),
    }


def alternating(ways: dict[str, Callable[[], object]], repeat: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median seconds of each way, by the clock and of the processors; the first round warms up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeat + 1):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    clock, cpu = (
        {name: statistics.median(pair[kind] for pair in pairs[1:]) for name, pairs in taken.items()} for kind in (0, 1)
    )
    return clock, cpu


def memory(options: argparse.Namespace, name: str, folder: str) -> Row:
    """Return the peaks of one call of each way, in MB, and ours divided by the reference's."""
    peaks = {}
    for way in ("reference", "ours", "reference_decode", "ours_decode"):
        command = [sys.executable, __file__, "--case", name, "--peak", way, folder, "--threads", str(options.threads)]
        command += ["--pictures", str(options.pictures)] if options.pictures else []
        peaks[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "memory_ratio": round(peaks["ours"] / peaks["reference"], 3),
        "decode_memory_ratio": round(peaks["ours_decode"] / peaks["reference_decode"], 3),
        "peak_mb": peaks["ours"] >> 20,
        "reference_peak_mb": peaks["reference"] >> 20,
    }


def peak_bytes(way: str, folder: str, images: Pixels, device: str) -> int:
    """Return how far the resident set rises above what it was before, during one call of a way."""
    model: Any = opened(folder, device, len(images)) if way.startswith("ours") else as_shipped(folder, device)
    encode, decode = (
        (model.encode_images, model.decode_images)
        if way.startswith("ours")
        else (lambda pixels: port_encodes(model, pixels), lambda codes: port_decodes(model, codes))
    )
    codes = encode(images[:1, :32, :32])
    decode(codes)
    grid = (len(images), images.shape[1] // 8, images.shape[2] // 8)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    decode(np.zeros(grid, np.uint32)) if way.endswith("decode") else encode(images)
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """Read a field of /proc/self/status."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) << 10


def gigaflops(tokenizer: Emu3VisionTokenizer, images: Pixels) -> float:
    """Count what the products and convolutions of one call of ours need."""
    from torch.utils.flop_counter import FlopCounterMode

    plain = Emu3VisionTokenizer(tokenizer.model, _uncompiled(tokenizer), fingerprint="")
    with FlopCounterMode(display=False) as counter:
        plain.latents(images[:, None])
    return counter.get_total_flops() / 1e9


def _uncompiled(tokenizer: Emu3VisionTokenizer) -> Any:
    from dataclasses import replace

    return replace(tokenizer.options, compile=False, cuda_graphs=False)


def make_checkpoint(folder: Path, name: str, images: Pixels) -> None:
    """Write a model of random weights whose codebook is spread over its own latents."""
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    shape = {key: CASES[name][key] for key in ("base_channels", "hidden_size")}
    torch.manual_seed(0)
    model = Emu3VQVAE(Emu3VQVAEConfig(**shape))
    model.save_pretrained(folder)
    found = load(folder).latents(images[:, None]).permute(0, 1, 3, 4, 2).flatten(0, 3)
    codebook = model.quantize.embedding.weight.data
    drawn = found[torch.randint(len(found), (len(codebook),))]
    codebook.copy_(drawn + torch.randn_like(drawn) * found.std(0) / 4)
    model.save_pretrained(folder)


def opened(folder: str, device: str, pictures: int) -> Emu3VisionTokenizer:
    """Open our way: float32 on a CPU, else bfloat16, compiled."""
    options = {"batch_size": pictures, "device": device}
    return load(folder, **options) if device == "cpu" else load(folder, **options, dtype="bfloat16", compile=True)


def as_shipped(folder: str, device: str) -> Any:
    """Open the port as anybody would: float32, its own layout."""
    from transformers.models.emu3 import Emu3VQVAE

    return Emu3VQVAE.from_pretrained(folder, dtype=torch.float32).to(device).eval()


@torch.inference_mode()
def port_encodes(port: Any, images: Pixels) -> Codes:
    """Encode images as the port does."""
    pixels = torch.from_numpy(np.moveaxis(normalise(images), -1, 1).copy()).to(port.device)
    sizes = torch.tensor([images.shape[1:3]] * len(images))
    return np.stack([codes.cpu().numpy() for codes in port.encode(pixels, sizes).image_tokens]).astype(np.uint32)


@torch.inference_mode()
def port_decodes(port: Any, codes_Bhw: Codes) -> Pixels:
    """Decode images as the port does."""
    made = port.decode(torch.from_numpy(codes_Bhw.astype(np.int64)).to(port.device))
    return np.moveaxis(((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy(), 1, -1)


def pictures_of(options: argparse.Namespace, name: str) -> Pixels:
    """Return photographs of the case's size, as many as it takes at a time."""
    side, count = CASES[name]["side"], options.pictures or CASES[name]["pictures"]
    photographs = list(heldout_photographs().values())
    return np.stack([resize(photographs[number % len(photographs)], (side, side)) for number in range(count)])


if __name__ == "__main__":
    main()
