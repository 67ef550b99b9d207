"""Checkpoints: safetensors files and a record that is written last.

    checkpoints/<run>/step-00000100/tensors-00-<sha8>.safetensors    every rank writes its share of the parameters
                                    checkpoint.json                  published last: it makes the checkpoint exist
                      latest                                         name of the newest, for people and other tools

The same idea as a unit's commit record, so a kill at any point leaves the previous checkpoint, on object storage too.
`latest` follows the record and is never trusted over it. The tensors may lie at another URL (`train.checkpoints`): the
record, always in the root, then names them by whole URLs. Parameters are whole and in fp32 (`parameters.py`): any
number of ranks and any ZeRO stage can go on from them. Random numbers need no state: they are drawn from (seed, step,
rank).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.errors import ManifestError, OutageError, RecipeError, StorageError
from tokenmill.faults import fault_point
from tokenmill.manifests.records import FileEntry, check_schema
from tokenmill.manifests.storage import Store, open_store
from tokenmill.manifests.verify_checkpoint import CHECKPOINT_RECORD, CHECKPOINT_SCHEMA
from tokenmill.train.checkpoint_tensors import Tensors
from tokenmill.train.full_disk import told_when_full
from tokenmill.train.tensor_writer import bytes_of, write_tensors

log = logging.getLogger(__name__)

_LATEST = "latest"
_DAMAGED = "damaged.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint's record says.

    Attributes:
        loader: the loader's state (`LoaderState.to_json`).
        model: transformers' configuration of the model.
        vocabulary, vision: specs from the plan, for whoever generates with the model.
        settings: the training settings, for people.
        tensors: tensor → the file that holds it.
        guard: what the guard of losses knows (`Guard.state`); empty where there is none.
    """

    step: int
    loader: Mapping[str, Any]
    model: Mapping[str, Any]
    vocabulary: Mapping[str, Any]
    vision: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    tensors: Mapping[str, str]
    files: tuple[FileEntry, ...]
    guard: Mapping[str, Any] = field(default_factory=dict)

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
            "guard": dict(self.guard),
            "files": [entry.to_json() for entry in self.files],
        }
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`checkpoints/<run>` of a store; `elsewhere` gets the tensors, if it is another one."""

    store: Store
    run: str
    elsewhere: Store | None = None

    def at(self, name: str) -> str:
        return f"checkpoints/{self.run}/{name}"

    def step_folder(self, step: int) -> str:
        return self.at(f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        names = [name for name in self.store.folders(self.at("").rstrip("/")) if name.startswith("step-")]
        complete = [name for name in names if self.store.exists(self.at(f"{name}/{CHECKPOINT_RECORD}"))]
        return sorted(int(name.removeprefix("step-")) for name in complete)

    def read(self, step: int) -> Checkpoint:
        """Read a checkpoint's record; raises ManifestError if there is none or it is damaged."""
        name = f"{self.step_folder(step)}/{CHECKPOINT_RECORD}"
        try:
            value = json.loads(self.store.read_bytes(name))
            check_schema(value.pop("schema"), CHECKPOINT_SCHEMA, name)
            return Checkpoint(**{**value, "files": tuple(FileEntry(**entry) for entry in value["files"])})
        except OutageError:
            raise
        except StorageError as error:
            raise ManifestError(f"{self.step_folder(step)}: no complete checkpoint there") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{name}: not a checkpoint record ({error})") from error

    def write_tensors(self, step: int, share: int, tensors: Mapping[str, Any]) -> FileEntry:
        """Publish one rank's share of the tensors; nothing refers to the file until `publish`.

        Raises StorageError naming the folder, the bytes that are needed and those that are free on a full disk.
        """
        store, folder = self._tensor_folder(step)
        with told_when_full(store, folder, bytes_of(tensors)), store.staging(folder) as staged:
            digest, size = write_tensors(staged, tensors)
            name = f"tensors-{share:02d}-{digest[:8]}.safetensors"
            fault_point("checkpoint:before-tensors")
            store.put_file(f"{folder}/{name}", staged)
        name = name if store is self.store else _url(store, f"{folder}/{name}")
        return FileEntry(name=name, role="tensors", bytes=size, sha256=digest)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Make a checkpoint exist, once all its files are there."""
        fault_point("checkpoint:before-record")
        folder = self.step_folder(checkpoint.step)
        self.store.put(f"{folder}/{CHECKPOINT_RECORD}", checkpoint.to_bytes())
        fault_point("checkpoint:after-record")
        try:
            self.store.put(self.at(_LATEST), f"{folder.rpartition('/')[2]}\n".encode())
        except StorageError as error:  # nobody here reads it
            log.warning("%s could not be written: %s", self.at(_LATEST), error)

    def verify(self, checkpoint: Checkpoint) -> None:
        """Compare every file with its digest; raises ManifestError naming the first that differs."""
        for entry in checkpoint.files:
            with ExitStack() as stack:
                self._checked(stack, checkpoint.step, entry)

    @contextmanager
    def tensors(
        self, checkpoint: Checkpoint, entries: Iterable[FileEntry] | None = None, *, check: bool = False
    ) -> Iterator[Tensors]:
        """Open a checkpoint's files (all by default), whose tensors are then read one at a time.

        With `check` their digests are compared before, on the same copy; raises ManifestError then as `verify`.
        """
        with ExitStack() as stack:
            paths = {}
            for entry in checkpoint.files if entries is None else entries:
                if check:
                    path = self._checked(stack, checkpoint.step, entry)
                else:
                    path = stack.enter_context(self.store.local_copy(self._place(checkpoint.step, entry)))
                paths[entry.name] = str(path)
            yield Tensors(checkpoint.step, checkpoint.tensors, paths, stack)

    def prune(self, keep: int, milestone_every: int | None = None) -> None:
        """Remove checkpoints but the newest and milestones, and what killed runs left before the newest.

        What is not complete behind the newest stays: it may be the next one, on its way.
        """
        steps = self.steps()
        milestones = {step for step in steps if milestone_every and step % milestone_every == 0} - {0}
        kept = milestones | set(steps[-keep:])  # the start is there for a roll back alone
        for step in self._begun():
            if steps and step < steps[-1] and step not in kept:
                self.discard(step)

    def discard_unfinished(self) -> None:
        """Remove what killed runs left of checkpoints that never came to exist; only before a run begins."""
        complete = self.steps()
        for step in self._begun():
            if step not in complete:
                self.discard(step)

    def claim(self) -> None:
        """Note beside the tensors elsewhere whose they are; raises RecipeError if they are those of another root.

        Runs of one name in two roots would take each other's checkpoints for what a killed run left.
        """
        if self.elsewhere is None:
            return
        name, local = f"{self.run}.root", self.store.local_path("")
        mine = self.store.url if local is None else str(local.resolve())
        if not self.elsewhere.exists(name):
            with suppress(StorageError):  # a full disk is told of when there is a checkpoint to write
                self.elsewhere.put(name, f"{mine}\n".encode())
            return
        owner = self.elsewhere.read_bytes(name).decode().strip()
        if owner != mine:
            raise RecipeError(
                f"train.checkpoints: {self.elsewhere.url}/{self.run} has the checkpoints of a run of {owner}, and this "
                f"root is {mine}; name another place or train.run, or remove {name} there if the root has moved"
            )

    def discard(self, step: int) -> None:
        """Remove a checkpoint, complete or not; its record goes first."""
        folder = self.step_folder(step)
        if self.store.exists(f"{folder}/{CHECKPOINT_RECORD}"):
            self.store.delete(f"{folder}/{CHECKPOINT_RECORD}")
        places = {(self.store, folder), self._tensor_folder(step)}
        for store, place in places:
            if (local := store.local_path(place)) is not None:
                shutil.rmtree(local, ignore_errors=True)
            else:
                store.delete_many(entry.path for entry in store.files(place))

    def set_aside(self, step: int) -> None:
        """Make a damaged checkpoint exist no more; its record stays beside its files under another name."""
        folder = self.step_folder(step)
        self.store.put(f"{folder}/{_DAMAGED}", self.store.read_bytes(f"{folder}/{CHECKPOINT_RECORD}"))
        self.store.delete(f"{folder}/{CHECKPOINT_RECORD}")

    def _begun(self) -> list[int]:
        """Return the steps that have a folder, complete or not, here or elsewhere."""
        names = set(self.store.folders(self.at("").rstrip("/")))
        if self.elsewhere is not None:
            names |= set(self.elsewhere.folders(self.run))
        return sorted(int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdigit())

    def _tensor_folder(self, step: int) -> tuple[Store, str]:
        """Return where a step's tensors are written: the store, and the folder there."""
        if self.elsewhere is None:
            return self.store, self.step_folder(step)
        return self.elsewhere, f"{self.run}/step-{step:08d}"

    def _place(self, step: int, entry: FileEntry) -> str:
        """Return the path or URL of a file that a record names."""
        return entry.name if entry.is_outside else f"{self.step_folder(step)}/{entry.name}"

    def _checked(self, stack: ExitStack, step: int, entry: FileEntry) -> Path:
        """Return a local copy of a file whose digest is the recorded one; raises ManifestError if it is another."""
        name = self._place(step, entry)
        try:
            path = stack.enter_context(self.store.local_copy(name))
            if path.stat().st_size == entry.bytes and _sha256(path) == entry.sha256:
                return path
        except OutageError:
            raise
        except (StorageError, FileNotFoundError):
            pass
        raise ManifestError(
            f"{name}: missing, or its sha256 differs from {CHECKPOINT_RECORD}; remove {self.step_folder(step)} to go "
            "on from the checkpoint before it"
        )


def run_folder(store: Store, run: str, tensors_url: str | None) -> RunFolder:
    """Return a run's folder in the root, with the store of its tensors if that is another (`train.checkpoints`)."""
    if not tensors_url:
        return RunFolder(store, run)
    place = tensors_url if "://" in tensors_url else str(Path(tensors_url).absolute())  # records name it for ever
    return RunFolder(store, run, open_store(place, store.options))


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


def _url(store: Store, path: str) -> str:
    return f"{store.url}/{path}" if "://" in store.url else f"file://{store.url}/{path}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
