"""Files with weights: where they lie, which ones they are, and their tensors; never a pickle.

A model is named by path or by its place on the Hugging Face hub. Its digest stands in a scorer's fingerprint, so it is
taken before anything runs: hashing the 1.7 GB of ViT-L/14 takes 1 to 4 s once a process; a file in the hub's cache is
named by its own sha256 and costs nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.file_digest import file_digest
from tokenmill.tensor_file import read_state

HUB = "hf-hub:"


def weights_path(spec: str, where: str) -> Path:
    """Return the file `spec` names: a path, or `hf-hub:owner/repository/file`, which is fetched into the hub's cache.

    Raises:
        RecipeError: no such file, or the hub does not give it; `where` is the scorer and its setting.
    """
    if spec.startswith(HUB):
        owner, _, rest = spec.removeprefix(HUB).partition("/")
        repository, _, name = rest.partition("/")
        if not name:
            raise RecipeError(f"{where}: {spec!r} names no file; write {HUB}owner/repository/file")
        return hub_file(f"{owner}/{repository}", name, where)
    path = Path(spec).expanduser()
    if not path.is_file():
        raise RecipeError(f"{where}: no file {spec}")
    return path


def hub_file(repository: str, name: str, where: str) -> Path:
    """Return a file of a hub repository, from the local cache where it is there; raises RecipeError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise RecipeError(f"{where}: cannot get {name} of {repository} from the hub: {why}") from error


def weights_digest(path: Path) -> str:
    """Return the sha256 of a file, hex; raises RecipeError for a safetensors file that is cut off or none."""
    if path.suffix == ".safetensors":  # in the hub's cache only the link has the suffix
        status = path.stat()
        _check_safetensors(path, status.st_size, status.st_mtime_ns)
    return file_digest(path)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read name → torch tensor from safetensors, or with `torch.load(weights_only=True)`.

    Raises:
        RunError: the file is missing, cut off, holds anything but tensors, or numbers that are none.
    """
    try:
        tensors = _without_module(read_state(path))
    except RecipeError as error:  # a worker finds it out, long after the recipe was checked
        raise RunError(str(error)) from error
    wrong = next((name for name, value in tensors.items() if not _is_tensor(value)), None)
    if wrong is not None or not tensors:
        what = f"{wrong!r} is no tensor" if tensors else "it holds no tensors"
        raise RunError(f"{path}: not a file of weights: {what}")
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise RunError(f"{path}: {name} holds NaN or infinity; fetch the file again")
    return tensors


@cache
def _check_safetensors(path: Path, size: int, modified_ns: int) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise RecipeError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error


def _without_module(tensors: dict[str, Any]) -> dict[str, Any]:
    """Take off what data-parallel training put before every name."""
    if tensors and all(str(name).startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
