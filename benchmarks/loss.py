"""What does the chunked loss save, and what does it cost, beside plain cross-entropy over all logits?

    python benchmarks/loss.py [--vocabulary V] [--tokens N] [--json]

Peak memory is that of a process of its own, less what weights, hidden states and their gradients take. One thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch

from tokenmill.train.loss import chunked_loss, plain_loss

WIDTH = 256
CHUNK = 512

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def chunked(hidden: torch.Tensor, matrix: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return chunked_loss(hidden, matrix, labels, weights, CHUNK)[0]


LOSSES: dict[str, Loss] = {"chunked": chunked, "plain": plain_loss}


def run(name: str, vocabulary: int, tokens: int) -> dict[str, Any]:
    """Do one forward and backward in this process; returns seconds, peak memory and checksums of the gradients."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).requires_grad_()
    matrix = (torch.randn(vocabulary, WIDTH, generator=generator) / 16).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    hidden.grad, matrix.grad = torch.zeros_like(hidden), torch.zeros_like(matrix)
    before = _peak_bytes()
    started = time.perf_counter()
    loss = LOSSES[name](hidden, matrix, labels, weights)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - started
    return {
        "loss": name,
        "seconds": seconds,
        "peak_mib": (_peak_bytes() - before) / 2**20,
        "value": loss.item(),
        "hidden_gradient": float(hidden.grad.norm()),
        "matrix_gradient": float(matrix.grad.norm()),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=184_622)
    parser.add_argument("--tokens", type=int, default=8_192)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in LOSSES:  # a process each, so that one's peak is not the other's
        with get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(run, (name, options.vocabulary, options.tokens)))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['loss']:<8} {row['seconds']:7.2f} s   peak {row['peak_mib']:8.0f} MiB   gradients "
              f"{row['hidden_gradient']:.6g} {row['matrix_gradient']:.6g}")  # fmt: skip


if __name__ == "__main__":
    main()
