"""`tokenmill pairs`: preference pairs of drawn tokens and votes, or of a table of tokens, as shards for `kind: tokens`.

The folder is named by what it is made of, and its description is published last: made once, asking again costs a look.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenmill.errors import RecipeError, RunError, SampleError
from tokenmill.inspection import place_of
from tokenmill.manifests.archive import ArchiveWriter, npy_bytes
from tokenmill.manifests.identity import digest_of, short
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.archive_json import finite, json_text
from tokenmill.pipelines.drawing_jobs import read_job
from tokenmill.pipelines.drawn import drawn_rows
from tokenmill.pipelines.exported import find_export
from tokenmill.pipelines.generation import drawn_tokens, generated_name
from tokenmill.pipelines.pair_samples import PairSample, TokenPair, pair_of_row, pair_sample
from tokenmill.pipelines.preference_votes import check_files, count_votes, paired, voted_pairs
from tokenmill.pipelines.sources.tables import table_rows
from tokenmill.recipe import Recipe
from tokenmill.tokenize.segments import segments_to_json
from tokenmill.tokenize.vocabulary import build_vocabulary

DESCRIPTION = "pairs.json"
VERSION = 1
_PER_SHARD = 2_000
_PAIRED = ("file", "prompt", "ids", "number", "prompt_key")
_HASHED_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class PairFolder:
    """Where the pairs go; `identity` is what they are made of, `left_out` counts what became none, by reason."""

    store: Store
    path: str
    identity: Mapping[str, Any]
    left_out: Counter[str]

    @classmethod
    def of(cls, recipe: Recipe, to: str | None, identity: Mapping[str, Any], left_out: Counter[str]) -> PairFolder:
        """Take `to` (URL or local path), or a folder below the root that is named by the identity."""
        store = open_store(recipe.root if to is None else to, recipe.storage)
        path = f"preferences/{short(digest_of(identity))}" if to is None else ""
        return cls(store=store, path=path, identity=identity, left_out=left_out)

    def at(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.path}".rstrip("/")


def pairs_of_votes(recipe: Recipe, votes: str, to: str | None = None, job: str | None = None) -> dict[str, Any]:
    """Write a pair of each prompt that the recipe's model drew several times, by the votes of a table.

    With `job` the prompts are those of that table (`generate.jobs`), else the recipe's own. Raises ManifestError where
    nothing was drawn, RunError where a job is not complete or no pair is left, RecipeError for votes that are none or
    of other files, and for a job that the recipe does not have.
    """
    if job is not None:
        return _pairs_of_job(recipe, votes, to, job)
    store = open_store(recipe.root, recipe.storage)
    name = generated_name(find_export(store, recipe.train.last.run), recipe.generate)
    described, drawn = drawn_tokens(store, name)
    counted = count_votes((row for _, row in _rows(votes, recipe)), votes)
    pairs, left_out = voted_pairs(drawn, counted, build_vocabulary(described["vocabulary"]))
    identity = {"version": VERSION, "generated": name, "votes": counted}
    return _written(PairFolder.of(recipe, to, identity, left_out), pairs)


def _pairs_of_job(recipe: Recipe, votes: str, to: str | None, job: str) -> dict[str, Any]:
    """Pair what a job drew, unit by unit: the ids of one unit are in memory at a time."""
    drawn = read_job(recipe, job)
    counted = count_votes((row for _, row in _rows(votes, recipe)), votes)
    vocabulary = build_vocabulary(drawn.folder.config.settings["vocabulary"])
    check_files(counted, [name for commit in drawn.commits for name in drawn_rows(drawn, commit, ["file"])["file"]])
    left_out: Counter[str] = Counter()

    def pairs() -> Iterator[TokenPair]:
        made = 0
        for commit in drawn.commits:
            found, lost = paired(drawn_rows(drawn, commit, _PAIRED), counted, vocabulary, made)
            left_out.update(lost)
            made += len(found)
            yield from found

    identity = {"version": VERSION, "generated": drawn.name, "votes": counted}
    return _written(PairFolder.of(recipe, to, identity, left_out), pairs())


def pairs_of_table(recipe: Recipe, table: str, to: str | None = None) -> dict[str, Any]:
    """Write the pairs of a table (`pair_of_row`) in the recipe's vocabulary; rows that are none are counted."""
    vocabulary = build_vocabulary(recipe.tokenize.vocabulary)
    left_out: Counter[str] = Counter()

    def pairs() -> Iterator[TokenPair]:
        for number, row in _rows(table, recipe):
            try:
                if isinstance(row, SampleError):
                    raise row
                yield pair_of_row(str(row.get("key") or f"{number:06d}"), row, vocabulary)
            except SampleError as error:
                left_out[error.reason] += 1

    identity = {"version": VERSION, "vocabulary": vocabulary.fingerprint, "table": _sha256(table, recipe)}
    return _written(PairFolder.of(recipe, to, identity, left_out), pairs())


