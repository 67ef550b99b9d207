"""What every rank's process does around its training: JOB and REPORT on the command line, and how it tells its end.

In the folder REPORT one rank a node leaves `result.json`, rank 0 the rows of metrics (`rows.jsonl`), and a rank that
fails leaves `error-<rank>.json`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tokenmill.errors import TokenmillError
from tokenmill.train.end_signals import TO_RANKS
from tokenmill.train.job import TrainResult


def rank_main(arguments: list[str], train: Callable[[str, Path], TrainResult]) -> int:
    """Run one rank to its end: `train(text of JOB, file for rows)`; returns the exit code."""
    job, report = Path(arguments[0]).read_text(encoding="utf-8"), Path(arguments[1])
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    try:
        _end_well(train(job, report / "rows.jsonl"), report)
    except TokenmillError as error:
        _tell(report, rank, type(error).__name__, str(error), error.exit_code)
        logging.getLogger(__name__).error("%s", error)
        return error.exit_code
    except Exception as error:
        _tell(report, rank, type(error).__name__, f"{type(error).__name__}: {error}", 1)
        traceback.print_exc()
        return 1
    return 0


def error_name(rank: int) -> str:
    """Name the file in which a rank tells why it failed."""
    return f"error-{rank:05d}.json"


def _end_well(result: TrainResult, report: Path) -> None:
    import torch

    # Python gives signals back their default while it shuts down; a second SIGTERM would then look like a failed rank.
    for number in TO_RANKS:
        signal.signal(number, signal.SIG_IGN)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # one a node: the launcher of each waits for it
        (report / "result.json").write_text(json.dumps(asdict(result)), encoding="utf-8")
    torch.distributed.destroy_process_group()


def _tell(report: Path, rank: int, kind: str, message: str, exit_code: int) -> None:
    value = {"message": message, "exit_code": exit_code, "kind": kind, "at": time.time()}
    (report / error_name(rank)).write_text(json.dumps(value), encoding="utf-8")
