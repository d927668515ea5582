"""What a Kubernetes API server with KubeRay and the Prometheus operator takes; unknown keys fail.

Kubernetes' own kinds are checked by the JSON schemas of the package kubernetes-validate, in their
strict form. KubeRay's and PodMonitor's are no part of it: their fields are stated here, as the
v1 reference of KubeRay 1.7 has them, those of this project's use and no more; pod templates within
go through Kubernetes' own schema again.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from referencing import Registry, Resource

_VERSION = "1.34"
_FOLDER = f"kubernetes-json-schema/v{_VERSION}.0-local-strict"


@cache
def _definitions() -> Registry[Any]:
    contents = schema_contents(f"{_FOLDER}/_definitions.json", _VERSION)
    return Resource.from_contents(contents) @ Registry()


@cache
def _validator(kind: str, api_version: str) -> Draft202012Validator:
    """kubernetes_validate.validate reads megabytes of definitions a call; here they are read
    once."""
    group, _, version = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], version) if part)
    contents = schema_contents(f"{_FOLDER}/{name}.json", _VERSION)
    return Draft202012Validator(contents, registry=_definitions())


def check_kubernetes(document: dict[str, Any]) -> None:
    """Raise ValueError where the API server would."""
    validator = _validator(document["kind"], document["apiVersion"])
    for error in validator.iter_errors(document):
        raise ValueError(f"{document['kind']} {error.json_path}: {error.message}")


def _pod_template(template: dict[str, Any]) -> dict[str, Any]:
    check_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": template})
    return template


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Strings = dict[str, str]
Template = Annotated[dict[str, Any], AfterValidator(_pod_template)]


class Metadata(_Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    namespace: str
    labels: Strings = {}
    annotations: Strings = {}


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"] = "token"
    secretName: str | None = None


class AutoscalerOptions(_Strict):
    version: Literal["v1", "v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    idleTimeoutSeconds: int = 60


class Group(_Strict):
    rayStartParams: Strings  # strings alone: KubeRay refuses a bare number
    template: Template
    resources: Strings = {}
    labels: Strings = {}


class WorkerGroup(Group):
    groupName: str
    replicas: int = Field(default=0, ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    numOfHosts: int = 1
    idleTimeoutSeconds: int | None = None
    priority: int = 0


class RayClusterSpec(_Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: Group
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(_Strict):
    entrypoint: str
    rayClusterSpec: RayClusterSpec
    entrypointNumCpus: float = 0
    entrypointNumGpus: float = 0
    runtimeEnvYAML: str = ""
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: int = 0
    activeDeadlineSeconds: int | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = 0
    suspend: bool = False


class RayServiceSpec(_Strict):
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec


class _Custom(_Strict):
    apiVersion: Literal["ray.io/v1"]
    metadata: Metadata


class RayCluster(_Custom):
    kind: Literal["RayCluster"]
    spec: RayClusterSpec


class RayJob(_Custom):
    kind: Literal["RayJob"]
    spec: RayJobSpec


class RayService(_Custom):
    kind: Literal["RayService"]
    spec: RayServiceSpec


class Relabeling(_Strict):
    sourceLabels: list[str]
    targetLabel: str


class Endpoint(_Strict):
    port: str
    relabelings: list[Relabeling] = []


class LabelSelector(_Strict):
    matchLabels: Strings


class PodMonitorSpec(_Strict):
    jobLabel: str
    selector: LabelSelector
    podMetricsEndpoints: list[Endpoint]


class PodMonitor(_Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


_KINDS: dict[str, type[BaseModel]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "RayService": RayService,
    "PodMonitor": PodMonitor,
}


def check(document: dict[str, Any]) -> None:
    """Raise ValueError (pydantic's is one) for what `kubectl apply --validate=strict` refuses."""
    kind = _KINDS.get(document["kind"])
    if kind is None:
        check_kubernetes(document)
    else:
        kind.model_validate(document)