def _rows(path: str, recipe: Recipe) -> Iterator[tuple[int, Any]]:
    return table_rows(*_file(path, recipe))


def _file(path: str, recipe: Recipe) -> tuple[Store, str]:
    store, name = place_of(path, recipe.storage if "://" in path else {})
    if not name or not store.exists(name):
        raise RecipeError(f"{path}: there is no such table")
    return store, name


def _sha256(path: str, recipe: Recipe) -> str:
    store, name = _file(path, recipe)
    state = hashlib.sha256()
    with store.open(name) as stream:
        while data := stream.read(_HASHED_AT_ONCE):
            state.update(data)
    return state.hexdigest()


def _written(folder: PairFolder, pairs: Iterable[TokenPair]) -> dict[str, Any]:
    """Write shards and description, unless they are there; returns the description and where it is."""
    record = folder.at(DESCRIPTION)
    if not folder.store.exists(record):
        _publish(folder, pairs)
    described = json.loads(folder.store.read_bytes(record))
    if described["identity"] != dict(folder.identity):
        raise RecipeError(f"--to {folder.url}: holds pairs that are made of something else; name another folder")
    return {"folder": folder.url, **{name: value for name, value in described.items() if name != "identity"}}


def _publish(folder: PairFolder, pairs: Iterable[TokenPair]) -> None:
    _check_empty(folder)
    samples, shards = _samples(folder, pairs), list[tuple[str, int]]()
    while part := list(islice(samples, _PER_SHARD)):
        shards.append(_shard(folder, len(shards), part))
    if not shards:
        left_out = ", ".join(f"{reason} {number:,}" for reason, number in sorted(folder.left_out.items()))
        raise RunError(f"no pair is left: {left_out or 'there was none'}")
    described = {
        "identity": dict(folder.identity),
        "pairs": sum(number for _, number in shards),
        "left_out": dict(sorted(folder.left_out.items())),
        "shards": [name for name, _ in shards],
    }
    data = (json.dumps(described, indent=1, sort_keys=True) + "\n").encode()
    folder.store.put_exclusive(folder.at(DESCRIPTION), data)


def _check_empty(folder: PairFolder) -> None:
    """Refuse a folder that somebody named and that has shards; below our own names a killed run left the same ones."""
    shards = [entry for entry in folder.store.files(folder.path) if entry.path.endswith(".tar")]
    if shards and not folder.path:
        raise RecipeError(f"--to {folder.url}: holds other shards, which would be read as pairs; name an empty folder")


def _samples(folder: PairFolder, pairs: Iterable[TokenPair]) -> Iterator[tuple[TokenPair, PairSample]]:
    for pair in pairs:
        try:
            yield pair, pair_sample(pair)
        except SampleError as error:
            folder.left_out[error.reason] += 1


def _shard(folder: PairFolder, number: int, samples: Sequence[tuple[TokenPair, PairSample]]) -> tuple[str, int]:
    """Write a shard; returns its name and how many pairs it has."""
    with folder.store.staging(folder.path) as staged:
        with ArchiveWriter(staged) as writer:
            for pair, sample in samples:
                writer.add(pair.key, _members(pair, sample))
        name = f"{number:05d}-{writer.sha256[:8]}.tar"
        folder.store.put_file(folder.at(name), staged)
    return name, len(samples)


def _members(pair: TokenPair, sample: PairSample) -> dict[str, bytes]:
    told = {name: finite(value) for name, value in pair.about.items()} | {"segments": segments_to_json(sample.segments)}
    members = {"text.npy": npy_bytes(sample.text_ids), "json": json_text(told).encode("utf-8", "backslashreplace")}
    return members | ({"codes.npy": npy_bytes(sample.codes)} if len(sample.codes) else {})
