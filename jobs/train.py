"""Train a recipe on published rows, and export what it learned.

    python -m jobs.train --recipe rec.recipes.content:debug --rows runs/demo/rows --out runs/demo
    python -m jobs.train ... --workers 2 --set train.engine=deepspeed --set train.steps=5000

The same command continues a run that was stopped or broke. SIGTERM finishes the step, writes a
checkpoint and exits with status 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, cast

from jobs import cli
from jobs.cli import alone_in, count, load_recipe, place, start_ray, tell_errors
from rec.artifacts import ArtifactError, join
from rec.config import Config, ConfigError
from rec.runtime.train import TrainOutcome, train
from rec.train.engine import TrainError
from rec.train.recipe import Recipe


def run(
    recipe: Recipe[Any],
    rows: str,
    out: str,
    *,
    workers: int = 1,
    min_workers: int | None = None,
    use_gpu: bool | None = None,
    resume: bool = True,
) -> TrainOutcome:
    """Train into `out`/train and export to `out`/encoder; for other jobs."""
    if workers:
        start_ray()
    return train(
        recipe,
        rows,
        out,
        "train",
        num_workers=workers,
        min_workers=min_workers,
        use_gpu=use_gpu,
        encoder=join(out, "encoder"),
        resume=resume,
    )


def parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    options = cli.parser("jobs.train", __doc__)
    options.add_argument(
        "--recipe", required=True, metavar="MODULE:FUNCTION", help="a function returning a recipe"
    )
    options.add_argument(
        "--rows",
        type=place,
        required=True,
        help="published rows of the recipe's kind, local or s3://",
    )
    options.add_argument(
        "--out",
        type=place,
        required=True,
        help="run folder, local or s3://: gets train/ and encoder/",
    )
    options.add_argument(
        "--workers",
        type=count,
        default=1,
        help="training processes; 0: in this one, without Ray",
    )
    options.add_argument(
        "--min-workers",
        type=count,
        metavar="N",
        help="go on with as few where nodes were lost, and with more again when they are back; "
        "train.batch_size has to be a multiple of each number; not given: wait for --workers",
    )
    options.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one GPU a worker; not given: where Ray has enough",
    )
    options.add_argument(
        "--fresh", action="store_true", help="refuse to continue a run that is there already"
    )
    options.add_argument("--show", action="store_true", help="print the recipe and do nothing")
    recipe = cli.recipe_settings(cli.peek(argv, "--recipe"))
    cli.add_overrides(options, recipe, "those of the recipe: add --recipe to --help")
    return options


@tell_errors("train", ConfigError, ArtifactError, TrainError)
def main(arguments: list[str] | None = None) -> int:
    options = parser(arguments).parse_args(arguments)
    recipe = load_recipe(options.recipe, options.set)
    if options.show:
        print(cast(Config, recipe).to_json())
        return 0
    if options.workers:
        start_ray(options)
    with alone_in(options.out):
        outcome = run(
            recipe,
            options.rows,
            options.out,
            workers=options.workers,
            min_workers=options.min_workers,
            use_gpu=options.gpu,
            resume=not options.fresh,
        )
    print(f"logs        {outcome.logs}/metrics.jsonl  (tensorboard --logdir {outcome.logs})")
    print(f"best        {outcome.best}  {_text(outcome.metrics)}")
    if outcome.stopped:
        print(f"stopped after step {outcome.step}; run the same command again to continue")
        return 0
    if outcome.step > recipe.train.steps:
        print(f"longer      than train.steps={recipe.train.steps} already: nothing was trained")
    print(f"finished    {outcome.step} steps, {outcome.last}")
    print(f"encoder     {outcome.encoder}")
    return 0


def _text(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(main())
