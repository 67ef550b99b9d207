"""What does the chunked loss save, and what does it cost, beside plain cross-entropy over all logits?

    python benchmarks/loss.py [--vocabulary V] [--tokens N] [--chunk C] [--threads T …] [--device cuda] [--json]

Peak memory is that of a process of its own, less what weights, hidden states and their gradients take. By default on
one thread, and on as many as torch takes by itself. The plain way wants 18 GB at the default sizes. With `--device
cuda` Liger's kernel is compared too, in float32, each after a first run that is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from tokenmill.train.loss import chunked_loss, plain_loss
from tokenmill.train.loss_kernels import liger_chunk

WIDTH = 256
LOSSES = ("chunked", "plain")

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def loss_of(name: str, chunk: int) -> Loss:
    if name == "plain":
        return plain_loss
    if name == "liger":
        return lambda *tensors: chunked_loss(*tensors, chunk, kernel=liger_chunk)[0]
    return lambda *tensors: chunked_loss(*tensors, chunk)[0]


def run(name: str, options: argparse.Namespace, threads: int, folder: str) -> dict[str, Any]:
    """Do one forward and backward in this process; leaves the gradients in the folder."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.tokens, WIDTH, generator=generator).requires_grad_()
    matrix = (torch.randn(options.vocabulary, WIDTH, generator=generator) / 16).requires_grad_()
    labels = torch.randint(0, options.vocabulary, (options.tokens,), generator=generator)
    weights = torch.rand(options.tokens, generator=generator)
    hidden.grad, matrix.grad = torch.zeros_like(hidden), torch.zeros_like(matrix)
    before = _peak_bytes()
    started, started_cpu = time.perf_counter(), time.process_time()
    loss = loss_of(name, options.chunk)(hidden, matrix, labels, weights)
    loss.backward()  # type: ignore[no-untyped-call]
    row = {
        "loss": name,
        "threads": threads,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - started_cpu,
        "peak_mib": (_peak_bytes() - before) / 2**20,
        "value": loss.item(),
    }
    for part, tensor in (("hidden", hidden), ("matrix", matrix)):
        np.save(Path(folder) / f"{name}-{part}.npy", tensor.grad.numpy())  # type: ignore[union-attr]
    return row


def on_cuda(options: argparse.Namespace) -> dict[str, Any]:
    """Do one forward and backward on the GPU by each way; gradients are compared with those of the plain one."""
    generator = torch.Generator("cuda").manual_seed(0)
    given = [
        torch.randn(options.tokens, WIDTH, generator=generator, device="cuda"),
        torch.randn(options.vocabulary, WIDTH, generator=generator, device="cuda") / 16,
    ]
    labels = torch.randint(0, options.vocabulary, (options.tokens,), generator=generator, device="cuda")
    weights = torch.rand(options.tokens, generator=generator, device="cuda")
    rows, gradients = {}, {}
    for name in ("plain", "chunked", "liger"):
        for _ in range(2):
            leaves = [tensor.clone().requires_grad_() for tensor in given]
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, started = torch.cuda.memory_allocated(), time.perf_counter()
            loss = loss_of(name, options.chunk)(*leaves, labels, weights)
            loss.backward()  # type: ignore[no-untyped-call]
            value = loss.item()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        rows[name] = {"seconds": seconds, "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20,
                      "value": value}  # fmt: skip
        gradients[name] = [leaf.grad for leaf in leaves]
    largest = {
        name: max(
            float((ours - theirs).abs().max() / theirs.abs().max())  # type: ignore[operator, union-attr]
            for ours, theirs in zip(gradients[name], gradients["plain"], strict=True)
        )
        for name in ("chunked", "liger")
    }
    return {"device": torch.cuda.get_device_name(), "runs": rows, "largest_difference": largest}


def compared(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Run both, a process each, so that one's peak is not the other's."""
    with TemporaryDirectory(prefix="tokenmill-loss-") as folder:
        rows = {}
        for name in LOSSES:
            with get_context("spawn").Pool(1) as pool:
                rows[name] = pool.apply(run, (name, options, threads, folder))
        chunked, plain = rows["chunked"], rows["plain"]
        return {
            "threads": threads,
            "peak_share": chunked["peak_mib"] / plain["peak_mib"],
            "time_share": chunked["seconds"] / plain["seconds"],
            "cpu_share": chunked["cpu_seconds"] / plain["cpu_seconds"],
            "largest_difference": {part: _difference(Path(folder), part) for part in ("hidden", "matrix")},
            "runs": [chunked, plain],
        }


def _difference(folder: Path, part: str) -> float:
    """Return the largest difference of two gradients, as a share of the largest gradient."""
    ours, theirs = (np.load(folder / f"{name}-{part}.npy", mmap_mode="r") for name in LOSSES)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=184_622)
    parser.add_argument("--tokens", type=int, default=8_192)
    parser.add_argument("--chunk", type=int, default=512, help="ids whose logits exist at the same time")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda":
        print(json.dumps(on_cuda(options), indent=1))
        return
    found = [compared(options, threads) for threads in options.threads]
    if options.json:
        print(json.dumps({"sizes": {"vocabulary": options.vocabulary, "tokens": options.tokens, "width": WIDTH,
                                    "chunk": options.chunk}, "compared": found}, indent=1))  # fmt: skip
        return
    for one in found:
        for row in one["runs"]:
            print(f"{row['loss']:<8} {row['threads']} threads {row['seconds']:7.2f} s ({row['cpu_seconds']:.2f} of CPU)"
                  f"   peak {row['peak_mib']:8.0f} MiB")  # fmt: skip
        print(f"         peak {one['peak_share']:.3f}, time {one['time_share']:.2f} of the plain way; gradients differ "
              f"by {max(one['largest_difference'].values()):.1e} of the largest")  # fmt: skip


if __name__ == "__main__":
    main()
