"""Starting the ranks of a training run and waiting for them: what the command line calls."""

from __future__ import annotations

from tokenmill.manifests.plan_border import first_step
from tokenmill.manifests.plans import open_plan
from tokenmill.manifests.storage import open_store
from tokenmill.train.checkpoints import RunFolder, exported_step
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.ranks import OnRow, RankGroup, num_nodes, run_ranks
from tokenmill.train.schedule import total_steps
from tokenmill.train.sequence_checks import check_ranks


def launch(job: TrainJob, on_row: OnRow | None = None) -> TrainResult:
    """Train a job on `settings.ranks` processes of this machine and return how it ended.

    `on_row` is called with each new row of metrics while it runs. SIGTERM and SIGINT to this process make the ranks
    save and stop. A run that is finished and exported is left as it is, without starting any rank. Raises RecipeError
    or RunError with the ranks' own message, or the end of their log.
    """
    finished = _finished(job)
    if finished is not None:
        return finished
    check_ranks(job.settings.sequence_parallel, num_nodes() * job.settings.ranks)
    group = RankGroup(
        module="tokenmill.train.worker",
        job=job.model_dump_json(by_alias=True),
        folder=RunFolder(open_store(job.root, job.options), job.settings.run),
        ranks=job.settings.ranks,
        threads_per_rank=job.settings.threads_per_rank,
        device=job.settings.device,
    )
    return TrainResult.from_json(run_ranks(group, on_row))


def _finished(job: TrainJob) -> TrainResult | None:
    """Return the result of a run that has nothing left to do: same plan and model, all steps, exported."""
    store = open_store(job.root, job.options)
    folder = RunFolder(store, job.settings.run)
    steps = folder.steps()
    if not steps:
        return None
    plan, checkpoint = open_plan(store, job.plan), folder.read(steps[-1])
    total = total_steps(job.settings, plan.num_packs, first_step(plan.description))
    is_same = (
        checkpoint.loader["plan_id"] == plan.plan_id
        and checkpoint.loader["global_packs"] == job.settings.global_packs_per_step
        and checkpoint.settings["model"] == job.settings.model.model_dump(mode="json")
    )
    if not is_same or checkpoint.step < total or exported_step(folder) != checkpoint.step:
        return None
    return TrainResult(step=checkpoint.step, total_steps=total, stopped=False, export=folder.at("export"))
