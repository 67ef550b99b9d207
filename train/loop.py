"""The training loop: steps of a plan through a DeepSpeed engine, on every rank (training_step.py has one of them)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tokenmill.errors import DivergedError
from tokenmill.train.checkpoint_saver import CheckpointSaver
from tokenmill.train.checkpoints import Checkpoint
from tokenmill.train.export import export_checkpoint
from tokenmill.train.guard import Verdict
from tokenmill.train.guard_log import GuardLog
from tokenmill.train.job import TrainJob, TrainResult
from tokenmill.train.preference import Preference
from tokenmill.train.reference_opening import open_reference
from tokenmill.train.resuming import restore_newest, resume
from tokenmill.train.run_log import RunLog
from tokenmill.train.schedule import learning_rate
from tokenmill.train.steps import Step
from tokenmill.train.stop_file import StopFile
from tokenmill.train.stopping import StopRequest
from tokenmill.train.tally import finite
from tokenmill.train.training_run import Run, start
from tokenmill.train.training_step import Taken, speed_of, take_step
from tokenmill.train.world import await_first


def train(job: TrainJob, progress: Path | None = None) -> TrainResult:
    """Train a job to its end, or until asked to stop; resumes from the newest checkpoint by itself.

    `progress` is a file that gets this launch's rows of metrics, for whoever watches.
    """
    stop = StopRequest()
    run = start(job)
    if job.settings.preference is not None:
        reference = open_reference(run.opening, lambda: bool(stop))
        if reference is None:
            done = max(run.folder.steps(), default=run.first_step)
            return TrainResult(step=done, total_steps=run.total_steps, stopped=True, export=None)
        run = replace(
            run, preference=Preference(settings=job.settings.preference, plan=run.loader.plan, reference=reference)
        )
    done = resume(run)
    if done < run.total_steps:
        done = Loop(run, done, stop, progress).to_end()
    export = None
    dist.barrier()
    if done >= run.total_steps:
        export = run.folder.at("export")
        if run.rank == 0:
            _export(run, done)
        await_first(f"export of {run.settings.run}, step {done}")  # or other machines would begin the next phase alone
    return TrainResult(step=done, total_steps=run.total_steps, stopped=done < run.total_steps, export=export)


def _export(run: Run, done: int) -> None:
    """Export the last checkpoint, with the fingerprints of what made its plan's ids."""
    plan = run.loader.plan.description
    names = ("vocabulary_fingerprint", "vision_fingerprint")
    fingerprints = {name: plan[name] for name in names if plan.get(name)}
    export_checkpoint(run.folder, done, plan.get("areas"), run.settings.export, fingerprints)


