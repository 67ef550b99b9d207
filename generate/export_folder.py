"""An exported model where a training run put it, in any store: who it is without opening it, and a copy to open.

The fingerprint comes from the files' digests: 16 MB of weights hash in 20 ms, and torch is not imported.
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

from tokenmill.errors import ManifestError
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.storage import Store
from tokenmill.manifests.verify_checkpoint import EXPORT_RECORD


@dataclass(frozen=True)
class ExportFolder:
    """A folder of a store that holds an exported model; `path` is empty where the store is the folder."""

    store: Store
    path: str

    @property
    def record(self) -> str:
        """Where the description lies in the store."""
        return f"{self.path}/{EXPORT_RECORD}" if self.path else EXPORT_RECORD

    @cached_property
    def description(self) -> Mapping[str, Any]:
        """What `tokenmill.json` says; raises StorageError where there is none, ManifestError where it is no JSON."""
        data = self.store.read_bytes(self.record)
        try:
            description: Mapping[str, Any] = dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise ManifestError(f"{self.record}: not JSON ({error}); train again to export it anew") from error
        return description

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the folder's files; from the description where it lists them, else they are read."""
        description = self.description if self.is_described else {}
        files = description.get("files") or self._digests()
        return digest_of({"files": files, "vocabulary": description.get("vocabulary")})

    @cached_property
    def is_described(self) -> bool:
        """Whether `tokenmill.json` is there; a folder of transformers has none."""
        return self.store.exists(self.record)

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
