"""Clips as mp4 files, for people who want them: `tokenmill export-clips`. No stage reads them.

`<to>/<source>/<film>.<first frame>-<end frame>-<sha8>.mp4`: the name carries the film's digest and the frames, so what
is there already is the right thing and is left out, and a killed export is resumed by running it again. Beside them a
`captions.jsonl`, which makes each folder a source of kind `videos`. What opens the films is a child process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from tokenmill.errors import RecipeError, SampleError
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.line_child import LineChild
from tokenmill.pipelines.recipe_sections import absolute
from tokenmill.pipelines.sources.source import open_source

_CHILD = "tokenmill.pipelines.export_clips_child"
_COLUMNS = ["key", "path", "start_frame", "end_frame", "start_seconds", "end_seconds", "sha256", "caption", "metadata"]
_PER_SECOND_S = 30.0  # of a clip that is encoded again, on a slow machine
_SLOWEST_BYTES_PER_S = 10 << 20
Row = Mapping[str, Any]


@dataclass(kw_only=True)
class Exported:
    """What an export did: clips whose packets were copied, that were encoded again, that were there, that failed."""

    copied: int = 0
    encoded: int = 0
    there: int = 0
    bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "copied": self.copied, "encoded": self.encoded, "there": self.there, "bytes": self.bytes,
            "failed": dict(sorted(self.failed.items())),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported: `limit` clips of every source, in order; with `kept` only those that were selected."""

    limit: int | None = None
    kept: bool = False


def export_clips(chain: Chain, to: Store, options: ExportOptions) -> Exported:
    """Write the clips of a recipe's films that are not there yet; the split stage must be complete (kept: select too).

    Raises:
        RecipeError: the recipe has no films. RunError: a stage is not complete. StorageError: a store does not answer.
    """
    names = chain.sources_of("video")
    if not names:
        raise RecipeError("export-clips: the recipe has no source of films")
    done = Exported()
    with LineChild(_CHILD, timeout_s=chain.limits.clip_timeout_s) as child:
        for name in names:
            rows = clip_rows(chain, name, options)
            source = open_source(name, absolute(chain.recipe.sources[name].model_dump()))
            there = {entry.path for entry in to.files(name)}
            missing = [clip for clip in rows.iter_rows(named=True) if clip_name(name, clip) not in there]
            done.there += rows.height - len(missing)
            for path, clips in groupby(missing, key=lambda clip: str(clip["path"])):
                with source.store.local_copy(path) as film:
                    for clip in clips:
                        _export(child, film, clip, to, clip_name(name, clip), done)
            to.put(f"{name}/captions.jsonl", _sidecar(name, rows))
    return done


def clip_rows(chain: Chain, name: str, options: ExportOptions) -> pl.DataFrame:
    """Return the rows of a source's clips, in order."""
    rows = _read(chain, name)
    if options.kept:
        rows = rows.join(_kept(chain, name), on="key", how="semi", maintain_order="left")
    return rows if options.limit is None else rows.head(options.limit)


def clip_name(source: str, clip: Row) -> str:
    """Return where a clip goes."""
    return f"{source}/{clip['path']}.{clip['start_frame']:07d}-{clip['end_frame']:07d}-{clip['sha256'][:8]}.mp4"


def _read(chain: Chain, name: str) -> pl.DataFrame:
    split = chain.split[name]
    tables = [split.folder.read_rows(commit, _COLUMNS) for commit in split.commits]
    return pl.concat(tables).filter(pl.col("start_frame").is_not_null())


def _kept(chain: Chain, name: str) -> pl.DataFrame:
    selected = chain.select[name]
    columns = ["key", "drop_reason", "fail_reason"]
    tables = [selected.folder.read_rows(commit, columns) for commit in selected.commits]
    empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return pl.concat([empty, *tables]).filter(pl.col("drop_reason").is_null() & pl.col("fail_reason").is_null())


def _export(child: LineChild, film: Path, clip: Row, to: Store, name: str, done: Exported) -> None:
    with to.staging(name.rpartition("/")[0]) as staged:
        try:
            how = _written(child, film, staged, clip)
        except SampleError as error:
            done.failed[error.reason] += 1
            return
        done.bytes += staged.stat().st_size
        to.put_file(name, staged)
    setattr(done, how, getattr(done, how) + 1)


def _written(child: LineChild, film: Path, staged: Path, clip: Row) -> str:
    """Have one clip written; returns `copied` or `encoded`."""
    seconds = clip["end_seconds"] - clip["start_seconds"]
    frames = {"start_frame": clip["start_frame"], "end_frame": clip["end_frame"]}
    limit_s = 60 + _PER_SECOND_S * seconds + film.stat().st_size / _SLOWEST_BYTES_PER_S
    answer = child.ask({"film": str(film), "to": str(staged), **frames}, timeout_s=limit_s)
    return str(answer["how"])


def _sidecar(source: str, rows: pl.DataFrame) -> bytes:
    """Return captions and metadata of the clips by file, as a source of kind `videos` reads them."""
    return "".join(_sidecar_lines(source, rows)).encode()


def _sidecar_lines(source: str, rows: pl.DataFrame) -> Iterator[str]:
    for row in rows.iter_rows(named=True):
        described = json.loads(row["metadata"])
        described |= {"file": clip_name(source, row).partition("/")[2], "key": row["key"]}
        if row["caption"] is not None:
            described["caption"] = row["caption"]
        yield json.dumps(described, ensure_ascii=False, sort_keys=True) + "\n"


def render_exported(to: str, done: Exported) -> str:
    """Return what was done, for people."""
    failed = ", ".join(f"{reason} {number:,}" for reason, number in sorted(done.failed.items()))
    text = f"{to}: {done.copied:,} clips copied, {done.encoded:,} encoded again, {done.bytes / 2**20:,.1f} MiB"
    text += f"; {done.there:,} were there" if done.there else ""
    return text + (f"; failed: {failed}" if failed else "")
