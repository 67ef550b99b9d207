"""Where the weights of Emu3's vision tokenizer lie: in a folder or on the hub, in three layouts, without torch.

* `Emu3VisionVQ`: BAAI's release (`BAAI/Emu3-VisionTokenizer`), under names of its own.
* `emu3`: a whole model of transformers (`Emu3-Gen-hf`, `Emu3-Chat-hf`), where it is `vqmodel.*` or `model.vqmodel.*`
  among the language model's weights. Files in which none of these lies are neither fetched nor opened, and nothing else
  is read of those in which one does.
* `emu3_vqgan`: `Emu3VQVAE.save_pretrained`, what tokenmill's own training writes.

Whatever the layout, what comes out has the port's names, so equal weights have one fingerprint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_emu3_names import SHAPE, port_config, port_name

RELEASE, WHOLE, PORT = "Emu3VisionVQ", "emu3", "emu3_vqgan"
_INSIDE = re.compile(r"^(?:model\.)?vqmodel\.")
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

Fetch = Callable[[str], Path | None]
"""Name of a file to its place on disk; None where there is none."""


@dataclass(frozen=True, slots=True)
class Emu3Files:
    """`config` has the port's terms, those of `SHAPE` alone; `held` maps its names to files and names in them."""

    config: Mapping[str, Any]
    held: Mapping[str, tuple[Path, str]]

    @property
    def by_file(self) -> dict[Path, dict[str, str]]:
        """The same by file: the port's names to names in it."""
        found: dict[Path, dict[str, str]] = {}
        for name, (path, inside) in self.held.items():
            found.setdefault(path, {})[name] = inside
        return found


def emu3_files(spec: str | Path) -> Emu3Files:
    """Look into a folder, or fetch from the hub what is needed.

    Raises:
        RecipeError: no such folder or model, one of another kind, no safetensors, or files that cannot be read.
    """
    where = f"vision tokenizer {spec}"
    try:
        fetch = _in_folder(Path(spec)) if Path(spec).is_dir() else _on_hub(str(spec))
        described = _described(_needed(fetch, _CONFIG, where), where)
        kind = described.get("model_type")
        config = _config(described, kind, where)
        own = {name: held for held in _names(fetch, where) if (name := _name(held[1], kind)) is not None}
        # the language model's files are not even looked for
        places = {file: _needed(fetch, file, where) for file in sorted({file for file, _ in own.values()})}
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: {str(error).splitlines()[0]}") from error
    return Emu3Files(config=config, held={name: (places[file], inside) for name, (file, inside) in own.items()})


def safetensors_header(path: Path) -> dict[str, Any]:
    """Return name to entry of a safetensors file; raises ValueError where it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            raise ValueError(f"{path.name} is not whole safetensors")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is not whole safetensors")
    header.pop("__metadata__", None)
    return header


def _described(path: Path, where: str) -> Mapping[str, Any]:
    described = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(described, Mapping):
        raise RecipeError(f"{where}: its {path.name} is not a mapping of settings")
    return described


def _config(described: Mapping[str, Any], kind: object, where: str) -> dict[str, Any]:
    if kind not in (RELEASE, WHOLE, PORT):
        raise RecipeError(
            f"{where}: its config.json describes a model of type {kind!r}, not {PORT!r} (transformers' Emu3VQVAE), "
            f"{WHOLE!r} (a whole Emu3 of transformers) or {RELEASE!r} (BAAI's release)"
        )
    if kind == WHOLE:
        inside = described.get("vq_config")
        described = inside if isinstance(inside, Mapping) else {}  # what is not written is as released
    try:
        config = port_config(described) if kind == RELEASE else described
    except (TypeError, LookupError) as error:
        raise RecipeError(f"{where}: ch and ch_mult must be a whole number and a list of them") from error
    return {key: config[key] for key in SHAPE if key in config}


def _names(fetch: Fetch, where: str) -> Iterable[tuple[str, str]]:
    """Yield file and name of every tensor, from the only file or else from the index of several."""
    single = fetch(_WEIGHTS)
    if single is not None:
        return [(_WEIGHTS, name) for name in safetensors_header(single)]
    index = fetch(_INDEX)
    if index is None:
        raise RecipeError(f"{where}: needs {_WEIGHTS} or {_INDEX}; other weights are not opened")
    try:
        return [(str(file), str(name)) for name, file in json.loads(index.read_bytes())["weight_map"].items()]
    except (LookupError, TypeError, AttributeError) as error:
        raise RecipeError(f"{where}: {_INDEX} holds no weight_map") from error


def _name(held: str, kind: object) -> str | None:
    """Return the port's name of a tensor; None for one that belongs to the language model."""
    if kind == WHOLE:
        return _INSIDE.sub("", held) if _INSIDE.match(held) else None
    return port_name(held) if kind == RELEASE else held


def _needed(fetch: Fetch, name: str, where: str) -> Path:
    found = fetch(name)
    if found is None:
        raise RecipeError(f"{where}: {name} is missing")
    return found


def _in_folder(folder: Path) -> Fetch:
    return lambda name: folder / name if (folder / name).is_file() else None


def _on_hub(model: str) -> Fetch:
    """Fetch single files into the hub's cache on this machine, and only those that are asked for."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    def fetch(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(model, name))
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError:
            if name == _WEIGHTS:  # offline, a sharded model has no such file in the cache
                return None
            raise

    return fetch
