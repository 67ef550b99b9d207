"""What lies in the folder of a vision tokenizer: which network, of what shape, and in which file its weights are.

Told from the configuration alone, in milliseconds and without torch, so that a recipe whose vocabulary does not fit its
tokenizer is refused before anything starts. Three kinds:

* `emu3`: anything else, in the layouts of `vision_emu3_files`; `config.json` has `codebook_size` at the top or under
  `vq_config`.
* `ibq`: the released layouts, `config.yaml` with `ddconfig`, `n_embed`, `embed_dim`: Emu3.5's at the top, SEED-Voken's
  under `model.init_args`. A `config.json` with `model_type: ibq` and the same keys is the same.
* `fsq`: `config.json` with `model_type: fsq`, `levels`, `ddconfig` (tokenmill's own; nobody released one as weights).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_emu3_files import WHOLE

Kind = Literal["emu3", "ibq", "fsq"]

_CONFIGS = ("config.json", "config.yaml")
_WEIGHTS = ("model.safetensors", "model.ckpt")
_IBQ_KEYS = {"ddconfig", "n_embed", "embed_dim"}
_SIZE_KEYS: Mapping[str, str] = {"emu3": "codebook_size", "ibq": "n_embed"}


@dataclass(frozen=True, slots=True)
class VisionFolder:
    """A folder with a vision tokenizer; `config` holds the settings of the network alone."""

    path: Path
    kind: Kind
    config: Mapping[str, Any]

    @property
    def codebook_size(self) -> int | None:
        """The number of codes; None where the configuration does not say."""
        if self.kind == "fsq":
            return math.prod(levels_of(self))
        found = self.config.get(_SIZE_KEYS[self.kind])
        return found if isinstance(found, int) else None

    @property
    def weights(self) -> Path:
        """`model.safetensors`, `model.ckpt`, or the only `.safetensors` or `.ckpt` there; raises RecipeError."""
        for name in _WEIGHTS:
            if (self.path / name).is_file():
                return self.path / name
        others = sorted(path for path in self.path.iterdir() if path.suffix in (".safetensors", ".ckpt"))
        if len(others) != 1:
            told = ", ".join(path.name for path in others) or "none"
            raise RecipeError(f"vision tokenizer {self.path}: needs {' or '.join(_WEIGHTS)}; found {told}")
        return others[0]


def vision_folder(spec: str | Path) -> VisionFolder | None:
    """Look into a folder; None where there is none, or no configuration in it.

    Raises:
        RecipeError: a configuration that cannot be read.
    """
    path = Path(spec)
    for name in _CONFIGS:
        if (path / name).is_file():
            described = _read(path / name)
            config = _network(described)
            return VisionFolder(path=path, kind=_kind(config), config=config)
    return None


def levels_of(folder: VisionFolder) -> tuple[int, ...]:
    """Return FSQ's levels a dimension; raises RecipeError unless they are whole numbers of 2 and more."""
    levels = folder.config.get("levels")
    if not isinstance(levels, list) or not levels or not all(isinstance(one, int) and one >= 2 for one in levels):
        raise RecipeError(f"vision tokenizer {folder.path}: levels must be whole numbers above 1, found {levels!r}")
    return tuple(levels)


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        described = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"vision tokenizer {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(described, Mapping):
        raise RecipeError(f"vision tokenizer {path}: not a mapping of settings")
    return described


def _network(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the network: the whole file, or its part in a whole model's or a training run's."""
    inside = described.get("vq_config")
    if described.get("model_type") == WHOLE and isinstance(inside, Mapping):
        return inside
    model = described.get("model")
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else described


def _kind(config: Mapping[str, Any]) -> Kind:
    named = config.get("model_type")
    if named == "fsq":
        return "fsq"
    return "ibq" if named == "ibq" or config.keys() >= _IBQ_KEYS else "emu3"
