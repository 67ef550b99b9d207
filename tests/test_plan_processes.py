"""A plan is the same, byte for byte, whoever plans its windows: one process, threads of one, or eight."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tests.planning_process import plan_one

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.dispatch import RunOptions
from tokenmill.pipelines.jobs import Job, Target, Unit
from tokenmill.pipelines.plan import plan_folder, plan_vocabulary, run_plans
from tokenmill.pipelines.plan_windows import windows_of
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary

VOCABULARY = byte_vocabulary(64)
SETTINGS = PlanSettings(context=400, window_documents=12, window_packs=1, mix={"words": 1.5}, split_long_clips=True)


def sources(root: Path) -> list[Snapshot]:
    store = open_store(str(root))
    return [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=60, clips=20, latent_frames=9, shards=6)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=80, text_words=60, shards=6)),
    ]


def files_of_plan(root: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.glob("plans/*/*/**/*") if path.is_file()}
    return {name: data for name, data in found.items() if "/logs/" not in name and "/rollups/" not in name}


def test_plan_of_one_process_of_threads_and_of_eight_processes_has_the_same_bytes(tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in ("alone", "threads", "processes")}
    snapshots = {name: sources(root) for name, root in roots.items()}
    folder = plan_folder(open_store(str(roots["processes"])), snapshots["processes"], SETTINGS)
    windows = windows_of(folder.config.digest, snapshots["processes"], SETTINGS)
    assert len(windows) > 8

    for name, threads in (("alone", 1), ("threads", 4)):  # first, so that the processes find everything compiled
        run_plans(open_store(str(roots[name])), snapshots[name], [SETTINGS], RunOptions(threads=threads, quiet=True))

    units = [Unit(inputs=window.inputs, payload={"window": window}) for window in reversed(windows)]
    jobs = [Job(unit=unit, targets=(Target(folder=folder),), work=0) for unit in units]
    vocabulary = plan_vocabulary(snapshots["processes"]).spec
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.planning_process"])
    with ProcessPoolExecutor(8, mp_context=context) as pool:
        list(pool.map(partial(plan_one, SETTINGS, vocabulary), jobs))
    committed = sum(name.endswith(".0.json") for name in files_of_plan(roots["processes"]))
    assert committed == len(windows)
    run_plans(folder.store, snapshots["processes"], [SETTINGS], RunOptions(quiet=True))

    alone, *others = (files_of_plan(root) for root in roots.values())
    assert any(name.endswith("plan.json") for name in alone)
    assert all(other == alone for other in others)


def test_plan_of_sources_in_another_order_has_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name, step in (("as_they_are", 1), ("reversed", -1)):
        snapshots = sources(tmp_path / name)[::step]
        run_plans(open_store(str(tmp_path / name)), snapshots, [SETTINGS], RunOptions(quiet=True))
        found.append(files_of_plan(tmp_path / name))
    assert found[0] == found[1]
