"""Checkpoints: safetensors files and a record that is written last.

    checkpoints/<run>/step-00000100/tensors-00-<sha8>.safetensors    every rank writes its share of the parameters
                                    checkpoint.json                  published last: it makes the checkpoint exist

The same idea as a unit's commit record, so a kill at any point leaves the previous checkpoint, on object storage too,
and there is no `latest` file to disagree with what is there. Parameters are whole and in fp32 (`parameters.py`): any
number of ranks and any ZeRO stage can go on from them. Random numbers need no state: they are drawn from (seed, step,
rank).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.errors import ManifestError, StorageError
from tokenmill.faults import fault_point
from tokenmill.manifests.records import FileEntry, check_schema
from tokenmill.manifests.storage import Store

CHECKPOINT_SCHEMA = 1
_RECORD = "checkpoint.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint's record says.

    Attributes:
        loader: the loader's state (`LoaderState.to_json`).
        model: transformers' configuration of the model.
        vocabulary, vision: specs from the plan, for whoever generates with the model.
        settings: the training settings, for people.
        tensors: tensor → the file that holds it.
    """

    step: int
    loader: Mapping[str, Any]
    model: Mapping[str, Any]
    vocabulary: Mapping[str, Any]
    vision: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    tensors: Mapping[str, str]
    files: tuple[FileEntry, ...]

    def to_bytes(self) -> bytes:
        value = {
            "schema": CHECKPOINT_SCHEMA,
            "step": self.step,
            "loader": dict(self.loader),
            "model": dict(self.model),
            "vocabulary": dict(self.vocabulary),
            "vision": self.vision,
            "settings": dict(self.settings),
            "tensors": dict(self.tensors),
            "files": [entry.to_json() for entry in self.files],
        }
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`checkpoints/<run>` of a store."""

    store: Store
    run: str

    def at(self, name: str) -> str:
        return f"checkpoints/{self.run}/{name}"

    def step_folder(self, step: int) -> str:
        return self.at(f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        names = [name for name in self.store.folders(self.at("").rstrip("/")) if name.startswith("step-")]
        complete = [name for name in names if self.store.exists(self.at(f"{name}/{_RECORD}"))]
        return sorted(int(name.removeprefix("step-")) for name in complete)

    def read(self, step: int) -> Checkpoint:
        """Read a checkpoint's record; raises ManifestError if there is none or it is damaged."""
        name = f"{self.step_folder(step)}/{_RECORD}"
        try:
            value = json.loads(self.store.read_bytes(name))
            check_schema(value.pop("schema"), CHECKPOINT_SCHEMA, name)
            return Checkpoint(**{**value, "files": tuple(FileEntry(**entry) for entry in value["files"])})
        except StorageError as error:
            raise ManifestError(f"{self.step_folder(step)}: no complete checkpoint there") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{name}: not a checkpoint record ({error})") from error

    def write_tensors(self, step: int, share: int, tensors: Mapping[str, Any]) -> FileEntry:
        """Publish one rank's share of the tensors; nothing refers to the file until `publish`."""
        from safetensors.torch import save_file

        folder = self.step_folder(step)
        with self.store.staging(folder) as staged:
            save_file(dict(tensors), str(staged))
            digest, size = _sha256(staged), staged.stat().st_size
            name = f"tensors-{share:02d}-{digest[:8]}.safetensors"
            self.store.put_file(f"{folder}/{name}", staged)
        return FileEntry(name=name, role="tensors", bytes=size, sha256=digest)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Make a checkpoint exist, once all its files are there."""
        fault_point("checkpoint:before-record")
        self.store.put(f"{self.step_folder(checkpoint.step)}/{_RECORD}", checkpoint.to_bytes())
        fault_point("checkpoint:after-record")

    def verify(self, checkpoint: Checkpoint) -> None:
        """Compare every file with its digest; raises ManifestError naming the first that differs."""
        folder = self.step_folder(checkpoint.step)
        for entry in checkpoint.files:
            name = f"{folder}/{entry.name}"
            with self.store.local_copy(name) as path:
                if not path.exists() or _sha256(path) != entry.sha256:
                    raise ManifestError(
                        f"{name}: missing, or its sha256 differs from {_RECORD}; remove {folder} to go on from the "
                        "checkpoint before it"
                    )

    @contextmanager
    def tensors(self, checkpoint: Checkpoint) -> Iterator[Tensors]:
        """Open a checkpoint's tensors, which are then read one at a time."""
        with ExitStack() as stack:
            paths = {
                entry.name: stack.enter_context(
                    self.store.local_copy(f"{self.step_folder(checkpoint.step)}/{entry.name}")
                )
                for entry in checkpoint.files
            }
            yield Tensors(checkpoint, {name: str(path) for name, path in paths.items()}, stack)

    def prune(self, keep: int) -> None:
        """Remove all but the newest checkpoints, and what killed runs left; each record goes before its files."""
        steps = self.steps()
        kept = {self.step_folder(step) for step in steps[-keep:]}
        for name in self.store.folders(self.at("").rstrip("/")):
            folder = self.at(name)
            if name.startswith("step-") and folder not in kept:
                self._remove(folder)

    def _remove(self, folder: str) -> None:
        if self.store.exists(f"{folder}/{_RECORD}"):
            self.store.delete(f"{folder}/{_RECORD}")
        local = self.store.local_path(folder)
        if local is not None:
            shutil.rmtree(local)
            return
        for entry in self.store.files(folder):
            self.store.delete(entry.path)


class Tensors:
    """The tensors of one checkpoint, by name `<parameter>/<part>`."""

    def __init__(self, checkpoint: Checkpoint, paths: Mapping[str, str], stack: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._paths = paths
        self._stack = stack
        self._open: dict[str, Any] = {}

    def read(self, name: str) -> Any:
        """Return one tensor; raises ManifestError if the checkpoint has none of that name."""
        from safetensors import safe_open

        file = self._checkpoint.tensors.get(name)
        if file is None:
            raise ManifestError(f"checkpoint of step {self._checkpoint.step}: has no tensor {name}")
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(self._paths[file], framework="pt"))
        return self._open[file].get_tensor(name)


def exported_step(folder: RunFolder, precision: str | None = None) -> int | None:
    """Return the step whose model was exported last, or None if none was, or none in this precision."""
    name = folder.at("export/tokenmill.json")
    if not folder.store.exists(name):
        return None
    told = json.loads(folder.store.read_bytes(name))
    return int(told["step"]) if precision in (None, told.get("precision", "fp32")) else None


def shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Split names into `count` shares of about equal size; every rank computes the same."""
    split: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        split[least].append(name)
        loads[least] += sizes[name]
    return split


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
