"""The Kubernetes files: strict schemas, Ray's own reading of them, and their agreement."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_schema import check

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    # through text and back: documents of their own where the file has anchors
    return [yaml.safe_load(_plain(one)) for one in yaml.safe_load_all(path.read_text())]


def _plain(document: Any) -> str:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(document, Dumper=Dumper)


def cluster_of(name: str) -> dict[str, Any]:
    (document,) = documents(FOLDER / f"{name}.yaml")
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def places(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all mappings whose keys a schema states (maps of free keys left out)."""
    free = {"annotations", "labels", "limits", "matchLabels", "nodeSelector", "rayStartParams"}
    if isinstance(node, dict):
        if not path or path[-1] not in free | {"requests"}:
            yield path
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from places(value, (*path, number))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_api_server_would_take_it_and_no_wrong_key_anywhere(path: Path) -> None:
    assert {one.stem for one in FILES} == {
        "access", "nightly", "podmonitor", "raycluster", "rayjob", "rayservice",
    }  # fmt: skip
    for document in documents(path):
        check(document)
        for place in places(document):
            spoiled = copy.deepcopy(document)
            node: Any = spoiled
            for step in place:
                node = node[step]
            node["notAKey"] = "x"
            with pytest.raises(ValueError, match="notAKey"):
                check(spoiled)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "headGroupSpec", "template", "spec", "containers"), {}),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_a_wrong_value_is_found(path: tuple[str | int, ...], value: Any) -> None:
    (document,) = documents(FOLDER / "raycluster.yaml")
    node: Any = document
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(ValueError, match=str(path[-1])):
        check(document)


