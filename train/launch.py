"""Starting the ranks of a training run and waiting for them: what the command line calls."""

from __future__ import annotations

from tokenmill.errors import ManifestError, SchemaError
from tokenmill.manifests.plan_border import first_step
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.train.checkpoints import Checkpoint, RunFolder, exported_step, run_folder
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.ranks import OnRow, RankGroup, num_nodes
from tokenmill.train.restarts import run_ranks_again
from tokenmill.train.schedule import total_steps
from tokenmill.train.sequence_checks import check_ranks
from tokenmill.train.trackers import check_trackers


def launch(job: TrainJob, on_row: OnRow | None = None) -> TrainResult:
    """Train a job on `settings.ranks` processes of this machine and return how it ended.

    `on_row` is called with each new row of metrics while it runs. SIGTERM, SIGINT and SIGUSR1 to this process make the
    ranks save and stop. Ranks of which one died are started anew as often as the recipe says (`train.restarts`). A run
    that is finished and exported is left as it is, without starting any rank. Raises RecipeError or RunError with the
    ranks' own message, or the end of their log.
    """
    check_trackers(job.settings)
    finished = _finished(job)
    if finished is not None:
        return finished
    settings = job.settings
    check_ranks(settings.sequence_parallel, num_nodes() * settings.ranks)
    folder = run_folder(open_store(job.root, job.options), settings.run, settings.checkpoints)
    group = RankGroup(
        module="tokenmill.train.worker",
        job=job.model_dump_json(by_alias=True),
        folder=folder,
        ranks=settings.ranks,
        threads_per_rank=settings.threads_per_rank,
        device=settings.device,
    )
    found = run_ranks_again(
        group, on_row, lambda: _newest(folder), restarts=settings.restarts, wait_s=settings.restart_wait_s
    )
    if found is None:
        return TrainResult(step=_newest(folder), total_steps=_total(job), stopped=True, export=None)
    return TrainResult.from_json(found)


def _newest(folder: RunFolder) -> int:
    return max(folder.steps(), default=0)


def _total(job: TrainJob) -> int:
    plan = open_plan(open_store(job.root, job.options), job.plan)
    return total_steps(job.settings, plan.num_packs, first_step(plan.description))


def _finished(job: TrainJob) -> TrainResult | None:
    """Return the result of a run that has nothing left to do: same plan and model, all steps, exported."""
    store = open_store(job.root, job.options)
    folder = RunFolder(store, job.settings.run)
    steps = folder.steps()
    if not steps:
        return None
    checkpoint = _readable(folder, steps[-1])
    if checkpoint is None:
        return None
    plan = open_plan(store, job.plan)
    total = total_steps(job.settings, plan.num_packs, first_step(plan.description))
    is_same = (
        checkpoint.loader["plan_id"] == plan.plan_id
        and checkpoint.loader["global_packs"] == job.settings.global_packs_per_step
        and checkpoint.settings["model"] == job.settings.model.model_dump(mode="json")
    )
    if (
        not is_same
        or checkpoint.step < total
        or exported_step(folder, job.settings.export.precision) != checkpoint.step
    ):
        return None
    return TrainResult(step=checkpoint.step, total_steps=total, stopped=False, export=folder.at("export"))


def _readable(folder: RunFolder, step: int) -> Checkpoint | None:
    """Read a checkpoint's record; None where it is damaged, which is the ranks' to mend."""
    try:
        return folder.read(step)
    except SchemaError:
        raise
    except ManifestError:
        return None
