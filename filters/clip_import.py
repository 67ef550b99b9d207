"""Import open_clip, whose messages go through the root logger and would set up logging behind the program's back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenmill.errors import RunError


def open_clip() -> Any:
    """Return the module; raises RunError where it is not installed."""
    with quiet():
        try:
            import open_clip as module
        except ImportError as error:
            raise RunError(f"CLIP scorers need the package open-clip-torch: {error}") from error
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what is logged with `logging.warning` itself (a random start, before weights are loaded), nothing else.

    Such calls also install a handler on the root logger if it has none; a silent one keeps them from it.
    """
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addFilter(_nothing)
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"timm\.")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(timm|open_clip)\.")
            yield
    finally:
        root.removeHandler(silent)
        root.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
