"""A model of the hub or in a folder, as its files: who it is, known before any of its weights is loaded.

The digest covers the content of every file that is read: weights, configuration, tokenizer, processor, chat template.
It is the same for a hub name and for a copy of that commit in a folder. The hub tells the sha256 of large files, so a
driver without a GPU fetches some 10 MB, not the weights; where the hub cannot be reached, its cache on this machine
serves. Weights are safetensors, and no code of the model's own is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.manifests.file_digest import file_digest
from tokenmill.manifests.identity import digest_of

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_READ = (".json", ".jinja", ".txt", ".model")
_TEMPLATES = "additional_chat_templates/"


@dataclass(frozen=True)
class ModelFiles:
    """The files behind a name.

    Attributes:
        model: a folder, or `owner/name` on the hub.
        revision: branch, tag or commit of a hub name.
        engine: who asks, for errors.
    """

    model: str
    revision: str | None
    engine: str

    def check(self) -> None:
        """Look at a folder by its names alone, at no hub; raises RecipeError for what cannot be a model."""
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            index = folder / INDEX
            self._wanted(_names(folder), index.read_bytes() if index.is_file() else b"")
        elif folder.is_absolute() or self.model.startswith((".", "~")) or self.model.count("/") > 1:
            raise self._wrong("is no folder here, nor the name of a model on the hub")

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over names and contents; raises RecipeError for what cannot be a model."""
        _ = self.config
        return digest_of(dict(self._place.digests))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What `config.json` says."""
        found = self._json(CONFIG)
        if "model_type" not in found:
            raise self._wrong(f"has no model_type in its {CONFIG}")
        if "auto_map" in found and not _is_known(found["model_type"]):
            raise self._wrong(
                "brings code of its own (trust_remote_code), which is never run here; serve it and use engine 'openai'"
            )
        return found

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template: it answers; without one it may as well caption unasked."""
        names = self._place.digests
        described = (self._json(name) for name in ("processor_config.json", "tokenizer_config.json") if name in names)
        return any("chat_template" in name for name in names) or any("chat_template" in one for one in described)

    @property
    def label(self) -> str:
        """How answers name the model: the folder's name, or the hub's name and commit."""
        commit = self._place.commit
        return f"{self.model}@{commit[:12]}" if commit else Path(self.model).expanduser().resolve().name

    def fetch(self) -> Path:
        """Return a folder with all files, weights included; raises RecipeError."""
        place = self._place
        if place.folder is not None:
            return place.folder
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.model, revision=place.commit, allow_patterns=list(place.digests)))
        except Exception as error:
            raise self._wrong("did not come from the hub", error) from error

    @cached_property
    def _place(self) -> _Place:
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            return self._in_folder(folder, "")
        return self._on_hub() or self._in_cache()

    def _in_folder(self, folder: Path, commit: str) -> _Place:
        index = folder / INDEX
        wanted = self._wanted(_names(folder), index.read_bytes() if index.is_file() else b"")
        return _Place(commit, {name: file_digest(folder / name) for name in wanted}, folder)

    def _on_hub(self) -> _Place | None:
        """Ask the hub; None where it cannot be reached, or must not be (HF_HUB_OFFLINE)."""
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

        try:
            found = HfApi().model_info(self.model, revision=self.revision, files_metadata=True)
            commit = str(found.sha)
            files = {one.rfilename: one for one in found.siblings or ()}

            def content(name: str) -> Path:
                return Path(hf_hub_download(self.model, name, revision=commit))

            hf_hub_download(self.model, CONFIG, revision=self.revision)  # the cache learns which commit a branch is at
            index = content(INDEX).read_bytes() if INDEX in files else b""
            wanted = self._wanted(files, index)
            large = {name: files[name].lfs for name in wanted}
            digests = {name: lfs.sha256 if lfs else file_digest(content(name)) for name, lfs in large.items()}
        except (OfflineModeIsEnabled, httpx.TransportError):
            return None
        except RecipeError:
            raise
        except Exception as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code >= 500:
                return None
            raise self._wrong("is no folder here, and the hub does not give it", error) from error
        return _Place(commit, digests, None)

    def _in_cache(self) -> _Place:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(self.model, revision=self.revision, local_files_only=True))
        except Exception as error:
            raise self._wrong("is no folder, and neither reachable on the hub nor in its cache", error) from error
        return self._in_folder(folder, folder.name)

    def _wanted(self, names: Collection[str], index: bytes) -> list[str]:
        weights = sorted(set(json.loads(index)["weight_map"].values())) if index else [WEIGHTS]
        missing = [name for name in (CONFIG, *weights) if name not in names]
        if missing:
            raise self._wrong(
                f"lacks {missing[0]}; weights are read from {WEIGHTS} alone, whole or in parts by {INDEX}"
            )
        read = [name for name in names if name.endswith(_READ) and ("/" not in name or name.startswith(_TEMPLATES))]
        return sorted({*read, *weights})

    def _json(self, name: str) -> dict[str, Any]:
        place = self._place
        try:
            if place.folder is not None:
                data = (place.folder / name).read_bytes()
            else:
                from huggingface_hub import hf_hub_download

                data = Path(hf_hub_download(self.model, name, revision=place.commit)).read_bytes()
            return dict(json.loads(data))
        except (OSError, TypeError, ValueError) as error:
            raise self._wrong(f"has a {name} that cannot be read", error) from error

    def _wrong(self, what: str, error: Exception | None = None) -> RecipeError:
        why = f": {' '.join(str(error).split())[:300]}" if error else ""
        return RecipeError(f"captioner {self.engine!r}: model {self.model!r} {what}{why}")


@dataclass(frozen=True)
class _Place:
    """Where files lie: `commit` of the hub or empty, name → sha256, the folder if all of them are on this machine."""

    commit: str
    digests: Mapping[str, str]
    folder: Path | None


def _is_known(model_type: str) -> bool:
    """Tell whether transformers has the model's code itself; asked only of models that bring their own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def _names(folder: Path) -> list[str]:
    paths = [*folder.iterdir(), *folder.glob(f"{_TEMPLATES}*")]
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
