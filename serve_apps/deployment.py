"""What the applications' deployments on Ray Serve have in common."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter as Counted
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import ray
from pydantic import Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.util.metrics import Counter, Histogram

from rec.config import Config, ConfigError
from serve_apps.access_log import quick
from serve_apps.admin import Operator
from serve_apps.board import Board, RayBoard
from serve_apps.errors import ApiError
from serve_apps.follower import Follower
from serve_apps.guard import Access, Guard, is_loopback
from serve_apps.observe import Operations, access_log
from serve_apps.releases import Deployed, Release
from serve_apps.soon import Soon
from serve_apps.swap import Swaps

R = TypeVar("R")
T = TypeVar("T")

# Serve's defaults are five requests at once a replica, an endless queue and no deadline.
COMMON: dict[str, Any] = {
    "max_ongoing_requests": 64,
    "max_queued_requests": 256,
    "health_check_period_s": 10,
    "health_check_timeout_s": 30,
    "graceful_shutdown_timeout_s": 20,
    "graceful_shutdown_wait_loop_s": 0.2,
    "max_constructor_retry_count": 3,
    "backpressure_config": {"status_code": 503, "retry_after_s": 1},  # of a queue that is full
}

# of the whole of Serve: JSON lines; each gateway writes its own line a request, with more in it
LOGGING: dict[str, Any] = {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False}


class RayMeter:
    """Counts requests where Ray's own metrics are, at each node's metrics port, with prefix ray_;
    within a second.

    Args:
        service: which one.
    """

    def __init__(self, service: str) -> None:
        tags = ("service", "route", "status", "caller")
        self._requests = Counter(
            "raycall_requests", "Requests answered, by key and status", tag_keys=tags
        )
        self._seconds = Histogram(
            "raycall_request_seconds",
            "Time of a request in the gateway",
            boundaries=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
            tag_keys=("service", "route"),
        )
        self._service = service
        self._soon = Soon(self._count, 100)

    def __call__(self, route: str, status: int, caller: str, seconds: float) -> None:
        self._soon.add((route, status, caller, seconds))

    def _count(self, requests: Sequence[tuple[str, int, str, float]]) -> None:
        where = {route: {"service": self._service, "route": route} for route, *_ in requests}
        for (route, status, caller), number in Counted(one[:3] for one in requests).items():
            self._requests.inc(number, {**where[route], "status": str(status), "caller": caller})
        for route, _, _, seconds in requests:
            self._seconds.observe(seconds, where[route])


def operate(access: Access, service: str) -> Operations:
    """What a gateway on Serve does beside answering: keys, log lines, metrics.

    Raises:
        ConfigError: there are no keys, or none are asked for and Serve listens to other machines.
    """
    client = _get_global_client()
    assert client is not None
    host = client.http_config.host
    if access.off and not is_loopback(host):
        raise ConfigError(
            f"access.off: Serve listens on {host}, where other machines may ask; give keys"
        )
    own, serves = logging.getLogger("serve_apps"), logging.getLogger("ray.serve")
    own.handlers = serves.handlers  # into the replica's log
    serves.setLevel(logging.WARNING)  # it makes a line a request, which is then left out
    own.setLevel(logging.INFO)
    own.propagate = False
    access_log.handlers, access_log.propagate = quick(serves.handlers), False
    return Operations(Guard(access), RayMeter(service), returns_ids=False)


async def answered(answer: Awaitable[R]) -> R | ApiError:
    """The answer, or as a value the ApiError that it raised: Ray wraps what is raised."""
    try:
        return await answer
    except ApiError as error:
        return error


def open_board(deployed: Deployed) -> Board:
    """Of this replica's application."""
    return RayBoard(f"{serve.get_replica_context().app_name}/{deployed.id}/")


def follow(
    deployed: Deployed,
    *,
    key: Callable[[Release], str],
    load: Callable[[Release], T],
    close: Callable[[T], object] | None = None,
) -> Follower[T]:
    """What holds the releases that this replica is to hold; see `Follower`."""
    context = serve.get_replica_context()
    name = f"{context.deployment} {context.replica_id.unique_id}"
    return Follower(open_board(deployed), name, deployed.first, key=key, load=load, close=close)


class SwapSettings(Config):
    """How versions are swapped; see `serve_apps.swap`."""

    prepare_s: float = Field(default=300.0, gt=0)  # most that replicas may take to load one
    keep_s: float = Field(default=60.0, ge=0)  # how long the one before answers who names it


class _Args(Protocol):
    @property
    def timeout_s(self) -> float: ...
    @property
    def swap(self) -> SwapSettings: ...


def operator_of(
    deployed: Deployed, read: Callable[[dict[str, str]], Release], args: _Args
) -> Operator:
    """What leads swaps of this replica's application; see `Operator`."""
    settings = args.swap
    board, first = open_board(deployed), deployed.first
    swaps = Swaps(board, first, prepare_s=settings.prepare_s, keep_s=settings.keep_s)
    return Operator(swaps, read, wait_s=0.8 * args.timeout_s)


def not_held(version: str) -> ApiError:
    """The refusal of a replica that was asked for a version which it does not hold, as may happen
    for a moment while versions are swapped."""
    return ApiError(
        503,
        "being_replaced",
        f"version {version} is not held here: versions are being swapped",
        retry_after_s=1,
    )


def own_device() -> str:
    """Where this replica's model runs. Ray does not hide GPUs from one that asked for none."""
    return "cuda" if ray.get_runtime_context().get_accelerator_ids()["GPU"] else "cpu"


def gateways(deployment: serve.Deployment, number: int, *, holds_model: bool) -> serve.Deployment:
    """A gateway in so many replicas; one that holds a model takes a core."""
    options: dict[str, Any] = {} if number == 1 else {"num_replicas": number}
    if holds_model:
        options["ray_actor_options"] = {"num_cpus": 1}
    return deployment.options(**options) if options else deployment


async def within(timeout_s: float, answer: Awaitable[R]) -> R:
    """The answer, by a deadline; raises ApiError, 504."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError as error:
        raise ApiError(504, "timeout", f"no answer within {timeout_s} s") from error


async def ask(timeout_s: float, method: Any, *args: Any) -> Any:
    """What a deployment's method returns, by a deadline; a call that is late is cancelled.

    Raises:
        ApiError: the one that it returned, or 503 and 504 where there is no answer.
    """
    response = method.remote(*args)
    try:
        answer = await within(timeout_s, response)
    except ApiError:
        response.cancel()
        raise
    except BackPressureError as error:
        raise ApiError(503, "overloaded", "too many requests", retry_after_s=1) from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise ApiError(
            503, "unavailable", "a replica is being replaced", retry_after_s=1
        ) from error
    if isinstance(answer, ApiError):
        raise answer
    return answer


def check_transport(max_body_bytes: int) -> None:
    """Replicas that talk by gRPC drop messages over 4 MiB unless told otherwise: large pictures
    would end in a 500, so that is refused at the start."""
    if os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") != "1":
        return
    name = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    allowed = int(os.environ.get(name, 4 << 20))
    if allowed < max_body_bytes:
        raise ValueError(
            f"with RAY_SERVE_THROUGHPUT_OPTIMIZED=1 replicas take messages of {allowed} bytes, "
            f"limits.max_body_bytes is {max_body_bytes}: set {name}={max_body_bytes} on the cluster"
        )
