"""Asking that is killed, drained, hangs or loses a worker: what was answered is never asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.asked_captioner import install
from tests.asking import AskedRoot, answers_of, chosen_of, environment_with_captioner, journaled_in, paid_in
from tests.harness import Commands, faults_in, start_alone

from tokenmill.manifests.storage import open_store
from tokenmill.manifests.storage_local import LocalFiles
from tokenmill.pipelines.answer_journal import JOURNALED, AnswerJournal, journal_line
from tokenmill.pipelines.ray_desk import Place, _Desk

IN_FLIGHT = 2  # a batch of the captioner


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AskedRoot:
    install(monkeypatch)
    return AskedRoot(folder=tmp_path / "asked")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_with_captioner(tmp_path_factory.mktemp("installed")).items():
            patch.setenv(name, value)
        with Commands(tokenizer=False) as running:
            running.run("--version")  # waits for the imports
            yield running


def assert_whole(root: AskedRoot, *, twice: int = 0) -> None:
    """Every sample has its caption, at most `twice` were asked again, nothing is counted twice or lost."""
    chain = root.run()
    asked = root.asked()
    assert set(asked) == set(root.keys)
    assert sum(asked.values()) - len(asked) <= twice, asked
    assert set(chosen_of(chain)) == set(root.keys) and all(chosen_of(chain).values())
    folder = answers_of(chain).folder
    assert len(asked) <= paid_in(folder)["questions"] <= sum(asked.values())
    assert faults_in(open_store(root.root)) == []


@pytest.mark.parametrize(
    "fault", ["journal:after-part:5", "commit:before-data:2", "commit:before-record:3", "commit:after-record:1"]
)
def test_asking_killed_and_resumed_asks_nothing_again(root, commands, fault):
    root.run_until_selected()
    assert commands.run("caption", root.write(), fault=fault).was_killed
    assert root.asked()
    assert_whole(root)


def test_asking_killed_between_question_and_answer_asks_again_what_was_in_flight(root, commands):
    dying = root.write({"caption.image.columns.dense": root.column(die_after=5)})
    assert commands.run("run", dying, "--until", "caption").was_killed
    assert_whole(root, twice=IN_FLIGHT)
    assert sum(root.asked().values()) > len(root.keys)


def test_asking_killed_goes_on_under_another_selection_and_another_cut(root, commands):
    recipe = root.write({"execution.unit_rows": 6})
    root.run_until_selected({"execution.unit_rows": 6})
    assert commands.run("caption", recipe, fault="journal:after-part:5").was_killed
    assert len(root.asked()) == 10
    changes = {"execution.unit_rows": 4, "filter.image.rules": {"another": "width_px >= 4"}}
    root.write_shard(1, [*root.keys[6:], "01900"])
    chain = root.run(changes)
    assert root.asked() == dict.fromkeys([*root.keys, "01900"], 1)
    assert paid_in(answers_of(chain).folder)["questions"] == 13
    assert not journaled_in(answers_of(chain).folder), "and every line of the journal stands in a record"


def test_retry_killed_and_resumed_asks_nothing_again(root, commands):
    root.fail(**dict.fromkeys(root.keys, "refuse"))
    recipe = root.write()
    root.run()
    root.fail()
    assert commands.run("caption", recipe, "--retry-failed", fault="journal:after-part:1").was_killed
    root.run(retry_failed=True)
    assert root.asked() == dict.fromkeys(root.keys, 2)
    assert_whole(root, twice=12)


def test_retry_killed_keeps_what_it_paid_for_though_the_selection_changes_then(root, commands):
    root.fail(**dict.fromkeys(root.keys, "refuse"))
    recipe = root.write()
    root.run()
    root.fail()
    assert commands.run("caption", recipe, "--retry-failed", fault="journal:after-part:1").was_killed
    chain = root.run({"execution.unit_rows": 2})
    assert sum(root.asked().values()) == 12 + IN_FLIGHT
    assert sum(bool(captions) for captions in chosen_of(chain).values()) == IN_FLIGHT
    assert paid_in(answers_of(chain).folder)["questions"] == 12 + IN_FLIGHT


def test_torn_and_damaged_lines_of_a_journal_are_asked_again_and_no_others(root, commands):
    recipe = root.write({"execution.unit_rows": 6})
    root.run_until_selected({"execution.unit_rows": 6})
    assert commands.run("caption", recipe, fault="journal:after-part:3").was_killed
    (part,) = Path(root.root).glob("caption/*/*/journal/*/*.jsonl")
    lines = part.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    lines[1] = lines[1].replace(b"It says", b"It sayz")
    part.write_bytes(b"".join(lines)[:-20])
    root.run({"execution.unit_rows": 6})
    torn = {json.loads(line[17:])["key"] for line in (lines[1], lines[-1])}
    assert root.asked() == dict.fromkeys(root.keys, 1) | dict.fromkeys(torn, 2)
    assert not list(Path(root.root).glob("caption/*/*/journal/*/*.jsonl"))


def test_journal_of_a_local_root_is_one_file_a_unit_and_of_a_store_an_object_a_batch(tmp_path, root):
    folder = answers_of(root.run()).folder
    row = {"request": "r", "asked": "", "key": "k", "texts": ["t"], "asking_ms": 1}
    journal = AnswerJournal(folder, "00000.tar", "unit.0")
    for _ in range(3):
        journal.add([row | {"asked": journal.new_asking()}])
    journal.close()
    assert len(folder.store.files(folder.at("journal"))) == 1
    known = AnswerJournal(folder, "00000.tar", "unit.0").known()
    assert known["asked"].n_unique() == 3
    assert AnswerJournal(folder, "more/00000.tar", "unit.0").known().is_empty(), "another shard of that name"
    assert journal_line(row)[:16] != journal_line(row | {"key": "l"})[:16]
    assert isinstance(folder.store._backend, LocalFiles)


def test_journal_that_another_process_still_writes_is_not_settled_with_what_was_read_of_it(root):
    folder = answers_of(root.run()).folder
    row = {**dict.fromkeys(JOURNALED), "request": "r", "key": "k", "texts": ["t"]}
    theirs, ours = (AnswerJournal(folder, "00000.tar", name) for name in ("first.0", "second.0"))
    asked = [theirs.new_asking() for _ in range(2)]
    theirs.add([row | {"asked": asked[0]}])
    assert ours.known()["asked"].to_list() == asked[:1]
    theirs.add([row | {"asked": asked[1]}])
    assert ours.settle(asked[:1]), "there is more in it by now"
    assert AnswerJournal(folder, "00000.tar", "third.0").known()["asked"].to_list() == asked
    assert not ours.settle(asked)
    assert not folder.store.files(folder.at("journal"))


@pytest.mark.s3
def test_asking_on_an_object_store_killed_and_resumed_asks_nothing_again(tmp_path, s3_server, commands, monkeypatch):
    install(monkeypatch)
    root = AskedRoot(folder=tmp_path / "asked", root=s3_server.new_root(), changes={"storage": s3_server.options})
    recipe = root.write()
    root.run_until_selected()
    assert commands.run("caption", recipe, fault="journal:after-part:3").was_killed
    parts = [e.path for e in open_store(root.root, s3_server.options).files("caption") if "/journal/" in e.path]
    assert parts and all(path.endswith(".jsonl") for path in parts)
    root.run()
    assert root.asked() == dict.fromkeys(root.keys, 1)
    assert not [e for e in open_store(root.root, s3_server.options).files("caption") if "/journal/" in e.path]


def test_unit_that_gets_on_outlives_its_time_and_one_that_hangs_does_not(root, commands):
    slow = root.column(batch=1, delay_s=0.5)
    limits = {"caption.image.columns.dense": slow, "execution.unit_timeout_s": 2.5, "execution.unit_rows": 6}
    commands.run("run", root.write(limits), "--until", "caption").check()
    assert root.asked() == dict.fromkeys(root.keys, 1), "three seconds a unit, of which no answer takes one"

    root.forget()
    root.fail(**{"00002": "hang"})
    hangs = {**limits, "caption.image.columns.dense": root.column(batch=1, system="Be short.")}
    done = commands.run("caption", root.write(hangs))
    assert done.code == 1 and "not done within 2.5 s (execution.unit_timeout_s)" in done.text
    assert root.asked() == dict.fromkeys(root.keys[:2] + root.keys[6:], 1) | {"00002": 3}


def test_time_of_a_unit_runs_anew_in_its_process_and_at_the_desk(monkeypatch):
    code = (
        "import time; from tokenmill.pipelines.deadlines import fatal_deadline, renew\n"
        "with fatal_deadline(1, on_renewal=lambda: print('told')):\n"
        "    for _ in range(8): time.sleep(0.2); {}"
    )
    run = [
        subprocess.run([sys.executable, "-c", code.format(does)], capture_output=True, check=False)
        for does in ("renew()", "0")
    ]
    assert [one.returncode for one in run] == [0, 1] and run[0].stdout.count(b"told") > 3
    now = [0.0]
    monkeypatch.setattr("tokenmill.pipelines.ray_desk.time.monotonic", lambda: now[0])
    desk, here = _Desk(), Place(node="node", pid=1, born=1, name="here:1")
    desk.begin(3, here, "units")
    now[0] = 90.0
    desk.renew(here)
    now[0] = 100.0
    assert [hand.held_s for hand in desk.state().hands] == [10.0]
    desk.lay_down(here)
    desk.renew(here)
    assert not desk.state().hands


def test_asking_that_is_asked_to_end_keeps_its_answers_and_ends_though_a_thread_stays(root):
    slow = {
        "caption.image.columns.dense": root.column(batch=1, delay_s=0.3, keeps_thread=True),
        "execution.drain_s": 0.5,
        "execution.unit_rows": 100,
    }
    recipe = root.write(slow)
    with start_alone("run", recipe, "--until", "caption", environment=environment_with_captioner(root.folder)) as run:
        _wait_for(lambda: sum(root.asked().values()) >= 2 or run.poll() is not None)
        run.send_signal(signal.SIGTERM)
        asked_to_end = time.monotonic()
        assert run.wait(timeout=30) == 1
        assert time.monotonic() - asked_to_end < 0.5 + 10
    before = sum(root.asked().values())
    assert 0 < before < len(root.keys)
    root.run()
    assert_whole(root, twice=1)


def _wait_for(condition, limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.ray
def test_worker_that_is_killed_while_asking_costs_what_was_in_flight(root):
    on_ray = {
        "execution": {"executor": "ray", "workers": 2, "decode_threads": 1, "unit_rows": 3, "unit_timeout_s": 60},
        "caption.image.columns.dense": root.column(),
    }
    done = root.command(
        changes=on_ray,
        TOKENMILL_FAULT="journal:after-part:1",
        TOKENMILL_FAULT_ONCE=str(root.folder / "died"),
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    )
    assert done.code == 0, done.text
    assert (root.folder / "died").exists()
    assert_whole(root, twice=IN_FLIGHT)
    assert os.environ.get("TOKENMILL_FAULT") is None
