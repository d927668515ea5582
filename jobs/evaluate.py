"""Evaluate on what was held out, beside tuned baselines, and write the report.

A run of content:

    python -m jobs.evaluate --run runs/demo
    python -m jobs.evaluate --run runs/seed0 --compare runs/seed1 runs/seed2 \\
        --text-encoder DIR --set max_items=50000

Recommenders, on the rows of jobs.sequences:

    python -m jobs.evaluate --rows runs/ml-1m/sequences --out runs/ml-1m/report
    python -m jobs.evaluate --rows runs/ml-1m/sequences --out runs/ml-1m/report \\
        --models runs/ml-1m/sasrec/encoder runs/ml-1m/dssm/encoder \\
        --set 'baselines=["popularity", "Markov", "EASE"]' against=Markov

Writes metrics.json (figures with intervals), metrics.md (the same for people) and report.html
(one file with everything), below RUN/report or in OUT. Runs to compare are of the same recipe on
the same rows with other seeds: their mean comes with an interval over seeds. Held-out items of
content, at most max_items on each side of the cut-off, are held in memory; beyond, a sample by a
hash of their ids is taken and the output says so. Recommenders rank all items for every user of the
test rows, in chunks; encoders are scored once exactly and once as served through an index.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from jobs.cli import add_overrides, alone_in, parser, peek, place, tell_errors
from rec.artifacts import ArtifactError, join, read_manifest, write_atomic
from rec.config import ConfigError
from rec.data.sequence_rows import KIND as ROWS
from rec.data.stream import StreamError
from rec.data.tables import IngestError
from rec.models.sequence.encoder import KIND as ENCODER
from rec.models.sequence.encoder import load_encoder
from rec.report.contents import Report
from rec.report.render import render
from rec.runtime.content_report import gather
from rec.runtime.evaluate import evaluate, write_evaluation
from rec.runtime.evaluation_data import read_items
from rec.runtime.evaluation_results import Evaluation, markdown
from rec.runtime.evaluation_tasks import EvaluationConfig
from rec.runtime.ranking import RankingConfig, evaluate_ranking, write_ranking
from rec.runtime.ranking_results import RankingEvaluation, ranking_markdown, ranking_report

ERRORS = (ArtifactError, ConfigError, IngestError, StreamError)


def arguments(of_rows: bool = False) -> argparse.ArgumentParser:
    """`of_rows`: the settings to list are those of recommenders."""
    flags = parser("jobs.evaluate", __doc__)
    what = flags.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=place, help="run folder of content, local or s3://")
    what.add_argument("--rows", type=place, help='"sequence-rows" that recommenders are asked')
    flags.add_argument(
        "--compare",
        type=place,
        nargs="+",
        default=[],
        metavar="RUN",
        help="with --run: the same with other seeds",
    )
    flags.add_argument(
        "--text-encoder",
        metavar="DIR",
        help="with --run: local Hugging Face folder of a frozen text encoder, for a baseline",
    )
    flags.add_argument(
        "--models",
        type=place,
        nargs="+",
        default=[],
        metavar="DIR",
        help='with --rows: "sequence-encoder" artifacts, called by their folders\' names',
    )
    flags.add_argument("--out", type=place, metavar="DIR", help="with --rows: the report's folder")
    add_overrides(flags, RankingConfig(rows="ROWS") if of_rows else EvaluationConfig(run="RUN"))
    return flags


class _Progress:
    """Says what is done, and how long it took so far."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, method: str) -> None:
        seconds = time.monotonic() - self._started
        print(f"evaluate: {seconds:5.1f} s  {method}", flush=True)

    def finish(self, out: str, report: Report) -> None:
        page = join(out, "report.html")
        write_atomic(page, render(report).encode())
        seconds = time.monotonic() - self._started
        print(f"evaluate: {seconds:.1f} s; report at {page}", flush=True)


def run(config: EvaluationConfig) -> Evaluation:
    """Evaluate, write figures and report below the run's folder, print the table."""
    tell = _Progress()
    items = read_items(config.run, max_items=config.max_items)
    print(
        f"evaluate: {len(items) - items.num_train:,} held-out and {items.num_train:,} training "
        f"items of {config.run}",
        flush=True,
    )
    out = join(config.run, "report")
    with alone_in(out):
        evaluation = evaluate(config, items, tell)
        write_evaluation(evaluation, out)
        print(markdown(evaluation), flush=True)
        tell.finish(out, gather(config.run, evaluation, items))
    return evaluation


def run_rows(config: RankingConfig, models: Sequence[str], out: str) -> RankingEvaluation:
    """Evaluate recommenders, write figures and report in `out`, print the table."""
    if len(set(models)) < len(models):
        raise ConfigError(f"--models: one of {', '.join(models)} is given twice")
    tell = _Progress()
    loaded = [load_encoder(uri, config.device) for uri in models]
    encoders = dict(zip(model_names(models), loaded, strict=True))
    evaluation = evaluate_ranking(config, encoders, tell)
    strange = [
        f"{name}: was not trained on these rows, so it may know of what it is asked"
        for name, uri in zip(encoders, models, strict=True)
        if read_manifest(uri, ENCODER).lineage.get(ROWS) != evaluation.rows_version
    ]
    evaluation = evaluation.model_copy(update={"notes": (*evaluation.notes, *strange)})
    write_ranking(evaluation, out)
    print(ranking_markdown(evaluation), flush=True)
    tell.finish(out, ranking_report(evaluation))
    return evaluation


def _require_device(name: str) -> None:
    """Raise ConfigError where this machine has no such device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # a CPU build of torch asserts
        raise ConfigError(f"device {name!r}: {str(error).splitlines()[0]}") from error


def model_names(uris: Sequence[str]) -> list[str]:
    """What each model is called: its folder, or the one above a folder "encoder"; the whole URI
    where that is not one of a kind.

    >>> model_names(["runs/a/encoder", "runs/b"])
    ['a', 'b']
    >>> model_names(["one/a/encoder", "two/a"])
    ['one/a/encoder', 'two/a']
    """
    short = [uri.rstrip("/").removesuffix("/encoder").rsplit("/", 1)[-1] for uri in uris]
    return short if len(set(short)) == len(short) else list(uris)


def _config(given: argparse.Namespace) -> RankingConfig | EvaluationConfig:
    """Raises ConfigError where flags of both kinds meet."""
    of_run = {"--compare": given.compare, "--text-encoder": given.text_encoder}
    of_rows = {"--models": given.models, "--out": given.out}
    for other, flags in (("--rows", of_rows), ("--run", of_run)):
        wrong = [name for name, value in flags.items() if value]
        if wrong and getattr(given, other.removeprefix("--")) is None:
            raise ConfigError(f"{', '.join(wrong)} goes with {other}")
    if given.rows is not None:
        if given.out is None:
            raise ConfigError("--rows needs --out, the folder to write the report in")
        return RankingConfig(rows=given.rows).override(given.set)
    config = EvaluationConfig(
        run=given.run, compare=tuple(given.compare), text_encoder=given.text_encoder
    )
    return config.override(given.set)


@tell_errors("evaluate", *ERRORS)
def main(argv: list[str] | None = None) -> int:
    given = arguments(peek(argv, "--rows") is not None).parse_args(argv)
    config = _config(given)
    _require_device(config.device)
    if isinstance(config, RankingConfig):
        with alone_in(given.out):
            run_rows(config, given.models, given.out)
    else:
        run(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
