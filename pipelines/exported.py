"""The model that a training run exported: which one it is, and a local copy to open.

Who it is must be known without opening it, because a second `generate` with the same model only has to notice that all
is there. So the fingerprint comes from the files' digests: 16 MB of weights hash in 20 ms, and torch is not imported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenmill.errors import ManifestError, RunError, StorageError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_checkpoint import EXPORT_RECORD

_SMALL_WIDTH = 1024


@dataclass(frozen=True)
class Exported:
    """`checkpoints/<run>/export` of a store; `description` is its `tokenmill.json`."""

    store: Store
    run: str
    description: Mapping[str, Any]

    @property
    def path(self) -> str:
        return f"checkpoints/{self.run}/export"

    @property
    def plan(self) -> str:
        """The full id of the plan the model was trained on."""
        try:
            return str(self.description["plan"])
        except KeyError as error:
            raise ManifestError(f"{self.path}/{EXPORT_RECORD}: does not say on which plan it was trained") from error

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the export's files; from `tokenmill.json` where it lists them, else they are read."""
        files = self.description.get("files") or self._digests()
        return digest_of({"files": files, "vocabulary": self.description.get("vocabulary")})

    def _digests(self) -> dict[str, str]:
        names = [entry.path for entry in self.store.files(self.path)]
        found = {}
        for name in names:
            with self.store.local_copy(name) as path, path.open("rb") as file:
                found[name.rsplit("/", 1)[-1]] = file_digest(file, "sha256").hexdigest()
        return found

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Give a local folder that holds the model: itself, or a copy that is removed afterwards."""
        here = self.store.local_path(self.path)
        if here is not None:
            yield here
            return
        with TemporaryDirectory(prefix="tokenmill-") as scratch:
            for entry in self.store.files(self.path):
                with self.store.local_copy(entry.path) as path:
                    shutil.move(path, Path(scratch) / path.name)
            yield Path(scratch)


@contextmanager
def steady_threads(model: Any) -> Iterator[None]:
    """Run a small model on one CPU thread: its steps are too short to share, and rounding stays that of one thread.

    On two busy cores six pictures of the demo's model took 17 s with one thread and 88 s with two.
    """
    import torch

    before = torch.get_num_threads()
    if model.config.hidden_size <= _SMALL_WIDTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find_export(store: Store, run: str) -> Exported:
    """Return a run's exported model; raises RunError when the run has not come to its end."""
    name = f"checkpoints/{run}/export/{EXPORT_RECORD}"
    try:
        description = json.loads(store.read_bytes(name))
    except StorageError as error:
        raise RunError(f'{store.url}: run {run} has no exported model; run "tokenmill train" to its end') from error
    except ValueError as error:
        raise ManifestError(f"{name}: not JSON ({error}); train again to export it anew") from error
    return Exported(store, run, description)
