"""One rank of a tokenizer's training: `python -m tokenmill.train.vision_worker JOB REPORT`, started by the launcher.

JOB is a file with a `TokenizerJob`; REPORT is described in `rank_process.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenmill.train.job import TrainResult
from tokenmill.train.rank_process import rank_main
from tokenmill.train.vision_job import TokenizerJob


def train(text: str, rows: Path) -> TrainResult:
    """Train the job that a JSON text describes; its rows also go to the file `rows`."""
    job = TokenizerJob.model_validate_json(text)
    import torch

    if job.settings.threads_per_rank:
        torch.set_num_threads(job.settings.threads_per_rank)
    from tokenmill.train.vision_loop import train_tokenizer

    return train_tokenizer(job, rows)


if __name__ == "__main__":
    sys.exit(rank_main(sys.argv[1:], train))
