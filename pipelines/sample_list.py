"""Lists the kept pictures and clips of a recipe for the training of its tokenizer (`manifests/sample_list.py`).

Which samples are held out is the same pure function of a sample's name as in a plan (`plan_draws.py`): with equal
shares the tokenizer never sees what the model is measured on. Pictures of the same bytes as a held-out one are held out
with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from tokenmill.errors import ManifestError, RecipeError, RunError, StorageError
from tokenmill.manifests import sample_list
from tokenmill.manifests.sample_list import SampleListDescription
from tokenmill.pipelines.chain import Chain
from tokenmill.pipelines.plan_draws import uniform
from tokenmill.pipelines.selected import Selected
from tokenmill.pipelines.sources.source import open_source
from tokenmill.settings_tokenizer import TokenizerTraining


def sources_of_training(chain: Chain, training: TokenizerTraining) -> list[str]:
    """Name the sources to train on, in their order; raises RecipeError for one that is none or holds no pictures."""
    able = sorted(name for name, modality in chain.modality.items() if modality in ("image", "video"))
    for name in training.sources:
        if name not in able:
            allowed = ", ".join(able) or "none"
            raise RecipeError(f"tokenizer.sources.{name}: no image or video source of that name; allowed: {allowed}")
    if not able:
        raise RecipeError("tokenizer: the recipe has no image or video source to train on")
    return sorted(training.sources) or able


def places_of(chain: Chain, names: Sequence[str]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return where each source's raw files lie: URL and options of its store."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name in names:
        store = open_source(name, chain.pieces[name][0].settings).store if chain.pieces[name] else chain.store
        found[name] = (store.url, store.options)
    return found


def write_sample_list(
    chain: Chain, training: TokenizerTraining, folder: str, *, is_begun: bool
) -> SampleListDescription:
    """Write the list of the kept samples to a folder of the root, or find that it is there.

    The same samples in another place, or a table that is damaged, are written anew.

    Raises:
        RecipeError: the run `is_begun`, and was so with other samples. RunError: nothing was kept.
    """
    names = sources_of_training(chain, training)
    parts = [_rows(name, part, training.held_out) for name in names for part in chain.selected[name]]
    rows = _with_copies(pl.concat(parts)) if parts else pl.DataFrame(schema=dict(sample_list.COLUMNS))
    if rows.filter(~pl.col("held_out")).is_empty():
        raise RunError(f"tokenizer: nothing to train on was kept of {', '.join(names)}; see tokenmill status")
    found = sample_list.describe(rows, {name: chain.select[name].digest for name in names})
    before = sample_list.read_list_description(chain.store, folder)
    if before is not None and before.digest == found.digest and _lies_there(chain, folder, rows):
        return before
    if before is not None and before.digest != found.digest and is_begun:
        raise RecipeError(
            f"tokenizer.run: {training.run!r} was begun on other samples ({'; '.join(before.differences(found))}); "
            "give it another name, or the selection it had"
        )
    sample_list.write(chain.store, folder, rows, found)
    return found


def _with_copies(rows: pl.DataFrame) -> pl.DataFrame:
    """Hold out the copies of held-out pictures too; clips of one film have its digest, and are no copies."""
    is_picture = pl.col("start_frame").is_null()
    copied = rows.filter(is_picture & pl.col("held_out"))["sha256"].implode()
    return rows.with_columns(held_out=pl.col("held_out") | (is_picture & pl.col("sha256").is_in(copied)))


def _lies_there(chain: Chain, folder: str, rows: pl.DataFrame) -> bool:
    """Say whether a folder's table holds these rows, places included."""
    try:
        return sample_list.read_list(chain.store, folder)[0].equals(rows)
    except (ManifestError, StorageError):
        return False


def _rows(source: str, part: Selected, held_out: float) -> pl.DataFrame:
    """Return the kept samples of a slice, as rows of the list."""
    rows = part.read()
    archive = part.piece.commit.data.name if part.piece.commit.file("data") else None
    if "packed" in rows.columns and archive is not None:
        packed = part.piece.folder.at(archive)
        rows = rows.with_columns(path=pl.when("packed").then(pl.lit(packed)).otherwise("path"))
    is_held_out = [uniform("held out", f"{source}/{key}") < held_out for key in rows["key"]]
    rows = rows.with_columns(source=pl.lit(source), held_out=pl.Series(is_held_out, dtype=pl.Boolean))
    missing = [pl.lit(None).cast(kind).alias(name) for name, kind in sample_list.COLUMNS.items() if name not in rows]
    rows = rows.with_columns(missing).with_columns(packed=pl.col("packed").fill_null(False))
    return rows.select(pl.col(name).cast(kind) for name, kind in sample_list.COLUMNS.items())
