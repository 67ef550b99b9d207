"""How lmms-eval finds the adapter: the entry point `lmms_eval.models`, by which `--model tokenmill` is known.

The classes are named, not imported: the harness reads every plug-in at its start, and torch is not needed for that.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return the harness's `ModelManifest`: the chat class by default, the simple one with `--force_simple`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="tokenmill",
        simple_class_path="tokenmill.generate.lmms_model.TokenmillSimple",
        chat_class_path="tokenmill.generate.lmms_model.TokenmillChat",
    )
