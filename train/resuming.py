"""Going on from a checkpoint: at the start of a launch, and when the guard goes back.

A damaged newest checkpoint (record cut off, a file missing or with another digest) is set aside with a warning, and the
one before it is gone on from: the run repeats a few steps instead of waiting for somebody. With none before it the run
is refused; beginning anew would throw away what may still be mended.
"""

from __future__ import annotations

import logging

import torch.distributed as dist

from tokenmill.errors import ManifestError, RunError, SchemaError
from tokenmill.train.checkpoints import Checkpoint
from tokenmill.train.continuing import check_begun
from tokenmill.train.model import Batch
from tokenmill.train.packs import filler_pack
from tokenmill.train.parameters import set_step, wake_optimizer
from tokenmill.train.saving import restore
from tokenmill.train.training_run import Run

log = logging.getLogger(__name__)


def resume(run: Run) -> int:
    """Restore the newest whole checkpoint, if there is one, and return the number of steps done.

    Raises RecipeError where the checkpoints' place elsewhere is that of another root.
    """
    if run.rank == 0:
        run.folder.claim()
        run.folder.discard_unfinished()
    dist.barrier()
    if not run.folder.steps():
        check_begun(run.loader.plan, run.settings.run)
        if run.settings.guard.actions != {"stop"}:
            wake(run)  # the first steps may be refused, and a checkpoint needs states
            set_step(run.engine, 0)
        return run.first_step
    wake(run)
    done = restore_newest(run)
    log.info("going on from step %d of %d", done, run.total_steps)
    return done


def restore_newest(run: Run) -> int:
    """Put the newest whole checkpoint into an engine whose optimizer is awake; returns the number of steps done.

    Raises RunError if none is whole, SchemaError for one of a newer tokenmill.
    """
    while True:
        steps = run.folder.steps()
        try:
            return _restored(run, run.folder.read(steps[-1]))
        except SchemaError:
            raise
        except ManifestError as error:
            if len(steps) == 1:
                raise RunError(
                    f"train: the only checkpoint of run {run.settings.run} is damaged: {error}; mend it, or give the "
                    "run another name (train.run) to begin anew"
                ) from error
            log.warning("step %d is damaged, going on from step %d instead: %s", steps[-1], steps[-2], error)
        dist.barrier()  # every rank has read what is set aside now
        if run.rank == 0:
            run.folder.set_aside(steps[-1])
        dist.barrier()


def wake(run: Run) -> None:
    """Make Adam create its states, so that a checkpoint can be put into them or taken from them."""
    wake_optimizer(run.engine, Batch.of(filler_pack(run.loader.vocabulary.pad), run.device), run.loader.micro_steps)


def _restored(run: Run, checkpoint: Checkpoint) -> int:
    done = run.first_step + run.loader.step_of(checkpoint.loader)
    adam_steps = checkpoint.step - checkpoint.guard.get("discarded", 0)
    restore(run.engine, run.model, run.folder, checkpoint, adam_steps)
    run.guard.load(checkpoint.guard)
    return done
