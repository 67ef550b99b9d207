"""A stage as a Ray job: the project and the recipe travel, the log comes back, the exit code is carried."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests import tiny
from tests.harness import trusted

from tokenmill.cli import build_parser, main
from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines import submission
from tokenmill.pipelines.shipment import forwarded, pack
from tokenmill.recipe import load_recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow]
_START_S = 120


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """A Ray head of its own with a job server, gone at the end."""
    port, dashboard, agent = _free_ports(3)
    folder = tempfile.mkdtemp(prefix="ray-")  # short: it holds Unix sockets
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"),
        *(f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"),
        f"--dashboard-agent-listen-port={agent}",  # the usual one may be another Ray's
        *("--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats", "--object-store-memory=100000000"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # a job calls for `python`
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait_until_answering(f"http://127.0.0.1:{dashboard}/api/version", process)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # asked kindly, it drains for half a minute
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_until_answering(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the job server did not start")


def _everything_shown(job_server: str, job: str) -> str:
    """Return what the job server tells of a job to whoever asks: its info, its log, the list of jobs."""
    pages = (f"/api/jobs/{job}", f"/api/jobs/{job}/logs", "/api/jobs/")
    return "".join(urllib.request.urlopen(job_server + page, timeout=10).read().decode() for page in pages)


@pytest.mark.s3
def test_submitted_stage_leaves_the_same_files_and_shows_no_secret(
    finished, job_server, s3_server, tmp_path, capfd, monkeypatch
):
    """The store's keys are in no recipe: driver and workers can only have them from the variables named."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "swordfish-in-the-environment")
    root = s3_server.new_root()
    changes = {
        "execution.executor": "ray",
        "execution.workers": 1,
        "storage": {"endpoint_url": s3_server.endpoint},
    }
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", finished.data, root, changes)
    arguments = [str(recipe), "sources.scenes.licence=swordfish-in-an-override", "--address", job_server]
    assert main(["submit", "ingest", *arguments, "--env", "AWS_*", "--job-id", "first"]) == 0
    out = capfd.readouterr().out
    assert out.count("kept 28") == 1
    whole = trusted(open_store(str(finished.root)))
    expected = {path: digest for path, digest in whole.items() if path.startswith("ingest/")}
    assert trusted(open_store(root, s3_server.options)) == expected
    shown = _everything_shown(job_server, "first")
    assert "job_start ingest" in shown
    assert "swordfish" not in shown + out

    # The same name again is the same job: its log is told again, and another stage under that name is refused.
    assert main(["submit", "ingest", *arguments, "--env", "AWS_*", "--job-id", "first"]) == 0
    assert "kept 28" in capfd.readouterr().out
    assert main(["submit", "score", *arguments, "--job-id", "first"]) == 2
    assert "with another stage" in capfd.readouterr().err


async def _interrupted(self: object) -> None:
    """Follow a job until Ctrl-C, which comes at once."""
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(60)