def test_the_autoscaler_reads_what_is_meant() -> None:
    """Ray's own derivation of node types from the custom resource, as its sidecar runs it."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    (cluster,) = documents(FOLDER / "raycluster.yaml")
    found = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    types = found["available_node_types"]
    assert set(types) == {"headgroup", "cpu", "gpu-spot", "gpu"}
    assert types["headgroup"]["resources"]["CPU"] == 0
    spot, demand = types["gpu-spot"], types["gpu"]
    assert spot["resources"] == demand["resources"]
    assert spot["resources"]["GPU"] == 1
    assert spot["priority"] > demand["priority"]
    assert {types[name]["idle_timeout_s"] for name in ("cpu", "gpu-spot", "gpu")} == {300, 600, 180}
    assert {name: kind["labels"].get("market-type") for name, kind in types.items()} == {
        "headgroup": None,  # takes no tasks
        "cpu": "on-demand",
        "gpu-spot": "spot",
        "gpu": "on-demand",
    }
    assert "GPU" not in types["cpu"]["resources"]


def test_serve_takes_the_config_and_it_is_that_of_the_applications() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps.app import ServeArgs
    from serve_apps.recommend_app import RecommendArgs

    (service,) = documents(FOLDER / "rayservice.yaml")
    found = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(found)
    own = yaml.safe_load((ROOT / "serve_apps" / "config.yaml").read_text())
    assert own["http_options"].pop("host") == "127.0.0.1"
    assert found["http_options"].pop("host") == "0.0.0.0"
    kinds = {"content": ServeArgs, "recommend": RecommendArgs}
    for theirs, ours in zip(found["applications"], own["applications"], strict=True):
        kinds[theirs["name"]].model_validate(theirs["args"])
        for name in ("encoder", "index", "items", "rows"):
            if name in ours["args"]:
                assert theirs["args"].pop(name) == "s3://BUCKET/" + ours["args"].pop(name)
        keys = [one["args"]["access"].pop("keys_file") for one in (theirs, ours)]
        assert keys[0] == f"s3://BUCKET/{keys[1]}"
        for application, least in ((theirs, 2), (ours, 1)):
            for deployment in application["deployments"]:
                assert deployment["autoscaling_config"].pop("min_replicas") == least
    assert found == own


def test_a_service_of_another_run_is_another_cluster() -> None:
    """KubeRay brings up a second cluster for a change below rayClusterConfig alone."""
    (service,) = documents(FOLDER / "rayservice.yaml")
    applications = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    args = [one["args"] for one in applications]
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    run = head["template"]["metadata"]["annotations"]["raycall/run"]
    assert {
        one[name] for one in args for name in ("encoder", "index", "items", "rows") if name in one
    } == {
        f"s3://BUCKET/runs/{run}/{name}"
        for name in (
            "encoder",
            "index",
            "tables",
            "users/encoder",
            "users/index",
            "users/sequences",
        )
    }


def test_no_two_resources_ask_for_one_head_service() -> None:
    """KubeRay calls it NAME-head-svc, of a RayCluster and of a RayService alike."""
    names = [
        document["metadata"]["name"]
        for path in FILES
        for document in documents(path)
        if document["kind"] in ("RayCluster", "RayJob", "RayService")
    ]
    assert len(names) == len(set(names)) == 3
    page = (ROOT / "docs" / "operations.md").read_text()
    forwarded = set(re.findall(r"svc/([\w-]+)-(?:head|serve)-svc", page))
    assert forwarded <= set(names)


def test_the_job_is_one_that_the_pipeline_takes() -> None:
    from jobs import pipeline

    (job,) = documents(FOLDER / "rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.pipeline"]
    options = pipeline.arguments(words[3:]).parse_args(words[3:])
    config = pipeline.configure(options)
    assert options.out.startswith("s3://")
    assert options.gpu
    assert config.embed.gpus_per_actor == 1


def test_the_nightly_job_is_one_that_the_cluster_of_the_other_file_takes() -> None:
    from ray.dashboard.modules.job.cli import submit

    from jobs import nightly

    (cron,) = documents(FOLDER / "nightly.yaml")
    (cluster,), (service,) = (documents(FOLDER / f"{n}.yaml") for n in ("raycluster", "rayservice"))
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    *command, dashes = container["command"]
    assert (command[:3], dashes) == (["ray", "job", "submit"], "--")
    known = {name for option in submit.params for name in option.opts}
    assert {word for word in command if word.startswith("--")} <= known
    words = container["args"]
    assert words[:3] == ["python", "-m", "jobs.nightly"]
    options = nightly.arguments(words[3:]).parse_args(words[3:])
    config = nightly.configure(options)
    assert config.source.model_dump()["path"] == f"s3://BUCKET/deliveries/{options.day}"
    assert config.embed.gpus_per_actor == 1
    assert options.service == f"http://{service['metadata']['name']}-serve-svc:8000"
    env = {one["name"]: one for one in container["env"]}
    name, space = (cluster["metadata"][key] for key in ("name", "namespace"))
    assert env["RAY_API_SERVER_ADDRESS"]["value"] == f"http://{name}-head-svc:8265"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == name
    assert space == service["metadata"]["namespace"] == cron["metadata"]["namespace"]
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    assert container["image"] == head["containers"][0]["image"]
    assert pod["securityContext"] == head["securityContext"]
    assert container["securityContext"] == head["containers"][0]["securityContext"]
    # neither two nights at once nor one twice
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    job = cron["spec"]["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 0
    assert 12 * 3600 < job["activeDeadlineSeconds"] < 24 * 3600  # one that hangs costs no other
    assert pod["restartPolicy"] == "Never"


def test_all_clusters_are_of_one_making() -> None:
    job, plain, service = (cluster_of(name) for name in ("rayjob", "raycluster", "rayservice"))
    assert job == plain
    del service["headGroupSpec"]["template"]["metadata"]  # the run that is served
    assert service["headGroupSpec"] == plain["headGroupSpec"]
    for one in (job, plain, service):
        assert one["authOptions"] == {"mode": "token"}
        for group in [one["headGroupSpec"], *one["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            assert pod["restartPolicy"] == "Never"
            assert pod["securityContext"]["runAsUser"] == 1000
            (container,) = pod["containers"]
            spill = group["rayStartParams"]["object-spilling-directory"]
            assert spill in [mount["mountPath"] for mount in container["volumeMounts"]]
            # labels are true, and no head ends with a spot node
            market = group.get("labels", {}).get("market-type", "on-demand")
            (selected,) = pod["nodeSelector"].values()
            assert selected == market.upper().replace("-", "_")
            gpus = container["resources"]["limits"].get("nvidia.com/gpu")
            kind = "cuda" if gpus else "cpu"
            assert container["image"] == f"registry.example.com/raycall:0.1.0-{kind}"


def test_versions_are_those_of_the_constraints() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (ray,) = [pin.split("==")[1] for pin in pins if pin.startswith("ray==")]
    assert {cluster_of(n)["rayVersion"] for n in ("rayjob", "raycluster", "rayservice")} == {ray}
