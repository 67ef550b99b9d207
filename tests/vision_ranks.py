"""What ranks that train a vision tokenizer load and do, for `rank_server.py`."""

from __future__ import annotations

from typing import Any


def loaded() -> Any:
    """Load everything heavy; returns the function that trains."""
    from transformers.models.emu3 import Emu3VQVAE  # noqa: F401

    import tokenmill.train.vision_loop  # noqa: F401
    from tokenmill.train.vision_worker import train

    return train