def test_job_goes_on_without_its_follower_and_its_exit_code_is_carried(
    finished, job_server, tmp_path, capfd, caplog, monkeypatch
):
    """Only the whole chain knows that the mix names no source, so this recipe error (exit 2) is seen on the cluster."""
    recipe = tiny.write_recipe(
        tmp_path / "recipe.yaml", finished.data, str(tmp_path / "root"), {"plan.mix": {"nowhere": 1}}
    )
    arguments = ["submit", "ingest", str(recipe), "--address", job_server, "--job-id", "quiet"]
    assert main([*arguments, "--no-wait"]) == 0
    assert capfd.readouterr().out.split() == ["quiet"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr("tokenmill.pipelines.submission._Follower.until_the_end", _interrupted)
            assert main(arguments) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert "job quiet goes on" in caplog.text
    assert main(arguments) == 2
    assert "no source 'nowhere'" in capfd.readouterr().out


class _BreakingClient:
    """A job server whose stream breaks in the middle, as when the head restarts; it tells the log from its start."""

    def __init__(self, breaks: int) -> None:
        self._breaks = breaks

    async def tail_job_logs(self, job):
        yield "first\n"
        if self._breaks:
            self._breaks -= 1
            yield "sec"
            raise ConnectionError("the head is away")
        yield "second\nthird\n"

    def get_job_info(self, job):
        from ray.job_submission import JobInfo, JobStatus

        return JobInfo(status=JobStatus.FAILED, entrypoint="", message="no", driver_exit_code=7)


def test_log_goes_on_where_it_stopped_after_the_head_was_away(monkeypatch, capsys):
    monkeypatch.setattr(submission, "_PAUSE_S", 0.0)
    assert submission.follow(_BreakingClient(2), "job", "http://head") == 7
    assert capsys.readouterr().out == "first\nsecond\nthird\n"


class _QuietClient:
    """A job server that drops a stream in which nothing came, some times, on a clock that only it moves.

    Each stream is silent for `silent_s`; while one is dropped the job's info is there, unless `answers` is False.
    """

    def __init__(self, breaks: int, *, silent_s: float, answers: bool = True) -> None:
        self._breaks, self._silent_s, self._answers = breaks, silent_s, answers
        self.now_s = 0.0

    async def tail_job_logs(self, job):
        self.now_s += self._silent_s
        if self._breaks:
            self._breaks -= 1
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield "done\n"

    def get_job_info(self, job):
        from ray.job_submission import JobInfo, JobStatus

        if not self._answers:
            raise ConnectionError("nobody answers")
        return JobInfo(status=JobStatus.RUNNING if self._breaks else JobStatus.SUCCEEDED, entrypoint="")

    def follow(self, monkeypatch) -> int:
        monkeypatch.setattr(submission, "_PAUSE_S", 0.0)
        monkeypatch.setattr(submission, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        return submission.follow(self, "job", "http://head")


@pytest.mark.parametrize(("breaks", "silent_s"), [(1, 3600.0), (5, 60.0)])
def test_quiet_job_is_followed_though_its_stream_breaks(monkeypatch, capsys, breaks, silent_s):
    """One break after an hour of silence, or a proxy that drops whatever is silent for a minute."""
    assert _QuietClient(breaks, silent_s=silent_s).follow(monkeypatch) == 0
    assert capsys.readouterr().out == "done\n"


def test_job_server_that_answers_nothing_for_two_minutes_is_given_up(monkeypatch):
    with pytest.raises(RunError, match="did not answer for 120 s"):
        _QuietClient(1000, silent_s=50.0, answers=False).follow(monkeypatch)


class _Jobs:
    """A job server that keeps what it was asked for, and runs nothing."""

    def __init__(self) -> None:
        self.asked: dict[str, dict] = {}
        self.status = "RUNNING"

    def submit_job(self, **what):
        self.asked[what["submission_id"]] = what
        return what["submission_id"]

    def get_job_info(self, job):
        if job not in self.asked:
            raise RuntimeError("Request failed with status code 404")
        return SimpleNamespace(status=self.status, metadata=self.asked[job]["metadata"])


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> _Jobs:
    found = _Jobs()
    monkeypatch.setattr(submission, "_client", lambda address: found)
    return found


def test_job_of_that_name_with_other_flags_variables_or_libraries_is_refused(jobs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"))
    libraries = tmp_path / "requirements.txt"
    libraries.write_text("one\n")
    arguments = ["submit", "ingest", str(recipe), "--address", "http://head", "--no-wait", "--job-id", "small"]
    asked = ["--limit", "2", "--env", "SECRET", "--pip", str(libraries)]
    assert main([*arguments, *asked]) == 0
    assert main([*arguments, *asked]) == 0
    assert "swordfish" not in str(jobs.asked["small"]["metadata"])
    capsys.readouterr()
    assert main([*arguments, *asked[2:]]) == 2
    assert "with another flags" in capsys.readouterr().err
    assert main([*arguments, *asked[:2], *asked[4:]]) == 2
    assert "with another env" in capsys.readouterr().err
    libraries.write_text("two\n")
    assert main([*arguments, *asked]) == 2
    assert "with another pip" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "ended"), [("RUNNING", False), ("FAILED", True), ("STOPPED", True)])
def test_job_of_that_name_that_ended_badly_is_told_how_to_resume(jobs, tmp_path, caplog, status, ended):
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"))
    arguments = ["submit", "ingest", str(recipe), "--address", "http://head", "--no-wait", "--job-id", "job"]
    assert main(arguments) == 0
    jobs.status = status
    assert main(arguments) == 0
    assert ("take a new --job-id to resume" in caplog.text) is ended


def test_submitted_run_stops_where_it_is_told(jobs, tmp_path, capsys):
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"))
    rest = [str(recipe), "--address", "http://head", "--no-wait", "--job-id", "run", "--until", "plan"]
    assert main(["submit", "run", *rest]) == 0
    *_, stage, flag = shlex.split(jobs.asked["run"]["entrypoint"])
    assert build_parser().parse_args([stage, "recipe.yaml", flag]).until == "plan"
    assert main(["submit", "score", *rest]) == 2
    assert "--until plan: goes with run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"root": "runs/one"}, "root: 'runs/one' is a relative path"),
        ({"sources.text.url": "raw/text"}, "sources.text.url: 'raw/text' is a relative path"),
        ({"tokenize.vision": {"name": "tests/golden"}}, "tokenize.vision.name: 'tests/golden' is a relative path"),
    ],
)
def test_recipe_with_a_relative_path_is_not_shipped(tmp_path, changes, told, monkeypatch):
    (tmp_path / "tests" / "golden").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"), changes)
    with pytest.raises(RecipeError, match=told), pack(recipe, [], {}):
        pass


def test_shipped_recipe_means_what_it_meant_here_and_holds_the_overrides(tmp_path):
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"))
    overrides = ["plan.context=512", "storage={secret: abc}"]
    with pack(recipe, overrides, {"NAME": "value"}) as shipment:
        (shipped,) = shipment.working_dir.glob("*.yaml")
        assert load_recipe(shipped) == load_recipe(recipe, overrides)
        assert yaml.safe_load(shipped.read_text())["storage"] == {"secret": "abc"}
        assert (shipment.package / "manifests" / "storage.py").is_file()
        assert not any(path.is_symlink() for path in shipment.package.rglob("*"))


def test_variables_are_forwarded_by_name_and_credentials_only_if_named(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "here")
    assert "AWS_SECRET_ACCESS_KEY" not in forwarded(())
    assert forwarded(())["AWS_REGION"] == "here"
    assert forwarded(("AWS_*",))["AWS_SECRET_ACCESS_KEY"] == "secret"
    with pytest.raises(RecipeError, match="--env NOWHERE: no such variable"):
        forwarded(("NOWHERE",))


def test_submit_where_nobody_answers_says_so_and_ends_with_one(tmp_path, capsys):
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", str(tmp_path / "root"))
    (port,) = _free_ports(1)
    assert main(["submit", "ingest", str(recipe), "--address", f"http://127.0.0.1:{port}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(port) in line
