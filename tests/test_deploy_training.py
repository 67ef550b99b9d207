"""deploy/kubernetes/train.yaml, as far as that goes without a cluster: its fields, its sizes against each other and the
recipe inside, and what its pods run, with a stand-in for `tokenmill`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict
from tests.test_deploy import DEPLOY, EnvFrom, Limits, Mount, Port, Quantity, Reference, SecurityContext, Toleration

from tokenmill.cli import build_parser
from tokenmill.recipe import Recipe, check_recipe


class _Strict(BaseModel):
    """A part of a resource: a field that the definition does not have is an error, as is another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Variable(_Strict):
    name: str
    value: str


class Container(_Strict):
    name: str
    image: str
    command: list[str]
    args: list[str]
    env: list[Variable]
    envFrom: list[EnvFrom]  # noqa: N815
    ports: list[Port]
    resources: Limits
    volumeMounts: list[Mount]  # noqa: N815


class EmptyFolder(_Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity  # noqa: N815


class Volume(_Strict):
    name: str
    emptyDir: EmptyFolder | None = None  # noqa: N815
    configMap: Reference | None = None  # noqa: N815


class PodSpec(_Strict):
    restartPolicy: Literal["Never"]  # noqa: N815
    terminationGracePeriodSeconds: int  # noqa: N815
    securityContext: SecurityContext  # noqa: N815
    tolerations: list[Toleration]
    containers: list[Container]
    volumes: list[Volume]


class Pod(_Strict):
    spec: PodSpec


class ExitCodes(_Strict):
    operator: Literal["In", "NotIn"]
    values: list[int]


class PodRule(_Strict):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: ExitCodes  # noqa: N815


class PodFailurePolicy(_Strict):
    rules: list[PodRule]


class JobSpec(_Strict):
    """JobSpec of batch/v1, the fields in use."""

    completionMode: Literal["Indexed"]  # noqa: N815
    parallelism: int
    completions: int
    backoffLimit: int  # noqa: N815
    podFailurePolicy: PodFailurePolicy  # noqa: N815
    template: Pod


class Job(_Strict):
    spec: JobSpec


class ReplicatedJob(_Strict):
    name: str
    replicas: int
    template: Job


class Network(_Strict):
    enableDNSHostnames: bool  # noqa: N815
    publishNotReadyAddresses: bool  # noqa: N815


class FailureRule(_Strict):
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    onJobFailureReasons: list[Literal["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]]  # noqa: N815


class FailurePolicy(_Strict):
    maxRestarts: int  # noqa: N815
    rules: list[FailureRule]


class JobSetSpec(_Strict):
    """JobSetSpec of jobset.x-k8s.io/v1alpha2, the fields in use."""

    network: Network
    failurePolicy: FailurePolicy  # noqa: N815
    replicatedJobs: list[ReplicatedJob]  # noqa: N815


def _read() -> tuple[Recipe, str, JobSetSpec]:
    config, found = yaml.safe_load_all((DEPLOY / "kubernetes" / "train.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    recipe = check_recipe(yaml.safe_load(config["data"]["recipe.yaml"]), "train.yaml")
    spec = JobSetSpec.model_validate(found["spec"])
    (volume,) = [v for v in spec.replicatedJobs[0].template.spec.template.spec.volumes if v.configMap is not None]
    assert volume.configMap is not None and volume.configMap.name == config["metadata"]["name"]
    return recipe, found["metadata"]["name"], spec


def _container() -> Container:
    (found,) = _read()[2].replicatedJobs[0].template.spec.template.spec.containers
    return found


def test_nodes_find_the_first_by_the_name_that_jobset_gives_it_and_are_as_many_as_they_are_told():
    _, name, spec = _read()
    (group,) = spec.replicatedJobs
    (container,) = group.template.spec.template.spec.containers
    told = {variable.name: variable.value for variable in container.env}
    assert told["MASTER_ADDR"] == f"{name}-{group.name}-0-0.{name}"
    assert spec.network.enableDNSHostnames and spec.network.publishNotReadyAddresses
    assert int(told["NNODES"]) == group.template.spec.parallelism == group.template.spec.completions
    assert [int(told["MASTER_PORT"])] == [port.containerPort for port in container.ports]
    assert group.replicas == 1


def test_ranks_of_the_recipe_are_the_gpus_of_a_pod_and_divide_its_packs():
    recipe, _, spec = _read()
    pod = spec.replicatedJobs[0].template.spec.template.spec
    assert pod.containers[0].resources.limits["nvidia.com/gpu"] == str(recipe.train.ranks)
    assert (
        recipe.train.global_packs_per_step % (recipe.train.ranks * spec.replicatedJobs[0].template.spec.completions)
        == 0
    )
    assert {mount.name for mount in pod.containers[0].volumeMounts} == {volume.name for volume in pod.volumes}
    assert {"/dev/shm", "/tmp"} <= {mount.mountPath for mount in pod.containers[0].volumeMounts}
    assert pod.containers[0].resources.requests == pod.containers[0].resources.limits


def test_recipe_is_that_of_the_job_that_plans():
    (config, _) = yaml.safe_load_all((DEPLOY / "kuberay" / "rayjob.yaml").read_text())
    planned = check_recipe(yaml.safe_load(config["data"]["recipe.yaml"]), "rayjob.yaml")
    trained = _read()[0]
    assert (trained.root, trained.sources, trained.filter) == (planned.root, planned.sources, planned.filter)
    assert trained.tokenize == planned.tokenize
    assert trained.plan == planned.plan


def test_image_and_user_are_those_of_the_docker_file():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    tag, user = re.search(r"-t (\S+)", dockerfile), re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert tag is not None and user is not None
    pod = _read()[2].replicatedJobs[0].template.spec.template.spec
    assert pod.containers[0].image == tag[1]
    assert (str(pod.securityContext.runAsUser), str(pod.securityContext.runAsGroup)) == user.groups()


def test_wrong_recipe_is_not_tried_again_and_everything_else_is():
    _, _, spec = _read()
    job = spec.replicatedJobs[0].template.spec
    assert job.podFailurePolicy.rules[0].onExitCodes.values == [2]
    assert spec.failurePolicy.rules[0].action == "FailJobSet"
    assert spec.failurePolicy.rules[0].onJobFailureReasons == ["PodFailurePolicy"]
    assert (job.backoffLimit, spec.failurePolicy.maxRestarts > 0) == (0, True)


@pytest.fixture
def pod(tmp_path: Path) -> dict[str, Any]:
    """What a pod runs, in an environment with a stand-in for `tokenmill`."""
    (tmp_path / "tokenmill").write_text(
        """#!/bin/bash
        [ -z "$WAIT" ] || trap 'echo saved >> "$LOG"; exit 0' TERM
        echo "$* | $NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT" >> "$LOG"
        if [ -n "$WAIT" ]; then for _ in $(seq 600); do sleep 0.05; done; fi
        exit "${CODE:-0}\""""
    )
    (tmp_path / "tokenmill").chmod(0o755)
    container = _container()
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "WAIT": "",
        "JOB_COMPLETION_INDEX": "1",
    }
    return {
        "args": [*container.command, *container.args],
        "env": given | {variable.name: variable.value for variable in container.env},
    }


def _said(pod: dict[str, Any]) -> list[str]:
    path = Path(pod["env"]["LOG"])
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 1, 2])
def test_pod_trains_as_the_node_it_is_and_ends_as_training_does(pod: dict[str, Any], code: int):
    pod["env"]["CODE"] = str(code)
    assert subprocess.run(**pod, timeout=30).returncode == code
    ((command, told),) = [line.split(" | ") for line in _said(pod)]
    options = build_parser().parse_args(command.split())
    assert (options.command, options.recipe) == ("train", "/etc/tokenmill/recipe.yaml")
    assert told == "2 1 tokenmill-train-node-0-0.tokenmill-train 29500"


def test_pod_that_is_asked_to_end_saves_and_does_not_count_as_done(pod: dict[str, Any]):
    pod["env"]["WAIT"] = "1"
    with subprocess.Popen(**pod) as running:
        deadline = time.monotonic() + 30
        while not _said(pod) and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=30) == 128 + signal.SIGTERM
    assert _said(pod)[-1] == "saved"