class Loop:
    """One launch of a run, from the step where it goes on."""

    def __init__(self, run: Run, done: int, stop: StopRequest, progress: Path | None) -> None:
        self._run, self._done, self._stop = run, done, stop
        self._stop_file = StopFile(run.folder, run.rank)
        self._saver = CheckpointSaver(run.folder, run.settings)
        self._guard_log = GuardLog(run.folder, run.rank)
        self._guard_log.begin(run.guard, done)
        self._log = RunLog(run.folder, run.settings, done, progress)

    def to_end(self) -> int:
        """Take steps until the last, or until asked to stop; returns how many are done."""
        self._run.engine.train()
        with closing(self._log), closing(self._saver):
            if "roll_back" in self._run.settings.guard.actions and not self._run.folder.steps():
                self._save()  # there has to be something to go back to
            while not self._stretch():
                self._go_back()
        self._stop_file.obeyed()
        return self._done

    def _stretch(self) -> bool:
        """Take steps until the end or a stop (true), or until the guard wants to go back to a checkpoint (false)."""
        run = self._run
        with closing(_steps_ahead(run, self._done)) as steps:
            for step, waited_s in _timed(steps):
                started = time.perf_counter()
                taken = self._taken(step)
                if taken.written:
                    self._saver.finish()
                if taken.refused and not self._goes_on(taken.row, taken.refused):
                    return False
                row = taken.row | {"data_wait_s": waited_s, "step_s": time.perf_counter() - started + waited_s}
                speed = speed_of(run, step, row["step_s"]) if row["tokens"] else {}
                self._log.add(step, row | speed, run.total_steps)
                self._done = row["step"]
                is_last = taken.stopping or self._done == run.total_steps
                if not taken.stopping:  # who asked to stop waits for the checkpoint alone
                    self._evaluate()
                if is_last or self._saver.is_due(self._done):
                    self._save(last=is_last)
                    self._log.publish()
                if is_last:
                    break
        return True

    def _evaluate(self) -> None:
        """Measure the held-out packs, if that is due."""
        run = self._run
        if run.evaluation is not None and run.evaluation.is_due(self._done, run.total_steps):
            self._log.add_evaluation(run.evaluation.row(run.engine, run.device, self._done))

    def _taken(self, step: Step) -> Taken:
        """Take a step, or pass over it if it is left out."""
        run = self._run
        if run.guard.leaves_out(run.first_step + step.number + 1):
            run.guard.discarded += 1
            return _left_out(run, step)
        stopping = bool(self._stop) or bool(self._stop_file)
        taken = take_step(run, step, stopping=stopping, written=self._saver.is_written)
        if taken.refused is None:
            run.guard.took(taken.row["loss"])
        return taken

    def _goes_on(self, row: dict[str, Any], verdict: Verdict) -> bool:
        """Do what the recipe wants about a refused step; says whether the run goes on behind it."""
        run = self._run
        if verdict.action == "roll_back":
            self._saver.finish()  # what is still written comes to exist first
        told = self._why_over(row["step"], verdict)
        if told:
            self._guard_log.add(row, Verdict(verdict.reason, "stop"))
            raise DivergedError(f"train: step {row['step']} is refused{told}")
        run.guard.discarded += 1
        if verdict.action == "skip":
            self._guard_log.add(row, verdict)
            row.update(finite(row), skipped=verdict.reason)
            return True
        checkpoint = run.folder.steps()[-1]
        window = (run.guard.first_left_out(row["step"], checkpoint), row["step"])
        run.guard.leave_out(*window)
        self._guard_log.add(row, verdict, to=checkpoint, left_out=list(window))
        dist.barrier()  # nobody looks for the newest checkpoint before the window is noted
        return False

    def _why_over(self, step: int, verdict: Verdict) -> str:
        """Say why a refused step ends the run; empty if it does not."""
        patience, advice = self._run.settings.guard.patience, "lower train.lr, or look at the data"
        if verdict.action == "stop":
            return f": {verdict.reason}; {advice}, or let train.guard skip it or roll back (docs/training.md)"
        if self._guard_log.refused_before(step) >= patience:
            return f" like the {patience} before it: {verdict.reason}; {advice}"
        if verdict.action == "skip":
            return ""
        newest = self._run.folder.steps()[-1]
        if self._guard_log.returns_to(newest) < patience:
            return ""
        return f" after {patience} returns to the checkpoint of step {newest}: {verdict.reason}; {advice}"

    def _go_back(self) -> None:
        self._done = restore_newest(self._run)
        self._guard_log.begin(self._run.guard, self._done)
        self._log.go_back(self._done)

    def _save(self, *, last: bool = False) -> None:
        self._saver.save(self._run.engine, self._run.model, _checkpoint(self._run, self._done), last=last)


def _left_out(run: Run, step: Step) -> Taken:
    """Give the row of a step that is not taken."""
    number = run.first_step + step.number
    nothing = dict.fromkeys(("loss", "loss_text", "loss_vision", "grad_norm"))
    row: dict[str, Any] = {
        "step": number + 1,
        "epoch": step.epoch,
        **nothing,
        "loss_by_template": {},
        "lr": learning_rate(number, run.total_steps, run.settings),
        "weight": 0.0,
        "tokens": 0,
        "unreadable": 0,
        "skipped": "left out after a roll back",
    }
    return Taken(row, False, False, None)


def _steps_ahead(run: Run, done: int) -> Generator[Step, None, None]:
    """Give the steps that are left of a run, from the loader, which counts from the plan's first."""
    return run.loader.steps(done - run.first_step, run.total_steps - run.first_step)


def _checkpoint(run: Run, done: int) -> Checkpoint:
    plan = run.loader.plan.description
    return Checkpoint(
        step=done,
        loader=run.loader.state(done - run.first_step).to_json(),
        model=run.model.causal.config.to_dict(),
        vocabulary=plan["vocabulary"],
        vision=plan["vision"],
        settings=run.settings.model_dump(mode="json"),
        tensors={},
        files=(),
        guard=run.guard.state(),
    )


def _timed(steps: Iterator[Step]) -> Iterator[tuple[Step, float]]:
    """Pair each step with the seconds it was waited for."""
    while True:
        started = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - started
