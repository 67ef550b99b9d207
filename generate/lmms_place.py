"""Where and how wide the adapter for lmms-eval runs: its process among others, its device, its batches.

`accelerate launch --num_processes 8 -m lmms_eval …` starts a process a device; the harness deals the documents.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tokenmill.errors import RecipeError
from tokenmill.generate.seeing import Area


def join_processes() -> Any:
    """Give accelerate's view of this process; it joins the others where `accelerate launch` or torchrun began it."""
    from accelerate import Accelerator  # lmms-eval's own dependency

    return Accelerator(cpu=not torch.cuda.is_available())


def device_of(device: str | None, accelerator: Any) -> torch.device:
    """Return the device asked for; of `cuda`, or nothing, each of several processes gets its own."""
    if accelerator.num_processes > 1 and device in (None, "cuda") and torch.cuda.is_available():
        return torch.device("cuda", accelerator.local_process_index)
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def batch_size_of(value: int | str) -> int:
    """Read the harness's `--batch_size`; raises RecipeError for `auto`, which nothing here measures."""
    try:
        size = int(value)
    except ValueError:
        size = 0
    if size < 1:
        raise RecipeError(f"batch_size {value!r}: give a number from 1; 8 pictures of 512 x 512 take 8 x 4,161 ids")
    return size


def resized(area: Area, *, min_area: int | None, max_area: int | None, max_aspect: float | None) -> Area:
    """Return the trained sizes with those of the arguments in their place; raises RecipeError where they cross."""
    least, most = min_area or area.min_area, max_area or area.max_area
    if least > most:
        if min_area is not None and max_area is not None:
            raise RecipeError(f"min_area {min_area} is over max_area {max_area}")
        least, most = (least, least) if max_area is None else (most, most)
    return replace(area, min_area=least, max_area=most, max_aspect=max_aspect or area.max_aspect)
