"""A small source whose samples are asked about: shards, a recipe, what was asked, and what stands on disk."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from tests import tiny
from tests.asked_captioner import NAME, WHERE
from tests.harness import Outcome, run_alone

from tokenmill.captions.captioner import ENTRY_POINT_GROUP
from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.stagedir import StageDir
from tokenmill.pipelines.answer_journal import journal_rows
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.recipe import Recipe, check_recipe

PICTURES = [tiny.picture(number, 16) for number in range(4)]
_METADATA = "Metadata-Version: 2.1\nName: asked\nVersion: 1\n"


@dataclass(kw_only=True)
class AskedRoot:
    """Data, a recipe and a root in a folder; what changes of the recipe is given to `run`."""

    folder: Path
    root: str = ""
    shards: int = 2
    samples: int = 6
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.root or str(self.folder / "root")
        (self.folder / "data").mkdir(parents=True)
        self.faults.write_text("{}")
        for shard in range(self.shards):
            self.write_shard(shard, [f"{shard:02d}{number:03d}" for number in range(self.samples)])

    @property
    def log(self) -> Path:
        return self.folder / "asked.log"

    @property
    def faults(self) -> Path:
        return self.folder / "faults.json"

    def write_shard(self, shard: int | str, keys: Sequence[str], **metadata: Any) -> None:
        """Write a shard whose samples have a title each, and pictures of which some are the same."""
        path = self.folder / "data" / (f"{shard:05d}.tar" if isinstance(shard, int) else shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ArchiveWriter(path) as writer:
            for number, key in enumerate(keys):
                described = json.dumps({"title": f"no. {key}", "place": number, **metadata}).encode()
                writer.add(key, {"png": PICTURES[number % len(PICTURES)], "txt": b"words", "json": described})

    def column(self, **settings: Any) -> dict[str, Any]:
        """Return a column that asks for each sample's title."""
        column = {"engine": NAME, "log": str(self.log), "faults": str(self.faults), "prompt": "Say {metadata.title}"}
        return column | settings

    def value(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        recipe = tiny.recipe(self.folder / "data", self.root, sources=["scenes"])
        recipe["sources"]["scenes"]["url"] = str(self.folder / "data")
        recipe["filter"] = {"image": {"scorers": {"resolution": {}}, "rules": {"resolution": "min_side_px >= 8"}}}
        recipe["caption"] = {"image": {"columns": {"dense": self.column()}}}
        recipe["execution"]["unit_rows"] = 4
        for path, new in {**self.changes, **(changes or {})}.items():
            *parents, last = path.split(".")
            place = recipe
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = new
        return recipe

    def recipe(self, changes: Mapping[str, Any] | None = None) -> Recipe:
        return check_recipe(self.value(changes), "asked")

    def write(self, changes: Mapping[str, Any] | None = None) -> Path:
        """Write the recipe; returns its path."""
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.value(changes), sort_keys=False))
        return path

    def run(self, changes: Mapping[str, Any] | None = None, **options: Any) -> Chain:
        """Run up to the choice among captions, in this process."""
        chain = Chain(recipe=self.recipe(changes), options=ChainOptions(quiet=True, **options))
        _ = chain.choose
        return chain

    def run_until_selected(self, changes: Mapping[str, Any] | None = None) -> None:
        """Run all that comes before asking, in this process."""
        _ = Chain(recipe=self.recipe(changes), options=ChainOptions(quiet=True)).select

    def command(self, *arguments: str, changes: Mapping[str, Any] | None = None, **environment: str) -> Outcome:
        """Run a command line in a process of its own; `run --until caption` by default."""
        given = arguments or ("run", str(self.write(changes)), "--until", "caption")
        return run_alone(*given, environment=environment_with_captioner(self.folder) | environment)

    def fail(self, **faults: str) -> None:
        """Say what happens to samples from now on, by key."""
        self.faults.write_text(json.dumps({f"Say no. {key}": fault for key, fault in faults.items()}))

    def asked(self) -> Counter[str]:
        """Return how often each sample was asked about."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(json.loads(line)[0] for line in lines)

    def forget(self) -> None:
        """Begin a new log."""
        self.log.unlink(missing_ok=True)

    @property
    def keys(self) -> list[str]:
        return [f"{shard:02d}{number:03d}" for shard in range(self.shards) for number in range(self.samples)]


def environment_with_captioner(folder: Path) -> dict[str, str]:
    """Put the captioner beside tokenmill as an installed package of another, for children and Ray's workers."""
    package = folder / "site" / "asked-1.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "METADATA").write_text(_METADATA)
    (package / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{NAME} = {WHERE}\n")
    here = Path(__file__).parents[1]
    paths = [package.parent, here / "src", here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(map(str, paths))}


def answers_of(chain: Chain, column: str = "dense") -> Snapshot:
    return chain.caption["scenes", column]


def table_of(snapshot: Snapshot) -> pl.DataFrame:
    """Return all answers of a snapshot's units."""
    return pl.concat(snapshot.folder.read_rows(commit) for commit in snapshot.commits)


def chosen_of(chain: Chain) -> dict[str, list[str] | None]:
    """Return each sample's captions."""
    snapshot = chain.choose["scenes"]
    tables = [snapshot.folder.read_rows(commit, ["key", "captions"]) for commit in snapshot.commits]
    return dict(pl.concat(tables).iter_rows())


def paid_in(folder: StageDir) -> Counter[str]:
    """Add up the totals of a folder's newest records."""
    sums: Counter[str] = Counter()
    for unit, attempt in folder.record_names().items():
        sums.update(folder.read_commit(unit, attempt).totals)
    return sums


def journaled_in(folder: StageDir) -> list[dict[str, Any]]:
    """Return every line of every journal."""
    paths = [entry.path for entry in folder.store.files(folder.at("journal"))]
    return [row for path in paths for row in journal_rows(folder.store.read_bytes(path))]
