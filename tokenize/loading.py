"""Loading models by path or hub name, and quietly: transformers' bar for 40 small tensors is noise on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_path(name: str) -> bool:
    """Tell what can be no repository's name on the hub, so that a wrong path is not looked for there."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def is_hub_name(name: str) -> bool:
    """Tell what is looked for on the hub: `owner/model`, unless a folder of that name is here."""
    return name.count("/") == 1 and not is_path(name) and not Path(name).is_dir()


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Silence the bar that transformers draws while it loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
