"""Starts the services on this machine or a cluster, waits until they answer, stops them.

Long-lived services on a cluster are better deployed with `serve deploy serve_apps/config.yaml`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve._private import constants
from ray.serve.context import _get_global_client

from rec.client import Client, RequestError
from rec.config import ConfigError
from rec.local_ray import prepare_local_ray
from serve_apps import app, items_app, recommend_app
from serve_apps.deployment import LOGGING, gateways
from serve_apps.guard import Access, Guard, is_loopback
from serve_apps.recommend_gateway import PATH


class ServiceError(RuntimeError):
    """The service did not come up. The message says why."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _is_running() -> bool:
    try:
        return bool(serve.status().proxies)
    except RayActorError:  # this process has asked before, and that Serve has ended since
        return False


def _await_healthy(url: str, path: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with Client(url, timeout_s=10) as client:
        while True:
            try:
                client.call(path)
                return
            except RequestError as error:
                if time.monotonic() > deadline:
                    raise ServiceError(f"{url}{path}: {error}") from error
                time.sleep(0.2)


def _refuse_taken(host: str, port: int, way_out: str = "give another --port") -> None:
    """Raise ServiceError where somebody listens there: Serve would share a port with another Serve,
    and clients would be answered by either."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not what has just closed
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} of {host}: {error.strerror}; stop what listens there, or {way_out}"
            ) from error


def _refuse_taken_by_haproxy(host: str) -> None:
    """The same of the ports of this machine that one HAProxy of Serve has beside that of HTTP."""
    if not constants.RAY_SERVE_ENABLE_HA_PROXY:
        return
    for name, where in (
        ("RAY_SERVE_HAPROXY_METRICS_PORT", "0.0.0.0"),
        ("RAY_SERVE_HAPROXY_STATS_PORT", "0.0.0.0"),
        ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", host),
    ):
        _refuse_taken(
            where,
            getattr(constants, name),
            f"set {name} to a free port: it may be another service with --haproxy",
        )


def _check_access(access: Access, host: str, *, here: bool) -> None:
    """Raise ConfigError before anything starts, where a gateway would."""
    if access.off and not is_loopback(host):
        raise ConfigError(f"--no-keys: {host} is no loopback interface; give keys")
    if here:  # on a cluster, its machines have their own environment
        Guard(access)


def _is_local(address: str | None) -> bool:
    """Whether a Ray is to be started here: not whatever is found on this machine, since a job's own
    would end the service with the job."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def logical_cpus(args: app.ServeArgs | None, users: recommend_app.RecommendArgs | None) -> int:
    """Processors that a Ray started here is to count: those there are, or as many as all replicas
    ask for where that is more, since Serve would wait for them without end or word."""
    deployments: list[serve.Deployment] = []
    if args is not None:
        gateway = gateways(app.Gateway, args.gateways, holds_model=args.encoder_in_gateway)
        deployments += [gateway]
        deployments += [] if args.encoder_in_gateway else [app.Encoder]
        deployments += [] if args.index_in_gateway else [app.Knn]
        deployments += [items_app.Items] if args.items else []
    if users is not None:
        gateway = recommend_app.RecommendGateway
        gateway = gateways(gateway, users.gateways, holds_model=users.in_gateway)
        deployments += [gateway]
        deployments += [] if users.in_gateway else [recommend_app.Recommend]
    asked = 0.0
    for one in deployments:
        number = one.num_replicas if isinstance(one.num_replicas, int) else 1
        asked += number * (one.ray_actor_options or {}).get("num_cpus", 1)
    return max(os.cpu_count() or 1, math.ceil(asked))


def _connect(address: str | None, num_cpus: int) -> bool:
    """Connect to Ray, starting it where there is none; whether it was started."""
    quiet: dict[str, Any] = {
        "log_to_driver": False, "logging_level": logging.WARNING, "include_dashboard": False,
    }  # fmt: skip
    local = _is_local(address)
    address = "local" if local else address or os.environ.get("RAY_ADDRESS")
    if local:
        prepare_local_ray()
        quiet["num_cpus"] = num_cpus
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray has no class of its own for what goes wrong here
        where = "Ray does not start" if local else f"no Ray cluster at {address}"
        raise ServiceError(f"{where}: {error}") from error
    return local


def _reasons() -> str:
    """Why deployments did not start: the last exception of each one's traceback."""
    last = {
        name: re.split(r"\n(?=[A-Za-z_.]+: )", status.message.strip())[-1]
        for application in serve.status().applications.values()
        for name, status in application.deployments.items()
        if status.status == "DEPLOY_FAILED"
    }
    return "; ".join(f"{name}: {error}" for name, error in last.items())


@contextmanager
def serving(
    args: app.ServeArgs | None = None,
    users: recommend_app.RecommendArgs | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str | None = None,
    startup_timeout_s: float = 120,
) -> Iterator[str]:
    """Runs the services within the block and yields their base URL, http://host:port.

    Args:
        args: the content service; None: not served.
        users: recommendations, below PATH; None: not served.
        host: interface to listen on; 0.0.0.0 is all of them, and needs keys.
        port: 0 picks a free one.
        address: a Ray cluster's, or "auto" for a running `ray start`; None takes RAY_ADDRESS,
            else starts Ray here and stops it afterwards, as "local" does always. A Ray that this
            process already uses is used and left running.
        startup_timeout_s: how long /healthz may fail once the replicas are up.

    Raises:
        ArtifactError: encoder or index cannot be read, or do not belong together.
        ConfigError: there are no keys, or none are asked for and the host is no loopback interface.
        ServiceError: the port is taken, Serve already runs on that cluster, or the service does
            not start, for instance because a file of an artifact is not as published.
    """
    applications: dict[str, serve.RunTarget] = {}  # built first: bad artifacts start nothing
    if args is not None:
        applications[""] = serve.RunTarget(app.build(args), "content", "/", LOGGING)
    if users is not None:
        applications[PATH] = serve.RunTarget(recommend_app.build(users), "recommend", PATH, LOGGING)
    if not applications:
        raise ServiceError("nothing to serve: give the content service, recommendations or both")
    for one in (args, users):
        if one is not None:
            _check_access(one.access, host, here=address in (None, "local"))
    _refuse_taken(host, port)
    connected = not ray.is_initialized()
    if connected and _is_local(address):
        _refuse_taken_by_haproxy(host)
    started = connected and _connect(address, logical_cpus(args, users))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        if _is_running():
            raise ServiceError(
                "Serve already runs on this Ray cluster with its own host and port; deploy to it "
                "with `serve deploy serve_apps/config.yaml`"
            )
        port = port or free_port()
        # the gateways' own deadlines answer better than Serve's
        timeout_s = max(one.timeout_s for one in (args, users) if one is not None) + 5
        serve.start(http_options={"host": host, "port": port, "request_timeout_s": timeout_s})
        try:
            url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
            try:
                serve.run_many(list(applications.values()))
            except RuntimeError as error:
                raise ServiceError(f"the service did not start: {_reasons() or error}") from error
            for below in applications:
                _await_healthy(url, f"{below}/healthz", startup_timeout_s)
            yield url
        finally:
            # lets requests under way finish; one application after the other takes twice as long
            client = _get_global_client()
            assert client is not None
            client.delete_apps([one.name for one in applications.values()])
            if not started:
                serve.shutdown()
    finally:
        if connected:
            ray.shutdown()
