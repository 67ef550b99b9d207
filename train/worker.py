"""One rank of a training run: `python -m tokenmill.train.worker JOB REPORT`, started by the launcher.

JOB is a file with a `TrainJob`; REPORT is described in `rank_process.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.rank_process import rank_main


def train(text: str, rows: Path) -> TrainResult:
    """Train the job that a JSON text describes; its rows also go to the file `rows`."""
    job = TrainJob.model_validate_json(text)
    import torch

    if job.settings.threads_per_rank:
        torch.set_num_threads(job.settings.threads_per_rank)
    from tokenmill.train import loop

    return loop.train(job, rows)


if __name__ == "__main__":
    sys.exit(rank_main(sys.argv[1:], train))
