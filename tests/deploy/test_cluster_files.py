"""The cluster files: what Ray's launcher, EC2 and CloudFormation would say of them."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from botocore.session import Session
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
AWS, ONPREM = ROOT / "cluster.yaml", ROOT / "deploy" / "onprem.yaml"
_PROVIDERS = Path(ray.__file__).parent / "autoscaler" / "_private"


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def check(config: dict[str, Any]) -> None:
    """As `ray up` does before it touches anything; and the provider's keys, which Ray's schema
    leaves open, against the code that reads them."""
    validate_config(prepare_config(copy.deepcopy(config)))
    kind = config["provider"]["type"]
    code = "".join(path.read_text() for path in _PROVIDERS.glob(f"{kind}/**/*.py"))
    for key in config["provider"]:
        if key != "type" and f'"{key}"' not in code:
            raise ValidationError(f"provider.{key}: Ray's {kind} provider reads no such key")


def run_instances_report(node_config: dict[str, Any]) -> str:
    """What botocore finds wrong with the call that Ray makes of a node_config; empty when fine."""
    call = {**node_config, "MinCount": 1, "MaxCount": 1}
    call["SubnetId"] = call.pop("SubnetIds")[0]  # Ray tries one after another
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate(call, shape).generate_report()
    if call["InstanceType"] not in shape.members["InstanceType"].enum:
        report += f"\nunknown InstanceType {call['InstanceType']}"
    return report


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=lambda path: path.name)
def test_ray_takes_the_file(path: Path) -> None:
    check(load(path))


def _top(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = 5


def _provider(config: dict[str, Any]) -> None:
    config["provider"]["use_internal_ip"] = True


def _docker(config: dict[str, Any]) -> None:
    config["docker"]["shm_size"] = "8g"


def _auth(config: dict[str, Any]) -> None:
    config["auth"]["ssh_proxy"] = "x"


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=lambda path: path.name)
@pytest.mark.parametrize("spoil", [_top, _provider, _docker, _auth])
def test_a_wrong_key_is_found(path: Path, spoil: Callable[[dict[str, Any]], None]) -> None:
    config = load(path)
    spoil(config)
    with pytest.raises(ValidationError):
        check(config)


def test_a_wrong_key_of_a_node_type_is_found() -> None:
    config = load(AWS)
    config["available_node_types"]["gpu-spot"]["spot"] = True
    with pytest.raises(ValidationError, match="spot"):
        check(config)


@pytest.mark.parametrize("name", load(AWS)["available_node_types"])
def test_ec2_takes_every_node_type(name: str) -> None:
    node = load(AWS)["available_node_types"][name]["node_config"]
    assert run_instances_report(node) == ""
    for wrong in (
        {"EbsOptimised": True},
        {"InstanceType": "m6id.4xlargest"},
        {"MetadataOptions": {"HttpToken": "required"}},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"Size": 150}}]},
        {"IamInstanceProfile": "raycall-worker"},
        {"InstanceMarketOptions": {"Market": "spot"}},
    ):
        assert run_instances_report({**node, **wrong}) != ""


def test_the_head_takes_no_tasks_and_spot_comes_before_the_same_on_demand() -> None:
    config = load(AWS)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0 --num-gpus=0" in load(ONPREM)["head_start_ray_commands"][-1]
    spot, demand = types["gpu-spot"], types["gpu"]
    assert spot["priority"] > demand["priority"]
    assert spot["resources"] == demand["resources"]
    market = spot["node_config"].pop("InstanceMarketOptions")
    assert market["MarketType"] == "spot"
    assert spot["node_config"] == demand["node_config"]
    assert all("idle_timeout_s" in kind for name, kind in types.items() if name != "head")


def launched(*demand: dict[str, float], without: str | None = None) -> dict[str, int]:
    """What autoscaler v2 starts for a demand, `without` one type that was asked for in vain."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = AutoscalingConfig(load(AWS), skip_content_hash=True)
    requests = [ResourceRequestUtil.make(one) for one in demand]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            recoverable_resource_availabilities={without: 0.0} if without else {},
        )
    )
    assert not reply.infeasible_resource_requests
    return {one.instance_type: one.count for one in reply.to_launch}


