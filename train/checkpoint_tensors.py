"""Reading the tensors of a checkpoint one at a time, whichever of its files they are in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from tokenmill.errors import ManifestError


class Tensors:
    """The tensors of one checkpoint, by name `<parameter>/<part>`.

    Args:
        files: tensor → file that holds it; paths: file → where it lies; stack: closes what is opened.
    """

    def __init__(self, step: int, files: Mapping[str, str], paths: Mapping[str, str], stack: ExitStack) -> None:
        self._step, self._files = step, files
        self._paths = paths
        self._stack = stack
        self._open: dict[str, Any] = {}

    def read(self, name: str) -> Any:
        """Return one tensor; raises ManifestError if the checkpoint has none of that name."""
        from safetensors import safe_open

        file = self._files.get(name)
        if file is None:
            raise ManifestError(f"checkpoint of step {self._step}: has no tensor {name}")
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(self._paths[file], framework="pt"))
        return self._open[file].get_tensor(name)
