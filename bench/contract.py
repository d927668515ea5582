"""Thousands of requests made from the services' OpenAPI documents by schemathesis, right ones and
wrong ones: no 5xx, and nothing that the documents do not say.

    python -m bench.contract [--cases 2000]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bench.harness import Report, main
from bench.serve_data import publish_content, publish_users
from bench.serve_services import ours

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_KEYLESS = 20  # one case of so many goes without its key


class Asked(NamedTuple):
    """What came of the cases."""

    answers: Counter[tuple[str, int]]  # (method and path, status)
    failures: list[str]  # what did not hold, with a command that asks for it again

    @property
    def total(self) -> int:
        return self.answers.total()

    def statuses(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for (_, status), number in self.answers.items():
            found[status] += number
        return found


def ask(schema: Any, key: str, number: int, start: int = 0) -> Asked:
    """Ask at least `number` times, each operation about as often as each other, half of the time
    with what its document does not allow.

    Args:
        schema: as `schemathesis.openapi` loads one.
        key: of the service's API.
        start: seed; the same cases come of the same one.
    """
    asked = Asked(Counter(), [])
    kinds = [
        (one.ok(), mode)
        for one in schema.get_all_operations()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    turn = start
    while asked.total < number:  # what has no parameters has few cases
        before, each = asked.total, -(-(number - asked.total) // len(kinds))
        for operation, mode in kinds:
            turn += 1
            _run(operation.as_strategy(generation_mode=mode), each, turn, _asker(asked, key))
        if asked.total == before:
            raise RuntimeError("the document allows no requests")
    return asked


def _asker(asked: Asked, key: str) -> Callable[[Case], None]:
    def one(case: Case) -> None:
        keyless = asked.total % _KEYLESS == _KEYLESS - 1
        headers = {} if keyless else {"Authorization": f"Bearer {key}"}
        answer = case.call(headers=headers)
        asked.answers[f"{case.method.upper()} {case.operation.path}", answer.status_code] += 1
        try:
            case.validate_response(answer, checks=CHECKS, headers=headers)
        except schemathesis.errors.SchemathesisError:
            raise
        except BaseExceptionGroup as group:
            asked.failures.extend(f"{one}\n{case.as_curl_command()}" for one in group.exceptions)

    return one


def _run(cases: Any, number: int, turn: int, ask_one: Callable[[Case], None]) -> None:
    how = settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # what fails is told, not made smaller
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    try:
        seed(turn)(how(given(case=cases)(ask_one)))()
    except Unsatisfiable:  # an operation of which nothing can be wrong
        return


def documents(url: str, key: str) -> Iterator[Any]:
    """Those of both services."""
    headers = {"Authorization": f"Bearer {key}"}
    for below in ("", "/v1/recommend"):
        yield schemathesis.openapi.from_url(f"{url}{below}/openapi.json", headers=headers)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, help="in all, at least (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)


def measure(options: argparse.Namespace, report: Report) -> None:
    number = options.cases or (100 if options.quick else 2000)
    with tempfile.TemporaryDirectory(prefix="raycall-contract-") as name:
        folder = Path(name)
        encoder, index = publish_content(folder, 2000)
        users = publish_users(folder, 2000)
        where = ["--encoder", encoder, "--index", index, "--user-encoder", users.encoder]
        where += ["--item-index", users.index, "--sequences", users.rows]
        with ours(folder, *where) as service:
            key = service.headers[0].rpartition(" ")[2]
            found = [
                ask(one, key, number // 2, options.seed) for one in documents(service.url, key)
            ]
    total = sum(one.total for one in found)
    failures = [failure for one in found for failure in one.failures]
    statuses = sum((one.statuses() for one in found), Counter[int]())
    report.add("cases", total, number)
    report.add("5xx", sum(n for status, n in statuses.items() if status >= 500), 0, True)
    report.add("answers that the documents do not have", len(failures), 0, True)
    report.note("statuses: " + ", ".join(f"{k} {n}" for k, n in sorted(statuses.items())))
    for failure in failures[:10]:
        print(failure)


if __name__ == "__main__":
    main("contract", __doc__, measure, _arguments)
