"""Evaluate a run on its held-out items, beside baselines, and write the report.

    python -m jobs.evaluate --run runs/demo
    python -m jobs.evaluate --run runs/seed0 --compare runs/seed1 runs/seed2 \\
        --text-encoder DIR --set max_items=50000

Writes metrics.json (figures with intervals), metrics.md (the same for people) and report.html
(one file with everything) below RUN/report. Runs to compare are of the same recipe on the same
rows with other seeds: their mean comes with an interval over seeds. Held-out items, at most
max_items on each side of the cut-off, are held in memory; beyond, a sample by a hash of their ids
is taken and the output says so.
"""

from __future__ import annotations

import argparse
import sys
import time

from jobs.cli import add_overrides, parser, place
from rec.artifacts import ArtifactError, join, write_atomic
from rec.config import ConfigError
from rec.data.ingest import IngestError
from rec.report.render import render
from rec.runtime.content_report import gather
from rec.runtime.evaluate import evaluate, write_evaluation
from rec.runtime.evaluation_data import read_items
from rec.runtime.evaluation_results import Evaluation, markdown
from rec.runtime.evaluation_tasks import EvaluationConfig

ERRORS = (ArtifactError, ConfigError, IngestError)


def arguments() -> argparse.ArgumentParser:
    flags = parser("jobs.evaluate", __doc__)
    flags.add_argument("--run", type=place, required=True, help="run folder, local or s3://")
    flags.add_argument(
        "--compare",
        type=place,
        nargs="+",
        default=[],
        metavar="RUN",
        help="the same with other seeds",
    )
    flags.add_argument(
        "--text-encoder",
        metavar="DIR",
        help="local Hugging Face folder of a frozen text encoder, for a baseline",
    )
    add_overrides(flags, EvaluationConfig(run="RUN"))
    return flags


def run(config: EvaluationConfig) -> Evaluation:
    """Evaluate, write figures and report below the run's folder, print the table."""
    started = time.monotonic()
    items = read_items(config.run, max_items=config.max_items)
    print(
        f"evaluate: {len(items) - items.num_train:,} held-out and {items.num_train:,} training "
        f"items of {config.run}",
        flush=True,
    )

    def tell(method: str) -> None:
        print(f"evaluate: {time.monotonic() - started:5.1f} s  {method}", flush=True)

    evaluation = evaluate(config, items, tell)
    out = join(config.run, "report")
    write_evaluation(evaluation, out)
    print(markdown(evaluation), flush=True)
    page = join(out, "report.html")
    write_atomic(page, render(gather(config.run, evaluation, items)).encode())
    print(f"evaluate: {time.monotonic() - started:.1f} s; report at {page}", flush=True)
    return evaluation


def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    try:
        config = EvaluationConfig(
            run=given.run, compare=tuple(given.compare), text_encoder=given.text_encoder
        )
        run(config.override(given.set))
    except ERRORS as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
