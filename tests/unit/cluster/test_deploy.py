"""The files of deploy/ say what the code says: versions, commands, exit codes, memory, and no root or secret."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import pytest
import ray
import yaml
from pydantic import ByteSize, TypeAdapter
from ray.autoscaler._private.util import prepare_config, validate_config

from anabranch.cluster.cli import cli
from anabranch.engine import errors
from anabranch.engine.recipe.parse import parse_recipe

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"registry.example.com/anabranch:{PROJECT['version']}"
LAUNCHERS = {".json", ".sbatch", ".sh", ".yaml"}
FILES = sorted(path for path in DEPLOY.iterdir() if path.suffix in LAUNCHERS)
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
RETRIED = {errors.TemporaryError.exit_code, errors.Interrupted.exit_code}
GIB = 1 << 30

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def documents(name: str) -> dict[str, Any]:
    """The documents of a file by their kind; one without a kind is called by the file."""
    found = yaml.safe_load_all((DEPLOY / name).read_text())
    return {document.get("kind", name): document for document in found}


def values(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, key)


def instructions(name: str) -> list[str]:
    """The arguments of an instruction, wherever the Dockerfile has it."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return re.findall(rf"^{name} (.+)$", joined, flags=re.MULTILINE)


def size_bytes(text: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(re.sub(r"(?<=[KMG]i)$", "B", text)))


def exit_codes() -> set[int]:
    def tree(kind: type[errors.AnabranchError]) -> Iterator[int]:
        yield kind.exit_code
        for child in kind.__subclasses__():
            yield from tree(child)

    return set(tree(errors.AnabranchError))


def merges(path: Path) -> list[list[str]]:
    """The arguments of every `anabranch merge` in a file, also in comments."""
    lists = re.findall(r"\[anabranch, merge, ([^\]]+)\]", path.read_text())
    text = re.sub(r"(?m)^#\s*", "", path.read_text()).replace("\\\n", " ")
    if path.suffix == ".json":
        text = "\n".join(words for words in values(json.loads(text), "commands") for words in words)
    lines = re.findall(r"anabranch merge ([^\n']*)", text)
    return [yaml.safe_load(f"[{words}]") for words in lists] + [shlex.split(line) for line in lines]


# -- every file ------------------------------------------------------------------------------------------------------


@every_file
def test_images_and_versions_are_those_of_the_project(path: Path) -> None:
    text = path.read_text()
    images = re.findall(r"\S*\bregistry\.example\.com/[^\s\"]+", text)
    assert {image.removeprefix("docker:").strip('"') for image in images} <= {IMAGE}
    assert set(re.findall(r"rayVersion: (\S+)", text)) <= {ray.__version__}
    assert set(re.findall(r"anabranch-(\d[\w.]*)-py3", text)) <= {PROJECT["version"]}


@every_file
def test_commands_exist(path: Path) -> None:
    found = merges(path)
    assert found
    for words in found:
        context = cli.commands["merge"].make_context("merge", list(words))
        assert len(context.params["recipes"]) == 1


@every_file
def test_recipes_are_right(path: Path) -> None:
    written = path.read_text().replace("\\n", "\n  ") if path.suffix == ".json" else path.read_text()
    for text in re.findall(r"^( *)(merge_method: .*\n(?:\1.*\n)+)", written, flags=re.MULTILINE):
        parse_recipe(text[0] + text[1], path.name)


