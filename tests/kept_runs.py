"""Small runs on real ranks for the tests of what is kept: one store, one plan, one server of ranks for all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import run as run_process
from typing import Any

from tests.rank_server import RankServer

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.plans import Plan
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.plan import write_plan
from tokenmill.settings_train import PlanSettings, TrainSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import RunFolder
from tokenmill.train.job import TrainJob

SETTINGS: Mapping[str, Any] = {
    "device": "cpu", "keep": 99, "global_packs_per_step": 4, "schedule": "constant", "warmup_steps": 0, "lr": 3e-3,
    "tensorboard": False, "model": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "dropout": 0.1},
}  # fmt: skip
ENDLESS = 10**6
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Ended:
    """How ranks ended: exit codes (negative: a signal), what each said of its failure, the result of those that did."""

    codes: Sequence[int]
    errors: Mapping[int, str]
    result: Mapping[str, Any] | None
    log: str


class Bench:
    """Trains runs of one store.

    `small` is a folder on a disk of 800 kB that only the ranks see, None where there is none.
    """

    def __init__(self, root: Path, plan: Plan, server: RankServer, small: Path | None) -> None:
        self.root, self.plan, self.small = root, plan, small
        self._server, self._launches = server, 0
        self._report = root

    def job(self, run: str, **changes: Any) -> dict[str, Any]:
        settings = TrainSettings.model_validate({**SETTINGS, "run": run, **changes})
        job = TrainJob(root=str(self.root / "store"), plan=self.plan.folder.path, settings=settings)
        return job.model_dump(mode="json", by_alias=True)

    def start(self, *jobs: Mapping[str, Any], ranks: int = 2, **environment: str) -> list[int]:
        """Start ranks that train jobs one after the other; returns their process ids."""
        self._launches += 1
        self._report = self.root / f"launch-{self._launches}"
        return self._server.start(json.dumps(jobs), self._report, ranks, **environment)

    def ended(self) -> Ended:
        """Wait for the ranks that were started."""
        codes = self._server.ended()
        errors = {int(path.stem[6:]): json.loads(path.read_text())["message"] for path in self._report.glob("error-*")}
        result = self._report / "result.json"
        return Ended(
            codes=codes,
            errors=errors,
            result=json.loads(result.read_text()) if result.exists() else None,
            log="".join(path.read_text(errors="replace") for path in sorted(self._report.glob("log-*"))),
        )

    def train(self, *jobs: Mapping[str, Any], ranks: int = 2, **environment: str) -> Ended:
        """Train jobs one after the other to the end of the last, or of the ranks."""
        self.start(*jobs, ranks=ranks, **environment)
        return self.ended()

    def trained(self, *jobs: Mapping[str, Any], ranks: int = 2, **environment: str) -> Ended:
        """Train jobs that must come to their end."""
        ended = self.train(*jobs, ranks=ranks, **environment)
        assert list(ended.codes) == [0] * ranks, ended.log
        return ended

    def folder(self, run: str) -> RunFolder:
        return RunFolder(open_store(str(self.root / "store")), run)

    def path(self, run: str, name: str = "") -> Path:
        return self.root / "store" / "checkpoints" / run / name

    def rows(self, run: str, name: str = "metrics") -> list[dict[str, Any]]:
        path = self.path(run, f"{name}.jsonl")
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def figures(self, run: str) -> list[tuple[Any, ...]]:
        """Return what has to be the same bit for bit, by step."""
        names = ("step", "loss", "loss_text", "loss_vision", "grad_norm", "lr", "skipped")
        return [tuple(row.get(name) for name in names) for row in self.rows(run)]

    def tensors(self, run: str, step: int) -> dict[str, bytes]:
        """Return a checkpoint's tensors, by name."""
        folder = self.folder(run)
        checkpoint = folder.read(step)
        with folder.tensors(checkpoint) as tensors:
            return {name: tensors.read(name).numpy().tobytes() for name in checkpoint.tensors}


def spoil(path: Path, damage: str) -> None:
    """Damage a file as disks and killed copies do."""
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(
            data[: len(data) // 2] if damage == "cut off" else data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
        )


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@contextmanager
def opened_bench(root: Path) -> Iterator[Bench]:
    """Make the data and start a server of ranks, whose processes see a small disk if this machine allows it."""
    store, vocabulary = open_store(str(root / "store")), byte_vocabulary(32)
    snapshot = write_token_source(store, "mixed", vocabulary, Amounts(images=60, texts=60, shards=2))
    plan = write_plan(store, [snapshot], PlanSettings(context=128))
    small = root / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=800k none {small}"
    allowed = run_process(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode == 0
    within = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"] if allowed else []
    with RankServer("tests.kept_ranks", within=within) as server:
        yield Bench(root, plan, server, small if allowed else None)
