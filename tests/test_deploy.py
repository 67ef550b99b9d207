"""The files in deploy/, checked as far as that goes without a cluster: fields, sizes, commands, and Slurm's scripts run
against stand-ins for `srun`, `scontrol` and `ray`, which nobody has here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from tokenmill.cli import build_parser
from tokenmill.recipe import Execution, Recipe, check_recipe

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted((DEPLOY / "slurm").glob("*.sh"))
_RAY_MEMORY = 0.7  # of a node: the rest is Ray's object store


class _Strict(BaseModel):
    """A part of a resource: a field that the definition does not have is an error, as is another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


Quantity = Annotated[str, Field(pattern=r"^[0-9]+(m|Ki|Mi|Gi|Ti)?$")]
Resources = dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]


class Limits(_Strict):
    requests: Resources
    limits: Resources


class Port(_Strict):
    containerPort: int  # noqa: N815
    name: Annotated[str, Field(max_length=15)]


class Reference(_Strict):
    name: str


class Variable(_Strict):
    name: str
    value: str


class EnvFrom(_Strict):
    secretRef: Reference  # noqa: N815


class Mount(_Strict):
    name: str
    mountPath: str  # noqa: N815


class Container(_Strict):
    name: str
    image: str
    env: list[Variable] = []
    envFrom: list[EnvFrom]  # noqa: N815
    ports: list[Port] = []
    resources: Limits
    volumeMounts: list[Mount]  # noqa: N815


class Scratch(_Strict):
    sizeLimit: Quantity  # noqa: N815


class Volume(_Strict):
    name: str
    emptyDir: Scratch | None = None  # noqa: N815
    configMap: Reference | None = None  # noqa: N815


