"""Samples that a plan leaves out by name: `plan.exclude` and the lists in `plan.exclude_files`.

What counts is the set of names, whatever the files are called and however they are written, so a list that moves makes
no new plan. The set is kept in the plan's folder, where workers and later readers find it: a million names are 20 MB
and 2 s from JSONL, 0.5 s from text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenmill.errors import ManifestError, RecipeError, StorageError
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.stagedir import StageDir, parse_table, table_bytes
from tokenmill.manifests.storage import Store, open_store
from tokenmill.settings_train import PhaseSettings

EXCLUSION_FILE = "excluded.parquet"
_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Exclusion:
    """Names to leave out, sorted and distinct: keys, or `source/key`."""

    names: pl.Series

    @cached_property
    def digest(self) -> str | None:
        """The identity of the set; None where it is empty."""
        return sha256_hex("\n".join(self.names.to_list()).encode("utf-8", "surrogatepass")) if len(self.names) else None

    def mask(self, source: str, keys: pl.Series) -> NDArray[np.bool_]:
        """Say which keys of a source are left out, bool (N,); 10,000 keys against a million names take 15 ms."""
        found = np.zeros(len(keys), np.bool_)
        if len(self.names):
            found |= self._holds(keys)
            found |= self._holds(pl.select(pl.concat_str([pl.lit(f"{source}/"), keys])).to_series())
        return found

    def _holds(self, names: pl.Series) -> NDArray[np.bool_]:
        hashes, known = self._by_hash
        asked = names.hash().to_numpy()
        places = np.searchsorted(hashes, asked)
        found = np.zeros(len(names), np.bool_)
        for number in np.flatnonzero(hashes[np.minimum(places, len(hashes) - 1)] == asked).tolist():
            place = int(places[number])
            while place < len(hashes) and hashes[place] == asked[number]:  # two names may have one hash
                found[number] |= known[place] == names[number]
                place += 1
        return found

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.uint64], pl.Series]:
        """The names in the order of their hashes, which mean nothing outside of this process."""
        hashes = self.names.hash().to_numpy()
        order = np.argsort(hashes)
        return hashes[order], self.names[order]

    def publish(self, folder: StageDir) -> None:
        """Write the set into a plan's folder, unless it is empty or there."""
        if len(self.names) and not folder.store.exists(folder.at(EXCLUSION_FILE)):
            folder.store.put(folder.at(EXCLUSION_FILE), table_bytes(pl.DataFrame({"name": self.names}), _SCHEMA))


NOTHING = Exclusion(pl.Series("name", [], pl.String))


def read_exclusion(settings: PhaseSettings, storage: Mapping[str, Any] | None = None) -> Exclusion:
    """Read what a plan leaves out; raises RecipeError naming a file that is not there or is no list."""
    found = [pl.Series("name", settings.exclude, pl.String)]
    found += [_names_in(path, storage) for path in settings.exclude_files]
    return Exclusion(pl.concat(found).unique().sort()) if any(len(one) for one in found) else NOTHING


def check_exclude_files(settings: PhaseSettings, storage: Mapping[str, Any] | None = None) -> None:
    """Refuse files that are not there, without reading them; raises RecipeError."""
    for path in settings.exclude_files:
        folder, name = _place(path)
        if not open_store(folder, storage).exists(name):
            raise _refused(path, "no such file; give the path or URL of a text, JSONL or Parquet file")


def exclusion_in(folder: StageDir) -> Exclusion:
    """Return the set that a plan's folder was made with; raises ManifestError if it is not what the plan names."""
    wanted = folder.config.settings.get("excluded")
    return NOTHING if wanted is None else _read(folder.store, folder.at(EXCLUSION_FILE), wanted)


@lru_cache(maxsize=4)
def _read(store: Store, name: str, wanted: str) -> Exclusion:
    found = Exclusion(parse_table(store.read_bytes(name))["name"])
    if found.digest != wanted:
        raise ManifestError(f"{name}: is not the list that this plan was made with; remove it and plan again")
    return found


def _names_in(path: str, storage: Mapping[str, Any] | None) -> pl.Series:
    folder, name = _place(path)
    try:
        data = open_store(folder, storage).read_bytes(name)
    except StorageError as error:
        raise _refused(path, f"cannot be read ({error})") from error
    if data[:4] == b"PAR1":
        return _in_parquet(path, data)
    try:
        text = data.decode("utf-8-sig")  # some editors begin a text with a mark
    except UnicodeDecodeError as error:
        raise _refused(path, f"neither Parquet nor a text in UTF-8 (byte {error.start})") from error
    is_json = text.lstrip()[:1] == "{"
    lines = _in_json(path, text) if is_json else (line.strip() for line in text.split("\n"))
    return pl.Series("name", [line for line in lines if line], pl.String)


def _in_parquet(path: str, data: bytes) -> pl.Series:
    try:
        table = parse_table(data)
    except ManifestError as error:
        raise _refused(path, str(error)) from error
    if "key" not in table.columns:
        raise _refused(path, f"has the columns {', '.join(table.columns)}; key is needed, source may stand beside it")
    key = pl.col("key").cast(pl.String)
    name = pl.concat_str([pl.col("source").cast(pl.String), key], separator="/") if "source" in table.columns else key
    return table.select(pl.coalesce(name, key).alias("name"))["name"].drop_nulls()


def _in_json(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            key, source = value["key"], value.get("source")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _refused(path, f"line {number} is no JSON object with a key") from error
        yield f"{source}/{key}" if source else str(key)


def _place(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder or ("/" if path.startswith("/") else "."), name


def _refused(path: str, why: str) -> RecipeError:
    return RecipeError(f"plan.exclude_files: {path}: {why}")
