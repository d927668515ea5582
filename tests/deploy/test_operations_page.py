"""The commands of docs/operations.md: what can be held to the files without a cloud is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def commands() -> list[str]:
    """Indented lines of the page, continued ones joined."""
    lines = re.findall(r"^ {4,}(\S.*)$", PAGE.replace("\\\n", " "), re.MULTILINE)
    return [re.sub(r"\s+", " ", line) for line in lines]


def sed_of(file: str) -> str:
    (found,) = [line for line in commands() if line.startswith("sed -i") and file in line]
    return found


def run(command: str, folder: Path, **values: str) -> None:
    subprocess.run(["bash", "-euc", command], cwd=folder, env={**os.environ, **values}, check=True)


def test_files_that_are_named_are_there() -> None:
    names = set(re.findall(r"\b(?:deploy|serve_apps|tests|docs)/[\w./-]*\w", PAGE))
    assert len(names) > 10
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_no_value_of_an_account_is_left_in_the_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "deploy" / "monitoring").mkdir(parents=True)
    for name in ("cluster.yaml", "deploy/monitoring/prometheus.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    values = {"SUBNET": "subnet-1", "GROUP": "sg-1", "AMI": "ami-1", "ACCOUNT": "123456789012"}
    run(sed_of("cluster.yaml"), tmp_path, **values, AWS_REGION="eu-west-1")
    text = (tmp_path / "cluster.yaml").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "0000000" not in code
    assert "us-east-1" not in code + (tmp_path / "deploy/monitoring/prometheus.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["docker"]["image"].startswith("123456789012.dkr.ecr.eu-west-1.amazonaws.com/")
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SubnetIds"] == ["subnet-1"]
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-1"]
        assert kind["node_config"]["ImageId"] == "ami-1"


def test_no_placeholder_is_left_in_the_kubernetes_files(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy" / "kubernetes", tmp_path / "deploy" / "kubernetes")
    values = {"REGISTRY": "r.eu/raycall", "BUCKET": "mine", "ACCOUNT": "123456789012"}
    run(sed_of("registry.example.com"), tmp_path, **values)
    text = "".join(path.read_text() for path in tmp_path.rglob("*.yaml"))
    for placeholder in ("example.com", "BUCKET", "000000000000"):
        assert placeholder not in text
    assert "arn:aws:iam::123456789012:role/raycall-pods" in text


def test_nodes_of_eks_have_the_disk_that_pods_ask_for() -> None:
    """eksctl's volumes are of 80 GB: a pod that asks for more would wait for ever."""
    asked = [
        int(size)
        for path in (ROOT / "deploy" / "kubernetes").glob("ray*.yaml")
        for size in re.findall(r"requests: .*ephemeral-storage: (\d+)Gi", path.read_text())
    ]
    groups = [line for line in commands() if re.match("eksctl create (cluster|nodegroup)", line)]
    assert len(groups) == 3
    for line in groups:
        (volume,) = re.findall(r"--node-volume-size (\d+)", line)
        assert int(volume) > 1.1 * max(asked) + 30  # and images, logs, what the kubelet keeps back


def test_prometheus_reads_what_was_sent() -> None:
    from ray.autoscaler.sdk import get_docker_host_mount_location

    name = yaml.safe_load((ROOT / "cluster.yaml").read_text())["cluster_name"]
    (sent,) = re.findall(r"ray rsync-up cluster.yaml deploy/monitoring/ (\S+)/\n", PAGE)
    (mounted, inside) = re.findall(r"-v (\S+):(\S+):ro prom/prometheus", PAGE)[0]
    assert mounted == get_docker_host_mount_location(name) + sent
    (config,) = re.findall(r"--config.file=(\S+)", PAGE)
    assert config.startswith(inside)
    assert (ROOT / "deploy" / "monitoring" / Path(config).name).exists()


def test_commands_of_the_launcher_have_the_options() -> None:
    from ray.scripts.scripts import cli

    found = [line for line in commands() if re.match(r"ray (up|down|attach|dashboard) ", line)]
    assert len(found) >= 5
    for line in found:
        words = shlex.split(line, comments=True)
        known = {name for option in cli.commands[words[1]].params for name in option.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_the_service_is_pointed_at_the_bucket(tmp_path: Path) -> None:
    (line,) = [one for one in commands() if one.startswith("sed ") and "serve.yaml" in one]
    made = tmp_path / "serve.yaml"
    run(line.replace("/tmp/serve.yaml", str(made)), ROOT, BUCKET="mine")
    content, recommend = (a["args"] for a in yaml.safe_load(made.read_text())["applications"])
    assert content["encoder"] == "s3://mine/runs/demo/encoder"
    assert content["index"] == "s3://mine/runs/demo/index"
    assert recommend["rows"] == "s3://mine/runs/demo/users/sequences"


@pytest.mark.parametrize("page", ["docs/operations.md", "README.md"])
def test_every_pipeline_command_is_one_that_it_takes(page: str) -> None:
    from jobs import pipeline

    text = (ROOT / page).read_text().replace("\\\n", " ")
    found = re.findall(r"^ {4}.*python -m jobs\.pipeline (.*)$", text, re.MULTILINE)
    assert found
    for line in found:
        words = [word.replace("$BUCKET", "b") for word in shlex.split(line)]
        pipeline.configure(pipeline.arguments(words).parse_args(words))


def test_ray_job_submit_has_the_options() -> None:
    from ray.dashboard.modules.job.cli import submit

    known = {name for option in submit.params for name in option.opts}
    found = re.findall(r"ray job submit (.*?) -- ", PAGE.replace("\\\n", " "))
    assert found
    for line in found:
        assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_nightly_commands_are_ones_that_it_takes() -> None:
    from jobs import nightly

    tonight, again = (one for one in commands() if "python -m jobs.nightly" in one)
    given = "2026-01-31"
    for line in (tonight, again):
        text = line.partition("jobs.nightly ")[2].replace("$BUCKET", "b").replace("$DAY", given)
        words = shlex.split(text)
        options = nightly.arguments(words).parse_args(words)
        path = nightly.configure(options).source.model_dump()["path"]
        assert path.endswith(str(options.day))
    assert path.endswith(given)
    # but for the day it is the same night
    assert re.sub(r" --day \S+", "", again) == tonight