class Toleration(_Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"]


class SecurityContext(_Strict):
    runAsNonRoot: Literal[True]  # noqa: N815
    runAsUser: int  # noqa: N815
    runAsGroup: int  # noqa: N815
    fsGroup: int  # noqa: N815


class PodSpec(_Strict):
    terminationGracePeriodSeconds: int  # noqa: N815
    securityContext: SecurityContext  # noqa: N815
    tolerations: list[Toleration] = []
    containers: list[Container]
    volumes: list[Volume]


class Template(_Strict):
    spec: PodSpec


class HeadGroup(_Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class Autoscaler(_Strict):
    version: Literal["v1", "v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]  # noqa: N815
    idleTimeoutSeconds: int  # noqa: N815


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"]


class ClusterSpec(_Strict):
    """RayClusterSpec of ray.io/v1, the fields in use (KubeRay's API reference)."""

    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: Autoscaler  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class JobSpec(_Strict):
    """RayJobSpec of ray.io/v1, the fields in use."""

    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode"]  # noqa: N815
    backoffLimit: int  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int  # noqa: N815
    runtimeEnvYAML: str  # noqa: N815
    rayClusterSpec: ClusterSpec  # noqa: N815


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text()))


def _job() -> tuple[Recipe, JobSpec]:
    config, job = _documents("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    recipe = check_recipe(yaml.safe_load(config["data"]["recipe.yaml"]), "rayjob.yaml")
    return recipe, JobSpec.model_validate(job["spec"])


def _clusters() -> Iterator[ClusterSpec]:
    (cluster,) = _documents("raycluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    yield ClusterSpec.model_validate(cluster["spec"])
    yield _job()[1].rayClusterSpec


def _pods(cluster: ClusterSpec) -> Iterator[PodSpec]:
    yield cluster.headGroupSpec.template.spec
    yield from (group.template.spec for group in cluster.workerGroupSpecs)


def _sizes(group: WorkerGroup) -> tuple[float, float, float]:
    """Return CPUs, GPUs and GiB of memory of a pod."""
    found = group.template.spec.containers[0].resources.limits
    return float(found["cpu"]), float(found.get("nvidia.com/gpu", "0")), float(found["memory"].removesuffix("Gi"))


def test_resources_have_only_fields_of_their_definitions_and_mount_what_they_define():
    for cluster in _clusters():
        assert len({group.groupName for group in cluster.workerGroupSpecs}) == 2
        for pod in _pods(cluster):
            (container,) = pod.containers
            assert {mount.name for mount in container.volumeMounts} == {volume.name for volume in pod.volumes}
            assert container.resources.requests == container.resources.limits
            assert container.envFrom[0].secretRef.name == "tokenmill-store"


def test_image_and_ray_are_those_of_the_docker_file_and_the_lock_file():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    tag = re.search(r"-t (\S+)", dockerfile)
    version = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert tag is not None and version is not None
    user = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert user is not None
    for cluster in _clusters():
        assert cluster.rayVersion == version[1]
        for pod in _pods(cluster):
            assert pod.containers[0].image == tag[1]
            assert (str(pod.securityContext.runAsUser), str(pod.securityContext.runAsGroup)) == user.groups()


def test_docker_context_has_what_the_docker_file_copies_and_every_room():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    rooms = {path.name for path in (ROOT / "src" / "tokenmill").iterdir() if path.is_symlink()}
    copied = re.findall(r"^COPY (.*) \./$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert rooms | {"src", *copied[0].split(), "pyproject.toml", "README.md", "LICENSE"} == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert "index-url" not in (DEPLOY / "Dockerfile").read_text()


def test_pools_of_the_recipe_fit_into_the_groups_at_their_largest():
    recipe, job = _job()
    run = recipe.execution
    groups = [(*_sizes(group), group.maxReplicas) for group in job.rayClusterSpec.workerGroupSpecs]
    for pool in run.pools.values():
        needs = [(pool.workers or run.workers, pool.cpus, pool.gpus, pool.memory_gb)]
        decode = getattr(pool, "decode", None)
        if decode is not None:
            needs.append((decode.workers or run.workers, decode.cpus, decode.gpus, decode.memory_gb))
        for workers, cpus, gpus, memory_gb in needs:
            assert workers <= sum(
                _fitting(group, cpus or run.cpus_per_worker, gpus or 0.0, memory_gb or 0.0) for group in groups
            )
    head = job.rayClusterSpec.headGroupSpec.template.spec
    assert run.metrics_port in [port.containerPort for port in head.containers[0].ports]


def test_driver_has_time_to_drain_after_ray_job_stop_and_ray_lets_no_stranger_in():
    """Ray sends SIGKILL 3 s after SIGTERM unless the head says more; a pod's own end is no drain (docs/cluster.md)."""
    for cluster, drain_s in zip(_clusters(), (Execution().drain_s, _job()[0].execution.drain_s), strict=True):
        (head,) = cluster.headGroupSpec.template.spec.containers
        variables = {variable.name: variable.value for variable in head.env}
        assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > drain_s
        assert cluster.authOptions.mode == "token"


def _fitting(group: tuple[float, float, float, int], cpus: float, gpus: float, memory_gb: float) -> int:
    """Return how many workers of a size a group's pods take, all of them running."""
    has_cpus, has_gpus, has_gib, pods = group
    room = [has_cpus // cpus]
    room += [has_gpus // gpus] if gpus else []
    room += [has_gib * _RAY_MEMORY // memory_gb] if memory_gb else []
    return int(min(room)) * pods


def test_entry_point_of_the_job_is_a_command_line_of_ours():
    command = shlex.split(_job()[1].entrypoint)
    assert command[0] == "tokenmill"
    options = build_parser().parse_args(command[1:])
    assert (options.command, options.recipe) == ("run", "/etc/tokenmill/recipe.yaml")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_good_bash(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


_STAND_INS: Mapping[str, str] = {
    "scontrol": """
        echo "scontrol $*" >> "$LOG"
        if [ "$1" = show ]; then [ -z "$SLOW" ] || sleep 0.5; printf "node%s\\n" 0 1 2; fi""",
    # Runs a step once on the named node, or once a node, as `srun` does with one task a node.
    "srun": """
        nodes="0 1 2"
        while [[ $1 == --* ]]; do case $1 in --nodelist=node*) nodes=${1#--nodelist=node};; esac; shift; done
        pids=()
        trap 'kill -TERM "${pids[@]}"' TERM
        for node in $nodes; do SLURM_NODEID=$node "$@" & pids+=($!); done
        code=0
        for pid in "${pids[@]}"; do wait "$pid" || true; done
        for pid in "${pids[@]}"; do wait "$pid" || code=$?; done  # a signal that is trapped ends a first wait
        exit $code""",
    "hostname": "echo 127.0.0.1",
    "ray": """
        echo "ray $* | $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$LOG"
        if [ "$1" = start ]; then exec sleep 60; fi
        [ -z "$SLOW" ]""",
    "tokenmill": """
        [ -z "$WAIT" ] || trap 'echo drained >> "$LOG"; exit "${DRAINED:-1}"' TERM  # before a test reads of it
        echo "tokenmill $* | $NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT | $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$LOG"
        for _ in $(seq 200); do  # the driver of a test ends at once: not before every node has been heard
            [ "$(grep -c '^ray start' "$LOG")" -ge "${STARTS:-0}" ] && break
            sleep 0.05
        done
        if [ -n "$WAIT" ]; then for _ in $(seq 600); do sleep 0.05; done; fi
        exit "${CODE:-0}\"""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment like that of a job on three nodes; what was called is in $LOG."""
    for name, text in _STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NODELIST": "node[0-2]",
        "SLURM_CPUS_ON_NODE": "8",
        **dict.fromkeys(("WAIT", "SLOW", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"), ""),
        **dict.fromkeys(("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"), ""),
    }


def _called(slurm: Mapping[str, str]) -> list[str]:
    path = Path(slurm["LOG"])
    return path.read_text().splitlines() if path.exists() else []


def test_slurm_ray_script_starts_a_head_and_a_worker_a_node_and_carries_the_exit_code(slurm):
    command = ["bash", str(DEPLOY / "slurm" / "ray.sh"), "my.yaml", "tokenize", "plan.seed=1"]
    assert subprocess.run(command, env=slurm | {"CODE": "2", "STARTS": "3"}, timeout=60).returncode == 2
    called = _called(slurm)
    starts = [line for line in called if line.startswith("ray start")]
    assert ["--head" in line for line in starts].count(True) == 1
    assert sum("--address=127.0.0.1:24321" in line for line in starts) == 2
    (driver,) = [line for line in called if line.startswith("tokenmill")]
    arguments = shlex.split(driver.partition(" | ")[0])[1:]
    options = build_parser().parse_args(arguments)
    assert (options.command, options.recipe) == ("tokenize", "my.yaml")
    assert options.overrides == ["plan.seed=1", "execution.address=127.0.0.1:24321"]
    assert not any("requeue" in line for line in called)


def test_slurm_ray_script_gives_every_process_of_a_job_one_token_of_its_own(slurm):
    """Nothing on a command line: `ps` shows those to everybody."""
    tokens = set()
    for _ in range(2):
        Path(slurm["LOG"]).unlink(missing_ok=True)
        subprocess.run(["bash", str(DEPLOY / "slurm" / "ray.sh"), "my.yaml"], env=slurm, timeout=60, check=True)
        calls = [line for line in _called(slurm) if line.startswith(("ray ", "tokenmill "))]
        assert {" ".join(line.split()[:2]) for line in calls} >= {"ray start", "ray health-check", "tokenmill run"}
        (mode,) = {line.rpartition(" | ")[2] for line in calls}
        assert re.fullmatch(r"token [0-9a-f]{64}", mode)
        token = mode.split()[1]
        assert not any(token in line.partition(" | ")[0] for line in calls)
        tokens.add(token)
    assert len(tokens) == 2


@pytest.mark.parametrize(("name", "waits_for"), [("ray.sh", "ray health-check"), ("train.sh", "scontrol show")])
def test_slurm_script_told_to_end_before_it_began_begins_nothing_and_goes_back(slurm, name, waits_for):
    with subprocess.Popen(["bash", str(DEPLOY / "slurm" / name), "my.yaml"], env=slurm | {"SLOW": "1"}) as script:
        deadline = time.monotonic() + 30
        while not any(line.startswith(waits_for) for line in _called(slurm)) and time.monotonic() < deadline:
            time.sleep(0.02)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=30) == 128 + signal.SIGTERM
    assert not any(line.startswith("tokenmill") for line in _called(slurm))
    assert _called(slurm)[-1] == "scontrol requeue 4321"


@pytest.mark.parametrize(("name", "code"), [("ray.sh", 1), ("train.sh", 1), ("train.sh", 0)])
def test_slurm_script_drains_on_sigterm_and_goes_back_into_the_queue(slurm, name, code):
    """Training that was asked to end and has saved ends with 0, and is not done."""
    command, given = ["bash", str(DEPLOY / "slurm" / name), "my.yaml"], {"WAIT": "1", "DRAINED": str(code)}
    with subprocess.Popen(command, env=slurm | given) as script:
        deadline = time.monotonic() + 30
        wanted = 3 if name == "train.sh" else 1
        while sum(line.startswith("tokenmill") for line in _called(slurm)) < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=30) == code
    assert _called(slurm).count("drained") == wanted
    assert _called(slurm)[-1] == "scontrol requeue 4321"


def test_slurm_train_script_tells_every_node_its_rank_and_where_the_first_is(slurm):
    command = ["bash", str(DEPLOY / "slurm" / "train.sh"), "my.yaml", "train.ranks=8"]
    assert subprocess.run(command, env=slurm, timeout=60).returncode == 0
    called = sorted(line for line in _called(slurm) if line.startswith("tokenmill"))
    assert called == [f"tokenmill train my.yaml train.ranks=8 | 3 {node} node0 24321 |  " for node in range(3)]
