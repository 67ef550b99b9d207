"""Commands on several machines, behind a stand-in for ssh: what they are told, and that none outlives the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.stand_in_ssh import stand_in_for_ssh

from tokenmill.cli import main, parse
from tokenmill.errors import RecipeError, RunError
from tokenmill.train.hostfile import Hosts, read_hostfile
from tokenmill.train.hosts import run_on_hosts

TWO = Hosts(("node-a", "node-b"), None)
# Trains until it is told to end, as a launcher does: a file a node says when it began, another when it has saved.
TRAINING = """
trap 'touch "$1/saved-$NODE_RANK"; exit 0' TERM
touch "$1/began-$NODE_RANK"
for _ in $(seq 1200); do sleep 0.05; done
"""
LAUNCHER = """
import sys
from tokenmill.train.hostfile import Hosts
from tokenmill.train.hosts import run_on_hosts
run_on_hosts(Hosts(("node-a", "node-b"), None), ["bash", "-c", sys.argv[1], "training", sys.argv[2]])
"""


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, [path.name for path in paths if not path.exists()]
        time.sleep(0.02)


def each(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}-0", folder / f"{name}-1"


def test_hosts_get_the_command_in_this_folder_with_their_ranks_and_the_address_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stand_in_for_ssh(tmp_path / "bin", monkeypatch)
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / "a folder")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0 eth1")
    monkeypatch.setenv("MASTER_PORT", "4242")
    told = 'echo "$NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT|$NCCL_SOCKET_IFNAME|$1" > "told-$NODE_RANK"'

    run_on_hosts(Hosts(("me@node-a", "node-b"), None), ["bash", "-c", told, "sh", "it's $HOME"])

    assert sorted(log.read_text().split()) == ["me@node-a", "node-b"]
    assert [path.read_text() for path in each(tmp_path / "a folder", "told")] == [
        f"2 {number} node-a 4242|eth0 eth1|it's $HOME\n" for number in (0, 1)
    ]


def test_host_that_fails_ends_the_others_and_is_named_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_ssh(tmp_path / "bin", monkeypatch)
    waits = 'while [ ! -e "$1/began-0" ]; do sleep 0.02; done'
    failing = f'if [ $NODE_RANK = 1 ]; then {waits}; echo "no GPU here" >&2; exit 7; fi'

    with pytest.raises(RunError, match="train: node-b: ended with exit code 7; the last lines it said:\nno GPU here"):
        run_on_hosts(TWO, ["bash", "-c", failing + TRAINING, "training", str(tmp_path)])

    assert (tmp_path / "saved-0").exists()


def test_host_that_refuses_the_recipe_or_cannot_be_reached_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_ssh(tmp_path / "bin", monkeypatch)

    with pytest.raises(RecipeError, match="node-a: ended with exit code 2"):
        run_on_hosts(TWO, ["bash", "-c", "[ $NODE_RANK = 1 ] || exit 2; sleep 60"])
    with pytest.raises(RunError, match=r"train: unreachable: ssh could not reach it; .*\nssh: no route to host"):
        run_on_hosts(Hosts(("node-a", "unreachable"), None), ["sleep", "60"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
def test_hosts_save_and_end_when_the_launcher_is_asked_to_end_or_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    stand_in_for_ssh(tmp_path / "bin", monkeypatch)
    command = [sys.executable, "-c", LAUNCHER, TRAINING, str(tmp_path)]
    with subprocess.Popen(command, env=os.environ, start_new_session=True) as launcher:
        wait_for(*each(tmp_path, "began"))
        launcher.send_signal(number)
        assert launcher.wait(timeout=30) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    wait_for(*each(tmp_path, "saved"))


def test_train_with_a_hostfile_gives_every_machine_the_recipe_its_overrides_and_the_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def note(hosts: Hosts, command: list[str]) -> None:
        asked.update(hosts=hosts, command=command)

    monkeypatch.setattr("tokenmill.train.hosts.run_on_hosts", note)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("root: run\nsources: {words: {kind: jsonl, url: words}}\n")
    (tmp_path / "hosts").write_text("# two machines\nnode-a slots=8\nnode-b slots=8  # the second\n\n")

    assert main(["train", "my.yaml", "train.lr=0.1", "--hostfile", "hosts", "--json"]) == 0

    assert asked["hosts"] == Hosts(("node-a", "node-b"), 8)
    python, *module = asked["command"][:3]  # type: ignore[index]
    assert (python, module) == (sys.executable, ["-m", "tokenmill.cli"])
    options = parse(asked["command"][3:])  # type: ignore[index]
    assert (options.command, options.recipe, options.json) == ("train", str(tmp_path / "my.yaml"), True)
    assert options.overrides == ["train.lr=0.1", "train.ranks=8"]
    assert main(["train", "my.yaml", "train.lr=none", "--hostfile", "hosts"]) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no machine"),
        ("# none\n", "names no machine"),
        ("node-a slots=8\nnode-b\n", r"different slots \(node-a 8, node-b none\)"),
        ("node-a slots=8\nnode-b slots=4\n", r"different slots \(node-a 8, node-b 4\)"),
        ("node-a\nnode-b\nnode-a\n", "names node-a more than once"),
        ("node-a slots=0\n", "hosts:1: expected HOST or HOST slots=N, found 'node-a slots=0'"),
        ("\nnode-a; rm -rf /\n", "hosts:2: expected HOST"),
        ("-oProxyCommand=x\n", "hosts:1: expected HOST"),
    ],
)
def test_hostfile_that_says_nothing_clear_is_refused_by_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "hosts").write_text(text)

    with pytest.raises(RecipeError, match=told):
        read_hostfile(tmp_path / "hosts")


def test_hostfile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--hostfile: cannot read"):
        read_hostfile(tmp_path / "none")


def test_hostfile_of_one_machine_and_users_is_read(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("me@10.0.0.1\n")
    found: Mapping[str, object] = {"names": ("me@10.0.0.1",), "ranks": None}

    hosts = read_hostfile(tmp_path / "hosts")

    assert {"names": hosts.names, "ranks": hosts.ranks} == found
    assert hosts.address == "10.0.0.1"
