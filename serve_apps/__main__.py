"""`python -m serve_apps`: serve encoders and their indexes over HTTP until stopped.

With --ask, --ask-image or --ask-user it answers just that through HTTP, prints it and stops.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.lib import ArrowInvalid

from rec.artifacts import ArtifactError, join
from rec.client import Client, Content, Neighbours, Recommended, RequestError
from rec.config import ConfigError, settings
from serve_apps.keys import new_key

if TYPE_CHECKING:  # Ray is imported after --haproxy's switches are set
    from serve_apps.app import ServeArgs
    from serve_apps.recommend_app import RecommendArgs


_USERS = "users."  # what settings of recommendations begin with


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve_apps",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve over HTTP, of these one or both: a content encoder and its index "
        "(/v1/embed, /v1/knn, /v1/version, /healthz, /docs); an encoder of users, the index of its "
        "items and users' histories (/v1/recommend, and below it version, healthz, docs). With the "
        "tables of the items also a page to look at all that with, at /, and what it needs "
        "(/v1/items, /v1/related, /v1/tags). Stops cleanly on Ctrl-C and SIGTERM.",
    )
    add = parser.add_argument
    add("--encoder", help="content-encoder artifact, a folder or s3:// URI")
    add("--index", help="index artifact made with that encoder")
    add("--items", metavar="TABLES", help="folder of the items' tables, for the page at /")
    add("--user-encoder", metavar="ENCODER", help="sequence-encoder artifact")
    add("--item-index", metavar="INDEX", help="index artifact of that encoder's items")
    add("--sequences", metavar="ROWS", help="sequence-rows artifact, of users' histories")
    add("--host", default="127.0.0.1", help="0.0.0.0 for all interfaces")
    add("--keys", metavar="FILE", help="API keys of both services, made by serve_apps.keys")
    add("--no-keys", action="store_true", help="let anybody on this machine ask, and nobody else")
    add("--port", type=int, default=8000, help="0 picks a free one (default: 8000)")
    add(
        "--address",
        help="Ray cluster to run on (default: RAY_ADDRESS, or own)",
    )
    add(
        "--haproxy",
        action="store_true",
        help="three times the throughput through HAProxy; ports 9101, 8404 and 30000 up then "
        "listen on all interfaces, and stopping takes half a minute",
    )
    add(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATH=VALUE",
        help="typed overrides of the settings below, as in --set limits.max_k=100",
    )
    add("--ask", metavar="TEXT", help="find the nearest items of this text, print them and stop")
    add("--ask-image", metavar="FILE", help="the same for a picture; with --ask, for both at once")
    add("--ask-user", metavar="ID", help="recommend to this user, print it and stop")
    add("--k", type=int, default=5, help="how many to find (default: 5)")
    add(
        "--titles",
        metavar="TABLE",
        help="folder of the items table, to print titles beside ids (default: that of --items)",
    )
    if {"-h", "--help"} & set(argv):
        # with Ray: seconds, and ahead of --haproxy's switches
        from serve_apps.app import ServeArgs
        from serve_apps.recommend_app import RecommendArgs

        users = RecommendArgs(encoder="ENCODER", index="INDEX", rows="ROWS")
        lines = [f"  {line}" for line in settings(ServeArgs(encoder="ENCODER", index="INDEX"))]
        lines += [f"  {_USERS}{line}" for line in settings(users)]
        parser.epilog = "\n".join(["settings and their defaults:", *lines])
    return parser


def _question(text: str | None, image: str | None) -> Content | None:
    if text is None and image is None:
        return None
    return Content(text, None if image is None else Path(image).read_bytes())


def _titles(table: str, ids: Sequence[str]) -> dict[str, str]:
    wanted = pc.field("item_id").isin(list(ids))
    found = ds.dataset(table, format="parquet").to_table(["item_id", "title"], filter=wanted)
    return dict(zip(found["item_id"].to_pylist(), found["title"].to_pylist(), strict=True))


def _print_items(titles: str | None, ids: Sequence[str], scores: Iterable[float]) -> None:
    named = _titles(titles, ids) if titles else {}
    for item_id, score in zip(ids, scores, strict=True):
        print(f"  {score:6.3f}  {item_id}  {named.get(item_id) or ''}".rstrip())


def _print_answer(asked: argparse.Namespace, found: Neighbours) -> None:
    parts = [f'"{asked.ask}"'] if asked.ask is not None else []
    parts += [f"picture {asked.ask_image}"] if asked.ask_image is not None else []
    print(f"nearest to {' and '.join(parts)}:")
    _print_items(asked.titles, found.ids, found.scores)


def _print_recommended(asked: argparse.Namespace, found: Recommended) -> None:
    known, unknown = found.num_known, found.num_unknown
    by = f"by model {found.model_version}" if found.source == "model" else "what is popular"
    print(f"recommended to {asked.ask_user}, {by}, from {known} of their {known + unknown} events:")
    _print_items(asked.titles, found.ids, found.scores)


def _print_welcome(url: str, *, content: bool, users: bool, page: bool, keys: bool) -> None:
    samples: list[tuple[str, str, dict[str, Any]]] = []
    if content:
        samples.append(("", "/v1/knn", {"queries": [{"text": "a crew lost in space"}], "k": 5}))
    if users:
        samples.append(("/v1/recommend", "/v1/recommend", {"history": [], "k": 5}))
    places = " and ".join(f"{url}{below}/docs" for below, _, _ in samples)
    print(f"serving at {url}  (interactive documentation at {places})")
    if page:
        print(f"open {url}/ to look at the items, what is near to them and what is recommended")
    for _, path, body in samples:
        who = "-H 'Authorization: Bearer KEY' " if keys else ""
        asking = f"{who}-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        print(f"  curl -s {url}{path} {asking}")
    print("stop with Ctrl-C", flush=True)


def _ask(asked: argparse.Namespace, question: Content | None, url: str, key: str) -> None:
    """Put the questions of the command line and print the answers; raises RequestError."""
    with Client(url, key=key) as client:
        if question is not None:
            print(f"POST {url}/v1/knn")
            _print_answer(asked, client.knn_content([question], asked.k).results[0])
        if asked.ask_user:
            print(f"POST {url}/v1/recommend")
            _print_recommended(asked, client.recommend(user=asked.ask_user, k=asked.k))


def _refuse_parts(asked: argparse.Namespace) -> None:
    """Raise ConfigError where what is given makes no service, or cannot be asked."""
    content = {"--encoder": asked.encoder, "--index": asked.index}
    users = {
        "--user-encoder": asked.user_encoder,
        "--item-index": asked.item_index,
        "--sequences": asked.sequences,
    }
    if not any([*content.values(), *users.values()]):
        raise ConfigError(f"nothing to serve: give {', '.join(content)}, or {', '.join(users)}")
    for part in (content, users):
        if any(part.values()) and (missing := [name for name, uri in part.items() if not uri]):
            raise ConfigError(f"{', '.join(missing)}: missing; {', '.join(part)} go together")
    if asked.items and not asked.encoder:
        raise ConfigError("--items needs --encoder and --index: the page shows what lies near")
    if (asked.ask or asked.ask_image) and not asked.encoder:
        raise ConfigError("--ask and --ask-image need --encoder and --index")
    if asked.ask_user and not asked.user_encoder:
        raise ConfigError(f"--ask-user needs {', '.join(users)}")
    if asked.keys and asked.no_keys:
        raise ConfigError("--keys, --no-keys: give one of them")


def _services(
    asked: argparse.Namespace, keys: Sequence[str]
) -> tuple[ServeArgs | None, RecommendArgs | None]:
    """The content service and recommendations, None where not asked for; raises ConfigError.

    `keys` are further lines of a file of keys.
    """
    from serve_apps.app import ServeArgs
    from serve_apps.recommend_app import RecommendArgs

    _refuse_parts(asked)
    content = users = None
    theirs = [one.removeprefix(_USERS) for one in asked.set if one.startswith(_USERS)]
    others = [one for one in asked.set if not one.startswith(_USERS)]
    who = [f"access.keys={json.dumps(keys)}"] if keys else []
    who += [f"access.keys_file={asked.keys}"] if asked.keys else []
    who += ["access.off=true"] if asked.no_keys else []
    if asked.encoder:
        places = {"encoder": asked.encoder, "index": asked.index, "items": asked.items}
        content = ServeArgs(**places).override([*who, *others])
    elif others:
        raise ConfigError(f"--set {others[0]}: a setting of the content service; see --help")
    if asked.user_encoder:
        places = {"encoder": asked.user_encoder, "index": asked.item_index}
        users = RecommendArgs(**places, rows=asked.sequences).override([*who, *theirs])
    elif theirs:
        raise ConfigError(f"--set {_USERS}{theirs[0]}: recommendations are not served")
    return content, users


def behind_haproxy() -> None:
    """Set the switches for it, which Ray reads when it is imported."""
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(64 << 20))
    # the gateways count requests themselves; Serve would read a line of HAProxy's for each
    os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_ENABLED", "0")
    # a stopping replica lives on for load balancers slower than HAProxy, 30 s by default
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "5")
    # an HAProxy that died is noticed within three of these
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
    # who sends no more keeps a connection an hour by default, of 4,096
    os.environ.setdefault("RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", "60")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    asked = _parser(argv).parse_args(argv)
    if asked.items and not asked.titles:
        asked.titles = join(asked.items, "items")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if asked.haproxy:
        behind_haproxy()
    from serve_apps.launch import ServiceError, serving

    stop = threading.Event()
    try:
        question = _question(asked.ask, asked.ask_image)
        own_key, line = new_key("this-command")  # with which the command asks its own service
        content, users = _services(asked, [line] if question or asked.ask_user else [])
        served = " and ".join(f"{one.encoder} and {one.index}" for one in (content, users) if one)
        print(f"starting the service of {served} ...", flush=True)
        where = {"host": asked.host, "port": asked.port, "address": asked.address}
        with serving(content, users, **where) as url:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            if question or asked.ask_user:
                _ask(asked, question, url, own_key)
            else:
                parts = {"content": content is not None, "users": users is not None}
                _print_welcome(url, **parts, page=bool(asked.items), keys=not asked.no_keys)
                stop.wait()
            print("stopping: requests under way are finished first", flush=True)
    except KeyboardInterrupt:  # before the service was up
        return 130
    except (ArtifactError, ConfigError, RequestError, ServiceError, OSError, ArrowInvalid) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
