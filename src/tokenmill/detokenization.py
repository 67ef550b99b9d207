"""`tokenmill detokenize`: its arguments made into stores, an archive and a vision tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from tokenmill.errors import RecipeError
from tokenmill.inspection import place_of
from tokenmill.manifests.storage import Store, open_store

if TYPE_CHECKING:
    from tokenmill.pipelines.detokenize import Detokenized

_SUFFIXES = (".png", ".mp4")


def detokenize(shard: str, key: str | None, out: str, vision: str | None, storage: Mapping[str, Any]) -> Detokenized:
    """Write one sample of an archive, or without a key all of them; see `pipelines.detokenize`."""
    from tokenmill.pipelines.detokenize import Detokenizer
    from tokenmill.pipelines.token_archive import open_token_archive

    spec = vision_spec(vision)
    to, file = _target(out, key, storage)
    archive = open_token_archive(*place_of(shard, storage))
    return Detokenizer(archive=archive, to=to, vision_spec=spec, file=file).write(key)


def vision_spec(text: str | None) -> dict[str, Any] | None:
    """Read `--vision`: a name or folder, or a mapping with `name`; raises RecipeError for anything else."""
    if text is None:
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--vision {text}: not YAML") from error
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return dict(value)
    if isinstance(value, str) and value:
        return {"name": value}
    raise RecipeError(f"--vision {text}: is a name or a folder, or a mapping with name: {{name: …, dtype: …}}")


def render_detokenized(done: Detokenized, out: str) -> str:
    """Return what was written as text, a line a file."""
    lines = [f"{row['file']}  {_size(row)}".rstrip() for row in done.files]
    absent = f", {done.absent:,} have no tokens" if done.absent else ""
    return "\n".join([*lines, f"{out}: {len(done.files):,} files of {done.samples:,} samples{absent}"])


def _size(row: Mapping[str, Any]) -> str:
    if "height_px" not in row:
        return ""
    clip = f", {row['frames']} frames, {row['fps']:g} fps" if "fps" in row else ""
    return f"{row['height_px']}×{row['width_px']}{clip}"


def _target(out: str, key: str | None, storage: Mapping[str, Any]) -> tuple[Store, str | None]:
    """Return the store to write into, and the one file's name where `out` is one."""
    suffix = PurePosixPath(out).suffix
    if suffix not in _SUFFIXES:
        return open_store(out, storage), None
    if key is None:
        raise RecipeError(f"--out {out}: --all writes many files; name a folder")
    folder, _, name = out.rpartition("/")
    return open_store(folder or ("/" if out.startswith("/") else "."), storage), name
