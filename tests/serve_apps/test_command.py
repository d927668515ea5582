"""The command that serves: what it takes, one question; the checked-in configuration."""

from __future__ import annotations

import inspect
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rec.artifacts import ArtifactError
from rec.config import ConfigError

CONFIG = Path(__file__).parents[2] / "serve_apps" / "config.yaml"


def test_the_checked_in_configuration_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps import app, items_app, recommend_app
    from serve_apps.deployment import COMMON, LOGGING
    from serve_apps.guard import Access
    from serve_apps.recommend_gateway import PATH

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    content, recommend = config.applications
    assert content.import_path == "serve_apps.app:build"
    assert app.ServeArgs.model_validate(content.args).limits == app.Limits()
    assert app.ServeArgs.model_validate(content.args).access.rate_per_s == Access().rate_per_s
    assert content.args["access"] == recommend.args["access"]
    assert config.logging_config is not None
    assert {name: getattr(config.logging_config, name) for name in LOGGING} == LOGGING
    assert (recommend.import_path, recommend.route_prefix) == (
        "serve_apps.recommend_app:build",
        PATH,
    )
    limits = recommend_app.RecommendArgs.model_validate(recommend.args).limits
    assert limits == recommend_app.RecommendLimits()
    # Ray converts `args` only where the annotation is a class and not a string
    assert inspect.signature(app.build).parameters["args"].annotation is app.ServeArgs
    taken = inspect.signature(recommend_app.build).parameters["args"].annotation
    assert taken is recommend_app.RecommendArgs
    for application, deployments in (
        (content, (app.Encoder, app.Knn, items_app.Items, app.Gateway)),
        (recommend, (recommend_app.Recommend, recommend_app.RecommendGateway)),
    ):
        stated = {d.name: d for d in application.deployments}
        assert set(stated) == {code.name for code in deployments}
        for code in deployments:
            assert stated[code.name].max_ongoing_requests == code.max_ongoing_requests == 64
            assert stated[code.name].max_queued_requests == code.max_queued_requests == 256
            full = stated[code.name].backpressure_config.model_dump()
            assert full == COMMON["backpressure_config"]


@pytest.mark.parametrize("setting", ["max_batch=0", "batch_wait_ms=-1", "timeout_s=0"])
def test_numbers_that_no_service_can_have_are_refused(setting: str) -> None:
    from serve_apps.app import ServeArgs
    from serve_apps.recommend_app import RecommendArgs

    for args in (
        ServeArgs(encoder="e", index="i"),
        RecommendArgs(encoder="e", index="i", rows="r"),
    ):
        with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]}: Input should be"):
            args.override([setting])


