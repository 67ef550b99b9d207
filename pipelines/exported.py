"""The model that a training run exported: which one it is, and a local copy to open.

Who it is must be known without opening it, because a second `generate` with the same model only has to notice that all
is there (`generate/export_folder.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.errors import ManifestError, RunError, StorageError
from tokenmill.generate.export_folder import ExportFolder
from tokenmill.manifests.storage import Store


@dataclass(frozen=True)
class Exported(ExportFolder):
    """`checkpoints/<run>/export` of a store."""

    run: str

    @property
    def plan(self) -> str:
        """The full id of the plan the model was trained on."""
        try:
            return str(self.description["plan"])
        except KeyError as error:
            raise ManifestError(f"{self.record}: does not say on which plan it was trained") from error


def find_export(store: Store, run: str) -> Exported:
    """Return a run's exported model; raises RunError when the run has not come to its end."""
    exported = Exported(store, f"checkpoints/{run}/export", run)
    try:
        _ = exported.description
    except StorageError as error:
        raise RunError(f'{store.url}: run {run} has no exported model; run "tokenmill train" to its end') from error
    return exported