@every_file
def test_nothing_secret_and_nothing_forced(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(?i)(secret_access_key|access_key_id|password|hf_token|ray_auth_token)\b.*[:=]", text)
    assert "--force" not in text
    assert "--insecure-cluster" not in text


# -- image -----------------------------------------------------------------------------------------------------------


def test_the_image_runs_as_a_numbered_user_and_ends_by_itself() -> None:
    users = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert instructions("HEALTHCHECK") == ["NONE"]
    assert json.loads(instructions("CMD")[-1])[0] == "anabranch"
    assert not instructions("ENTRYPOINT"), "KubeRay and batch jobs give whole commands"
    assert f"--tag {IMAGE} " in DOCKERFILE


def test_the_image_is_pinned() -> None:
    assert len(instructions("FROM")) == 2
    (python,) = (argument for argument in instructions("ARG") if argument.startswith("PYTHON="))
    version = tuple(int(part) for part in re.match(r"PYTHON=(\d+)\.(\d+)-", python).groups())  # type: ignore[union-attr]
    assert version >= tuple(int(part) for part in PROJECT["requires-python"].removeprefix(">=").split("."))
    (pip,) = (run for run in instructions("RUN") if "pip install" in run)
    assert "--constraint requirements.lock" in pip
    assert f"ray=={ray.__version__}\n" in (ROOT / "requirements.lock").read_text()


def test_what_the_image_copies_is_there_and_reaches_the_builder() -> None:
    allowed = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_kernels_are_compiled_for_the_processor_that_they_are_looked_for() -> None:
    build, final = (set(re.findall(r"(NUMBA_\w+)=(\S+)", env)) for env in instructions("ENV"))
    assert build == final
    assert {name for name, _ in build} == {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"}


@pytest.mark.slow
def test_a_warmed_cache_holds_what_merges_need(tmp_path: Path) -> None:
    environment = os.environ | {"ANABRANCH_KERNELS": str(tmp_path / "cache"), "NUMBA_CPU_NAME": "x86-64-v3"}
    warm = [sys.executable, str(DEPLOY / "warm_kernels.py")]
    subprocess.run(warm, env=environment, check=True, timeout=250)
    before = {path.name for path in (tmp_path / "cache").glob("*.bin")}
    assert len(before) >= 20
    merge = """
import sys, torch
from pathlib import Path
from tests.merging import merge, write_checkpoint, write_recipe
folder = Path(sys.argv[1])
for name in ("base", "one", "two"):
    write_checkpoint(folder / name, {"a": torch.randn(300, 300).bfloat16(), "b": torch.randn(7).bfloat16()})
models = [{"model": str(folder / name)} for name in ("one", "two")]
common = {"base_model": str(folder / "base"), "models": models, "parameters": {"density": 0.5}}
for method in ("cabs", "ties", "dare_ties"):
    merge(write_recipe(folder / f"{method}.yml", common | {"merge_method": method}), folder / method)
"""
    subprocess.run([sys.executable, "-c", merge, str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=100)
    assert {path.name for path in (tmp_path / "cache").glob("*.bin")} == before


# -- KubeRay ---------------------------------------------------------------------------------------------------------


def test_the_ray_job_asks_for_a_token_and_resumes() -> None:
    spec = documents("rayjob.yaml")["RayJob"]["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert "--ray auto" in spec["entrypoint"]
    mount = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]
    assert f" {mount['mountPath']}/recipe.yml " in spec["entrypoint"]


def test_the_ray_job_has_memory_for_its_workers() -> None:
    spec = documents("rayjob.yaml")["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    memory = size_bytes(re.search(r"--memory (\S+)", spec["entrypoint"])[1])  # type: ignore[index]
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        store = int(group["rayStartParams"]["object-store-memory"])
        needed = int(resources["limits"]["cpu"]) * memory + store + GIB  # the last is raylet and agents
        assert needed <= size_bytes(resources["limits"]["memory"]) < needed + 2 * GIB


@pytest.mark.parametrize("name", ["rayjob.yaml", "kubernetes-job.yaml"])
def test_pods_are_not_root(name: str) -> None:
    found = documents(name)
    pods = [spec for spec in values(found, "spec") if "containers" in spec]
    user = int(instructions("USER")[-1].split(":")[0])
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == user
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pods


# -- batch jobs ------------------------------------------------------------------------------------------------------


def test_the_kubernetes_job_gives_up_only_where_a_retry_is_no_use() -> None:
    spec = documents("kubernetes-job.yaml")["Job"]["spec"]
    codes = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert [(code["operator"], set(code["values"])) for code in codes] == [("In", exit_codes() - RETRIED)]
    (container,) = spec["template"]["spec"]["containers"]
    assert codes[0]["containerName"] == container["name"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    memory = size_bytes(container["command"][container["command"].index("--memory") + 1])
    assert memory + GIB <= size_bytes(container["resources"]["limits"]["memory"])
    assert container["resources"]["limits"]["cpu"] == container["command"][container["command"].index("--workers") + 1]


def test_the_aws_job_is_one_that_aws_knows_and_retries_what_recovers() -> None:
    definition = documents("aws-batch.yaml")["aws-batch.yaml"]
    shape = botocore.session.get_session().get_service_model("batch").operation_model("RegisterJobDefinition")
    botocore.validate.validate_parameters(definition, shape.input_shape)
    rules = definition["retryStrategy"]["evaluateOnExit"]
    assert len(rules) <= 5

    def action(code: int, status: str = "Essential container in task exited") -> str:
        facts = {"onExitCode": str(code), "onStatusReason": status, "onReason": ""}
        return next(
            rule["action"]
            for rule in rules
            if all(fnmatch.fnmatchcase(facts[key], rule[key]) for key in rule if key != "action")
        )

    assert {code for code in exit_codes() if action(code) == "RETRY"} == RETRIED
    assert action(137) == "RETRY"
    assert action(1, "Host EC2 (instance i-0) terminated.") == "RETRY"
    container = definition["containerProperties"]
    resources = {item["type"]: int(item["value"]) for item in container["resourceRequirements"]}
    command = container["command"][-1]
    memory = size_bytes(re.search(r"--memory (\S+)", command)[1])  # type: ignore[index]
    assert memory + GIB <= resources["MEMORY"] << 20
    assert f"--workers {resources['VCPU']}" in command
    variables = {item["name"]: item["value"] for item in container["environment"]}
    assert set(re.findall(r"\$(\w+)", command)) == set(variables)
    parse_recipe(variables["RECIPE"], "aws-batch.yaml")


def test_the_aws_command_writes_the_recipe_and_gives_the_merge_its_signals(tmp_path: Path) -> None:
    container = documents("aws-batch.yaml")["aws-batch.yaml"]["containerProperties"]
    (tmp_path / "anabranch").write_text('#!/bin/sh\necho $$ "$@"; cat "$2"; exit 75\n')
    (tmp_path / "anabranch").chmod(0o755)
    variables = {item["name"]: item["value"] for item in container["environment"]}
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | variables
    with subprocess.Popen(
        container["command"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as job:
        output, _ = job.communicate(timeout=20)
    first, _, rest = output.partition("\n")
    assert first.split()[:4] == [str(job.pid), "merge", "recipe.yml", variables["OUT"]]
    assert rest == variables["RECIPE"]
    assert job.returncode == 75


# -- Ray cluster launcher --------------------------------------------------------------------------------------------


def test_the_launcher_accepts_its_cluster() -> None:
    config = documents("ray-cluster.yaml")["ray-cluster.yaml"]
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"]["worker"]["min_workers"] == prepared["max_workers"]


def test_the_launchers_machines_are_ones_that_aws_knows() -> None:
    config = documents("ray-cluster.yaml")["ray-cluster.yaml"]
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = config["available_node_types"]
    for kind in types.values():
        botocore.validate.validate_parameters(kind["node_config"] | {"MinCount": 1, "MaxCount": 1}, shape)
    assert types["worker"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in types[config["head_node_type"]]["node_config"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0


def test_the_launchers_workers_hold_what_the_command_asks_for() -> None:
    path = DEPLOY / "ray-cluster.yaml"
    worker = documents(path.name)[path.name]["available_node_types"]["worker"]["resources"]
    (command,) = merges(path)
    assert worker["memory"] == worker["CPU"] * size_bytes(command[command.index("--memory") + 1])


def test_the_launchers_nodes_ask_for_a_token() -> None:
    config = documents("ray-cluster.yaml")["ray-cluster.yaml"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in config[key] if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