@pytest.fixture
def cluster(ray_local: None) -> Iterator[str]:
    """Address of a Ray without a service; what `main` does with signals is undone."""
    import ray

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield ray.get_runtime_context().gcs_address
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_answers_one_question_and_stops(
    served: Any, cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve_apps.__main__ import main

    titles = {"item_id": served.ids, "title": [f"The {text}" for text in served.texts]}
    (tmp_path / "items").mkdir()
    pq.write_table(pa.table(titles), tmp_path / "items" / "shard-00000.parquet")
    # what follows a picture's end is ignored, but sent: 5 MB here, also without HAProxy
    (tmp_path / "poster.png").write_bytes(served.pictures[4] + bytes(5_000_000))
    asked = ["--ask", served.texts[4], "--ask-image", f"{tmp_path}/poster.png", "--k", "3"]
    artifacts = ["--encoder", served.encoder_uri, "--index", served.index_uri]
    more = ["--titles", f"{tmp_path}/items", "--address", cluster, "--port", "0"]
    status = main([*artifacts, *asked, *more])
    told = capsys.readouterr()
    assert status == 0, told.err
    lines = told.out.splitlines()
    best = next(i for i, line in enumerate(lines) if line.startswith("nearest to")) + 1
    assert lines[best].split() == ["1.000", "item-4", "The", *served.texts[4].split()]


@pytest.mark.ray
@pytest.mark.slow
def test_a_damaged_index_is_named_when_a_replica_refuses_it(
    served: Any,
    cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from serve_apps import app
    from serve_apps.__main__ import main

    # Serve would try three times to start a replica
    monkeypatch.setattr(app, "Knn", app.Knn.options(max_constructor_retry_count=1))
    index = Path(shutil.copytree(served.index_uri, tmp_path / "index"))
    file = next(index.rglob("index.faiss"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    artifacts = ["--encoder", served.encoder_uri, "--index", str(index)]
    assert main([*artifacts, "--address", cluster, "--port", "0", "--no-keys"]) == 1
    told = capsys.readouterr().err
    assert "the service did not start" in told
    assert f"{file}" in told
    assert "publish again" in told


def test_a_mismatched_pair_is_refused_before_ray_starts(
    served: Any, publish_index: Any, tmp_path: Path
) -> None:
    from serve_apps.app import ServeArgs
    from serve_apps.launch import serving

    index = publish_index(tmp_path, served.ids, served.vectors, "0" * 16)
    args = ServeArgs(encoder=served.encoder_uri, index=index)
    with pytest.raises(ArtifactError, match="vectors of encoder 0000"), serving(args, port=0):
        pytest.fail("it started")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no API keys: make one with python -m serve_apps.keys"),
        (["--no-keys", "--host", "0.0.0.0"], "--no-keys: 0.0.0.0 is no loopback interface"),
        (["--keys", "nowhere.txt"], "nowhere.txt: keys cannot be read"),
    ],
)
def test_no_service_without_keys_starts_by_accident(
    served: Any,
    more: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serve_apps.__main__ import main

    monkeypatch.delenv("RAYCALL_API_KEYS", raising=False)
    artifacts = ["--encoder", served.encoder_uri, "--index", served.index_uri]
    assert main([*artifacts, "--port", "0", *more]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_says_what_is_wrong(served: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_apps", "--encoder", str(tmp_path), "--index", "x"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=CONFIG.parents[1], check=False
    )
    assert done.returncode == 1
    assert "manifest.json: not found" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing to serve: give --encoder, --index, or --user-encoder"),
        (["--encoder", "a"], "--index: missing; --encoder, --index go together"),
        (["--sequences", "a"], "--user-encoder, --item-index: missing"),
        (["--items", "t"], "nothing to serve"),
        (
            ["--user-encoder", "a", "--item-index", "b", "--sequences", "c", "--items", "t"],
            "--items needs --encoder",
        ),
        (["--encoder", "a", "--index", "b", "--ask-user", "u"], "--ask-user needs --user-encoder"),
        (
            ["--user-encoder", "a", "--item-index", "b", "--sequences", "c", "--ask", "t"],
            "--ask and --ask-image need --encoder",
        ),
        (["--encoder", "a", "--index", "b", "--set", "users.limits.max_k=3"], "are not served"),
        (["--encoder", "a", "--index", "b", "--keys", "k", "--no-keys"], "give one of them"),
    ],
)
def test_the_command_serves_whole_parts(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve_apps.__main__ import main

    assert main(given) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("reuse", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_that_is_taken_is_refused_before_ray_starts(served: Any, reuse: int) -> None:
    from serve_apps.app import ServeArgs
    from serve_apps.guard import Access
    from serve_apps.launch import ServiceError, serving

    access = Access(off=True)
    args = ServeArgs(encoder=served.encoder_uri, index=served.index_uri, access=access)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, reuse, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1: .*another --port")
        with told, serving(args, port=port):
            pass


def test_a_port_of_haproxy_that_is_taken_is_refused_before_ray_starts(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another service with --haproxy on the same machine."""
    from ray.serve._private import constants

    from serve_apps.app import ServeArgs
    from serve_apps.guard import Access
    from serve_apps.launch import ServiceError, free_port, serving

    args = ServeArgs(encoder=served.encoder_uri, index=served.index_uri, access=Access(off=True))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as other tests may have left it
    monkeypatch.setattr(constants, "RAY_SERVE_ENABLE_HA_PROXY", True)
    names = [f"RAY_SERVE_{one}_PORT" for one in ("HAPROXY_METRICS", "HAPROXY_STATS")]
    for name in (*names, "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            monkeypatch.setattr(constants, name, port)
            told = pytest.raises(ServiceError, match=f"port {port} of .*set {name} to a free port")
            with told, serving(args, port=0, address="local"):
                pass
        monkeypatch.setattr(constants, name, free_port())


def test_replicas_never_wait_for_processors_of_a_ray_that_is_started_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serve_apps import app
    from serve_apps.launch import logical_cpus
    from serve_apps.recommend_app import RecommendArgs

    content = app.ServeArgs(encoder="e", index="i", items="t", gateways=9)
    users = RecommendArgs(encoder="e", index="i", rows="r")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert logical_cpus(content, users) == 64
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert logical_cpus(content, users) == 4  # 1 + 9 * .15 + .5 + .1 and .15 + .1: 3.2
    assert logical_cpus(None, users) == 1
    held = content.model_copy(update={"encoder_in_gateway": True, "index_in_gateway": True})
    assert logical_cpus(held, users.model_copy(update={"in_gateway": True})) == 11  # 9 + .1 and 1
    monkeypatch.setattr(app, "Knn", app.Knn.options(num_replicas=3))
    assert logical_cpus(content, None) == 4  # 1 + 9 * .15 + 3 * .5 + .1: 3.95
