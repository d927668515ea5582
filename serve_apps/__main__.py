"""`python -m serve_apps`: serve an encoder and its index over HTTP until stopped.

With --ask or --ask-image it answers that one question through HTTP, prints it and stops.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.lib import ArrowInvalid

from rec.artifacts import ArtifactError
from rec.config import ConfigError, settings


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve_apps",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve a content encoder and its index over HTTP: /v1/embed, /v1/knn, "
        "/v1/version, /healthz, /docs. Stops cleanly on Ctrl-C and SIGTERM.",
    )
    add = parser.add_argument
    add("--encoder", required=True, help="content-encoder artifact, a folder or s3:// URI")
    add("--index", required=True, help="index artifact made with that encoder")
    add("--host", default="127.0.0.1", help="0.0.0.0 for all interfaces; there is no password")
    add("--port", type=int, default=8000, help="0 picks a free one (default: 8000)")
    add("--address", help="Ray cluster to run on (default: RAY_ADDRESS, a running one, or own)")
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
    add("--k", type=int, default=5, help="how many to find (default: 5)")
    add("--titles", metavar="TABLE", help="folder of the items table, to print titles beside ids")
    if {"-h", "--help"} & set(argv):
        from serve_apps.app import ServeArgs  # with Ray: seconds, and ahead of --haproxy's switches

        lines = [f"  {line}" for line in settings(ServeArgs(encoder="ENCODER", index="INDEX"))]
        parser.epilog = "\n".join(["settings and their defaults:", *lines])
    return parser


def _question(text: str | None, image: str | None) -> dict[str, str]:
    question = {} if text is None else {"text": text}
    if image is not None:
        question["image"] = base64.b64encode(Path(image).read_bytes()).decode()
    return question


def _titles(table: str, ids: Sequence[str]) -> dict[str, str]:
    wanted = pc.field("item_id").isin(list(ids))
    found = ds.dataset(table, format="parquet").to_table(["item_id", "title"], filter=wanted)
    return dict(zip(found["item_id"].to_pylist(), found["title"].to_pylist(), strict=True))


def _print_answer(asked: argparse.Namespace, found: dict[str, Any]) -> None:
    parts = [f'"{asked.ask}"'] if asked.ask is not None else []
    parts += [f"picture {asked.ask_image}"] if asked.ask_image is not None else []
    titles = _titles(asked.titles, found["ids"]) if asked.titles else {}
    print(f"nearest to {' and '.join(parts)}:")
    for item_id, score in zip(found["ids"], found["scores"], strict=True):
        print(f"  {score:6.3f}  {item_id}  {titles.get(item_id) or ''}".rstrip())


def _print_welcome(url: str) -> None:
    sample = json.dumps({"queries": [{"text": "a crew lost in space"}], "k": 5})
    print(f"serving at {url}  (interactive documentation at {url}/docs)")
    print(f"  curl -s {url}/v1/knn -H 'Content-Type: application/json' -d '{sample}'")
    print("stop with Ctrl-C", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    asked = _parser(argv).parse_args(argv)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if asked.haproxy:  # Ray reads these when it is imported
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
        os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(64 << 20))
    from serve_apps.app import ServeArgs
    from serve_apps.launch import ServiceError, call, serving

    stop = threading.Event()
    try:
        args = ServeArgs(encoder=asked.encoder, index=asked.index).override(asked.set)
        question = _question(asked.ask, asked.ask_image)
        print(f"starting the service of {args.encoder} and {args.index} ...", flush=True)
        with serving(args, host=asked.host, port=asked.port, address=asked.address) as url:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            if question:
                print(f"POST {url}/v1/knn")
                answer = call(f"{url}/v1/knn", {"queries": [question], "k": asked.k})
                _print_answer(asked, answer["results"][0])
            else:
                _print_welcome(url)
                stop.wait()
            print("stopping: requests under way are finished first", flush=True)
    except KeyboardInterrupt:  # before the service was up
        return 130
    except (ArtifactError, ConfigError, ServiceError, OSError, ArrowInvalid) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
