"""Assemble the demo's raw data from installed packages and our renderer: four sources of four kinds, no network.

    scenes/          WebDataset in img2dataset's layout     scenes-heldout/   100 more, never trained on
    photos/          folder of photographs                  photos-heldout/   the six of them that no tokenizer learns
    clips/           folder of clips                        text/             JSON lines
    spoiled.json     what was spoiled on purpose, and how

A source is built beside its place and moved there when complete; `assembled.json`, written after each, tells what is
done. A second call therefore does nothing (20 ms), one after a kill builds what is missing (everything takes 4 s).
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenmill.demo.spoiled import Spoiled

VERSION = 1
"""Raise it when the same settings give other files; the golden test of the scenes says when."""

NUM_HELDOUT = 100
_PACKAGES = ("django", "imageio-ffmpeg", "numpy", "pillow", "polars", "scikit-image", "scikit-learn", "scikit-video")
_SEEDS_PER_RUN = 1_000_000
Build = Callable[[Path], list[Spoiled]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """Where the assembled sources lie, and what was spoiled in them."""

    folder: Path
    digest: str
    spoiled: tuple[Spoiled, ...]
    built: tuple[str, ...]
    """Sources this call had to build; empty if all was there."""

    @property
    def scenes(self) -> Path:
        return self.folder / "scenes"

    @property
    def scenes_heldout(self) -> Path:
        return self.folder / "scenes-heldout"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def photos_heldout(self) -> Path:
        return self.folder / "photos-heldout"

    @property
    def clips(self) -> Path:
        return self.folder / "clips"

    @property
    def text(self) -> Path:
        return self.folder / "text"


def assemble(
    folder: Path, *, num_scenes: int = 2400, size: int = 64, seed: int = 0, progress: Callable[[str], object] = print
) -> DemoData:
    """Assemble all sources below `folder`, as far as they are not there yet.

    Args:
        folder: where to write; only what this function wrote is ever replaced.
        num_scenes: pictures in `scenes/`, spoiled ones not counted.
        size: side of the scenes in pixels.
        seed: 0 to 999; each gives other scenes and motions.
        progress: called with one line for each source.

    Raises:
        StorageError: a package of the `demo` extra is missing.
    """
    digest = _digest({"num_scenes": num_scenes, "size": size, "seed": seed})
    done = _done(folder, digest)
    built = []
    for name, build in _sources(num_scenes, size, seed).items():
        if _complete(folder / name, done.get(name)):
            continue
        done[name] = _build(folder / name, build)
        built.append(name)
        _write_json(folder / "assembled.json", {"digest": digest, "sources": done})
        progress(f"{name}: {len(done[name]['files'])} files, {sum(done[name]['files'].values()) / 1e6:.1f} MB")
    spoiled = [entry for source in done.values() for entry in source["spoiled"]]
    if built:
        _write_json(folder / "spoiled.json", spoiled)
    return DemoData(
        folder=folder, digest=digest, spoiled=tuple(Spoiled(**entry) for entry in spoiled), built=tuple(built)
    )


def _sources(num_scenes: int, size: int, seed: int) -> Mapping[str, Build]:
    """Name each source and what builds it; packages are imported only then."""
    from tokenmill.demo.clip_folder import NUM_MOTIONS, write_clips
    from tokenmill.demo.photo_folder import write_heldout, write_photographs
    from tokenmill.demo.scene_shards import write_scenes
    from tokenmill.demo.scenes import HELDOUT_SEEDS
    from tokenmill.demo.text_lines import write_texts

    first = seed * _SEEDS_PER_RUN
    heldout = range(HELDOUT_SEEDS + first, HELDOUT_SEEDS + first + NUM_HELDOUT)
    return {
        "scenes": lambda folder: write_scenes(folder, range(first, first + num_scenes), size, spoil=True),
        "scenes-heldout": lambda folder: write_scenes(folder, heldout, size, spoil=False),
        "photos": write_photographs,
        "photos-heldout": write_heldout,
        "clips": lambda folder: write_clips(folder, range(first, first + NUM_MOTIONS)),
        "text": write_texts,
    }


def _digest(settings: Mapping[str, Any]) -> str:
    """Hash everything that determines the files: settings, this module's version, the packages' versions."""
    versions = {package: version(package) for package in _PACKAGES}
    known = {"settings": settings, "version": VERSION, "packages": versions, "python": platform.python_version()}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _done(folder: Path, digest: str) -> dict[str, Any]:
    """Read which sources are complete for these settings; none if others were assembled here."""
    marker = folder / "assembled.json"
    if not marker.is_file():
        return {}
    found = json.loads(marker.read_text())
    return dict(found["sources"]) if found["digest"] == digest else {}


def _complete(folder: Path, recorded: Mapping[str, Any] | None) -> bool:
    """Say whether a source's files are those that were recorded, by name and size."""
    return recorded is not None and _files(folder) == recorded["files"]


def _build(folder: Path, build: Build) -> dict[str, Any]:
    """Build a source beside its place and move it there in one step."""
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    spoiled = build(partial)
    partial.rename(folder)
    return {"files": _files(folder), "spoiled": [entry.to_json() for entry in spoiled]}


def _files(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