def test_the_autoscaler_starts_what_the_file_says() -> None:
    driver, training = {"CPU": 4}, {"CPU": 1, "GPU": 1}
    assert launched(driver) == {"cpu": 1}  # whatever the priority of GPU nodes
    assert launched(*[{"CPU": 1}] * 40) == {"cpu": 3}
    assert launched(training) == {"gpu-spot": 1}
    assert launched(training, without="gpu-spot") == {"gpu": 1}
    assert launched(*[training] * 10) == {"gpu-spot": 8, "gpu": 2}


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=lambda path: path.name)
def test_nothing_is_open(path: Path) -> None:
    config = load(path)
    (start,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in start
    options = " ".join(config["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    (token,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    assert str(Path(token).parent) in config["file_mounts"]
    if path == AWS:
        assert config["provider"]["use_internal_ips"]
        assert all(
            node["node_config"]["SecurityGroupIds"]  # else Ray makes one that is open for SSH
            for node in config["available_node_types"].values()
        )


def test_keys_of_storage_are_no_one_elses_to_read(tmp_path: Path) -> None:
    config = load(ONPREM)
    (file,) = [o.split()[1] for o in config["docker"]["run_options"] if "--env-file" in o]
    folder = str(Path(file).parent)
    lines = [line for line in config["initialization_commands"] if folder in line]
    place = str(tmp_path / "raycall")
    script = "\n".join(lines).replace(folder, place).replace("sudo ", "")
    script = re.sub(r"-[og] 1000", "", script)  # whoever runs the test
    for _ in range(2):  # at every start; what is written in it stays
        subprocess.run(["sh", "-euc", f"umask 022\n{script}"], check=True)
        held = Path(place, Path(file).name)
        assert held.stat().st_mode & 0o077 == held.parent.stat().st_mode & 0o077 == 0
        held.write_text("AWS_ACCESS_KEY_ID=x\n")
    assert held.read_text() == "AWS_ACCESS_KEY_ID=x\n"


@pytest.mark.parametrize("path", [AWS, ONPREM], ids=lambda path: path.name)
def test_start_commands_are_those_of_this_ray(path: Path) -> None:
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    config = load(path)
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert set(re.findall(r"--[a-z-]+", line)) <= known
        if "ray start" in line:
            (spill,) = re.findall(r"--object-spilling-directory=(\S+)", line)
            assert any(option.endswith(f":{spill}") for option in config["docker"]["run_options"])


def test_cloudformation_takes_the_stack_and_the_cluster_names_what_it_makes() -> None:
    from cfnlint import lint

    path = ROOT / "deploy" / "aws.yaml"
    assert [str(match) for match in lint(path.read_text(), regions=["us-east-1"])] == []
    wrong = path.read_text().replace("CidrBlock: 10.0.0.0/24", "Cidr: 10.0.0.0/24")
    assert lint(wrong, regions=["us-east-1"])
    profiles = set(re.findall(r"InstanceProfileName: (\S+)", path.read_text()))
    nodes = [kind["node_config"] for kind in load(AWS)["available_node_types"].values()]
    assert {node["IamInstanceProfile"]["Name"] for node in nodes} == profiles


def test_the_head_touches_no_instance_of_others() -> None:
    """Nor can it make one its own by a tag; and it hands on no role but the workers'."""
    text = (ROOT / "deploy" / "aws.yaml").read_text()
    stack = yaml.safe_load(re.sub(r"!(Ref|GetAtt|Sub|Select|GetAZs) ?", "", text))
    (policy,) = stack["Resources"]["HeadRole"]["Properties"]["Policies"]
    statements = policy["PolicyDocument"]["Statement"]
    cluster = load(AWS)["cluster_name"]
    own = {"aws:ResourceTag/ray-cluster-name": cluster}
    found: dict[str, list[Any]] = {}
    for one in statements:
        actions = one["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            found.setdefault(action, []).append(one.get("Condition", {}).get("StringEquals"))
    assert found == {
        "ec2:Describe*": [None],
        "ec2:RunInstances": [None],
        "ec2:CreateTags": [{"ec2:CreateAction": "RunInstances"}, own],
        "ec2:TerminateInstances": [own],
        "iam:PassRole": [{"iam:PassedToService": "ec2.amazonaws.com"}],
    }
    (passed,) = [one["Resource"] for one in statements if one["Action"] == "iam:PassRole"]
    assert passed == "WorkerRole.Arn"


def test_ray_launches_every_node_type_into_that_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher's own calls, answered by moto instead of AWS."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the SSH key it makes to ~/.ssh
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        stacks = boto3.client("cloudformation")
        body = (ROOT / "deploy" / "aws.yaml").read_text()
        stacks.create_stack(
            StackName="raycall", TemplateBody=body, Capabilities=["CAPABILITY_NAMED_IAM"]
        )
        (stack,) = stacks.describe_stacks(StackName="raycall")["Stacks"]
        made = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        image = boto3.client("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        text = AWS.read_text()
        for zeros, value in (
            ("subnet-00000000000000000", made["Subnet"]),
            ("sg-00000000000000000", made["SecurityGroup"]),
            ("ami-00000000000000000", image),
        ):
            assert zeros in text
            text = text.replace(zeros, value)
        config = bootstrap_aws(prepare_config(yaml.safe_load(text)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {"ray-node-kind": "worker", "ray-user-node-type": name}
            (node,) = provider.create_node(kind["node_config"], tags, 1)
            (found,) = boto3.client("ec2").describe_instances(InstanceIds=[node])["Reservations"]
            instance = found["Instances"][0]
            assert instance["SubnetId"] == made["Subnet"]
            assert "PublicIpAddress" not in instance
            assert instance["InstanceType"] == kind["node_config"]["InstanceType"]
            groups = [group["GroupId"] for group in instance["SecurityGroups"]]
            assert groups == [made["SecurityGroup"]]
