"""torch.compile, where it holds: the parts of a layer, one by one, around the packed attention.

A whole layer is not compiled: with activation checkpointing the break that attention makes would fall inside of the
checkpoint, and torch then compiles nothing of it, in silence. Borders of documents, which differ from pack to pack,
are never looked at, so no pack compiles anything anew; a pack of another length (a filler) does once, and then any
length will do. On CPU it saves a tenth of a step (hidden 192, 4 layers). ZeRO 3 is refused (settings_train): its hooks
would be compiled instead.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from tokenmill.errors import RecipeError
from tokenmill.train import attention

_COMPILERS = {"cpu": ("CXX", ("g++", "clang++")), "cuda": ("CC", ("gcc", "clang", "cc"))}
"""Device → the variable that names a compiler, and what is looked for without it (Triton's drivers are C)."""


def check_compiler(device: str) -> None:
    """Raise RecipeError where torch.compile would find no compiler, in its own words only after the model is built."""
    variable, names = _COMPILERS[device]
    wanted = (os.environ[variable],) if variable in os.environ else names
    if not any(shutil.which(name) for name in wanted):
        raise RecipeError(
            f"train.compile: needs a compiler ({' or '.join(wanted)}; {variable} names another) and finds none; "
            "install one, or leave train.compile out"
        )


def compile_layers(causal: Any) -> None:
    """Compile attention's projections, the feed-forward part and the norms of every layer, at their first call.

    Dropout is left out: compiled, it would draw other random numbers.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS[attention.NAME]
    ALL_ATTENTION_FUNCTIONS.register(attention.NAME, torch.compiler.disable(attend))  # type: ignore[no-untyped-call]
    for layer in causal.get_decoder().layers:
        for part in layer.children():
            if next(part.parameters(), None) is not None:
                part.compile()
