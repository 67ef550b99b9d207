"""How many ids a second does the loader give, beside other loaders with the same samples?

    python benchmarks/loader.py [--samples N] [--rounds N] [--json]      # the peers: make bench-peers, once

A made-up source of pictures of 64×64 codes with captions (60 %) and texts (40 %), context 5,120, one epoch, warm cache,
with 0 and with 2 workers: tokenmill (threads; and inside a torch DataLoader, for the record), litData, Hugging Face
datasets (Arrow), webdataset, MosaicML Streaming, Megatron-Energon, and a plain copy of as many ids, uint16 to int64,
from a mapped file. Peers read their own format, each at the fastest of its settings (tried first, all listed); their
samples are packed first-fit and assembled by compiled code that is the same for all (benchmarks/loader_peers/). Every
one has a process of its own that stays warm; rounds go through all of them in turn, and medians are compared. An epoch
of tokenmill begins with opening the plan, those of peers with what they keep open. All must give the same ids.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS_PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
CONTEXT = 5_120
CODEBOOK = 2_048
WORKERS = (0, 2)
OURS, COPY = "tokenmill", "copy"
PEERS = {
    "litData": "lit_data",
    "Hugging Face datasets": "arrow",
    "webdataset": "web_dataset",
    "MosaicML Streaming": "mds",
    "Megatron-Energon": "energon",
}
QUIET = {"HF_HUB_OFFLINE": "1", "LITDATA_DISABLE_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
Speeds = dict[tuple[str, int], list[dict[str, float]]]
WAYS = ("packs", "samples")  # of a DataLoader's workers: loader_peers/delivery.py


class MissingError(Exception):
    """A peer that is not installed."""


class Contestant:
    """A loader in a process of its own, told to go through an epoch by a line."""

    def __init__(self, name: str, module: str, python: Path, folder: Path) -> None:
        self.name = name
        command = (python, "-m", "benchmarks.loader_peers.serve", module, folder / module)
        self._log = (folder / f"{module}.log").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=REPOSITORY,
            env={"PATH": str(python.parent), "PYTHONPATH": str(REPOSITORY / "src"), "HOME": str(Path.home()), **QUIET},
        )  # fmt: skip
        self.best: dict[int, dict[str, Any]] = {}
        self.tried: list[dict[str, Any]] = []

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Put a question; raises MissingError if the package is not there, RuntimeError if it failed otherwise."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        line = stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended, see {self._log.name}"}
        if "missing" in answer:
            raise MissingError(answer["missing"])
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def speed(self, **how: Any) -> dict[str, float]:
        """Go through an epoch; returns ids a second, and a second of CPU time of the training process."""
        return self.ask(**how)

    def tune(self, settings: Sequence[str]) -> None:
        """Try every setting, warm, and keep the fastest for each number of workers; one that fails is noted."""
        for workers in WORKERS:
            for setting, way in combinations(self.name, settings, workers):
                how = {"setting": setting, "workers": workers, "way": way}
                try:
                    self.speed(**how)
                    self.tried.append({**how, **self.speed(**how)})
                except RuntimeError as error:
                    self.tried.append({**how, "error": str(error)[:500]})
            found = [tried for tried in self.tried if tried["workers"] == workers and "error" not in tried]
            if not found:
                raise MissingError(f"no setting worked: {self.tried[-1]['error']}")
            self.best[workers] = max(found, key=lambda tried: tried["tokens_per_s"])

    def round(self, workers: int) -> dict[str, float]:
        return self.speed(**_how(self, workers))


def combinations(name: str, settings: Sequence[str], workers: int) -> Iterator[tuple[str, str]]:
    for setting in settings:
        for way in WAYS if workers and name in PEERS else ("",):
            yield setting, way


def write_samples(folder: Path, num_samples: int) -> dict[str, Any]:
    """Write the source and its plan, and tell where they are."""
    store = open_store(str(folder / "store"))
    vocabulary = byte_vocabulary(CODEBOOK)
    amounts = Amounts(
        images=num_samples * 6 // 10,
        texts=num_samples * 4 // 10,
        side=64,
        text_words=150,
        shards=max(4, num_samples // 1_000),
    )
    snapshot = write_token_source(store, "made-up", vocabulary, amounts)
    templates = {"image": {"generation": 1.0}, "text": {"language": 1.0}}
    plan = write_plan(store, [snapshot], PlanSettings(context=CONTEXT, templates=templates))
    (folder / "source").symlink_to(str(store.local_path(snapshot.folder.path)))
    (folder / "plan.json").write_text(json.dumps({"root": store.url, "plan": plan.folder.path}))
    return {"samples": num_samples, "context": CONTEXT, "fill": plan.description["fill"], "packs": plan.num_packs}


@dataclass
class Field:
    """Everybody who could be started and tuned, and who could not."""

    contestants: list[Contestant] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def enter(self, contestant: Contestant) -> None:
        try:
            written = contestant.ask(write=True)
            contestant.tune(written["settings"])
        except (MissingError, RuntimeError) as error:
            self.missing[contestant.name] = str(error)
        else:
            self.versions[contestant.name] = written["version"]
            self.contestants.append(contestant)
        print(f"{contestant.name}: {self.missing.get(contestant.name) or contestant.best}", file=sys.stderr)

    def compete(self, rounds: int) -> Speeds:
        """Go through all of them in turn, again and again."""
        speeds: Speeds = {(one.name, workers): [] for one in self.contestants for workers in WORKERS}
        for _ in range(rounds):
            for one in self.contestants:
                for workers in WORKERS:
                    speeds[one.name, workers].append(one.round(workers))
        return speeds


def measure(folder: Path, num_samples: int, rounds: int) -> dict[str, Any]:
    found = write_samples(folder, num_samples)
    entered = Field()
    with ExitStack() as opened:
        for name, module in {OURS: "plan_loader", COPY: "plain_copy", **PEERS}.items():
            python = PEERS_PYTHON if name in PEERS and PEERS_PYTHON.exists() else Path(sys.executable)
            entered.enter(opened.enter_context(Contestant(name, module, python, folder)))
        if {OURS, COPY} & set(entered.missing):
            raise RuntimeError(f"cannot measure: {entered.missing}")
        speeds = entered.compete(rounds)
        ours = entered.contestants[0]
        in_dataloader = [ours.speed(setting="torch DataLoader", workers=2, way="") for _ in range(rounds + 1)][1:]
        checks = {f"{one.name}, {workers} workers": one.ask(check=True, **_how(one, workers))
                  for one in entered.contestants if one.name != COPY for workers in WORKERS}  # fmt: skip
    compare(checks)
    rows = {
        one.name: {f"{workers}_workers": _row(speeds[one.name, workers], one.best[workers]) for workers in WORKERS}
        for one in entered.contestants
    }
    return {
        **found,
        "rounds": rounds,
        "versions": entered.versions,
        "missing": entered.missing,
        "delivered": checks,
        "loaders": rows,
        "tokenmill_in_torch_dataloader": {"2_workers": _row(in_dataloader, {})},
        "tried": {one.name: one.tried for one in entered.contestants},
        **ratios({key: _row(runs, {})["tokens_per_s"] for key, runs in speeds.items()}),
    }


def compare(delivered: dict[str, dict[str, int]]) -> None:
    """Raise RuntimeError unless all peers gave the same ids, and tokenmill but for markers where long texts are cut."""
    sums = {name: (found["tokens"], found["ids"]) for name, found in delivered.items()}
    peers = {found for name, found in sums.items() if not name.startswith(OURS)}
    far = [
        name
        for name in sums
        for peer in peers
        if any(abs(1 - a / b) > 1e-4 for a, b in zip(sums[name], peer, strict=True))
    ]
    if len(peers) > 1 or far:
        raise RuntimeError(f"not the same ids came: {delivered}")


def _how(contestant: Contestant, workers: int) -> dict[str, Any]:
    return {name: contestant.best[workers][name] for name in ("setting", "workers", "way")}


def _row(runs: Sequence[dict[str, float]], best: dict[str, Any]) -> dict[str, Any]:
    speeds = [run["tokens_per_s"] for run in runs]
    row: dict[str, Any] = {"tokens_per_s": median(speeds), "least": min(speeds), "most": max(speeds)}
    if best.get("workers") == 0:
        row["tokens_per_cpu_s"] = median(run["tokens_per_cpu_s"] for run in runs)
    return row | {name: best[name] for name in ("setting", "way") if best.get(name)}


def ratios(speeds: dict[tuple[str, int], float]) -> dict[str, Any]:
    """Compare with the best peer and with the copy, for each number of workers."""
    found: dict[str, Any] = {"ratio_vs_copy": {}, "best_peer": {}}
    against = []
    for workers in WORKERS:
        ours = speeds[OURS, workers]
        found["ratio_vs_copy"][f"{workers}_workers"] = ours / speeds[COPY, workers]
        peers = {name: speed for (name, number), speed in speeds.items() if number == workers and name in PEERS}
        if peers:
            best = max(peers, key=lambda name: peers[name])
            against.append(ours / peers[best])
            found["best_peer"][f"{workers}_workers"] = {"name": best, "ratio": against[-1]}
    return found | {"ratio_vs_best_peer": min(against) if against else None}


def show(found: dict[str, Any]) -> None:
    for name, rows in found["loaders"].items():
        figures = ", ".join(f"{row['tokens_per_s'] / 1e6:.0f}" for row in rows.values())
        print(f"{name} {found['versions'][name]}: {figures} million ids/s with 0, 2 workers")
    for name, why in found["missing"].items():
        print(f"{name}: not measured ({why}); make bench-peers installs it")
    row = found["tokenmill_in_torch_dataloader"]["2_workers"]
    print(f"tokenmill inside a torch DataLoader: {row['tokens_per_s'] / 1e6:.0f} million ids/s with 2 workers")
    print(f"times the best peer: {found['best_peer']}; the smaller: {found['ratio_vs_best_peer']}")
    print(f"of the plain copy: {found['ratio_vs_copy']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.samples, options.rounds)
    print(json.dumps(found, indent=1)) if options.json else show(found)


if __name__ == "__main__":
    main()
