"""Tune a recall model on published rows with Ray Tune, ASHA and Optuna.

    python -m tune.recall --recipe rec.recipes.sequence:sasrec --rows ROWS --out DIR --trials 8
    python -m jobs.train --recipe ... --rows ROWS --out RUN --set @DIR/best.txt

Trials are compared by NDCG@10 on validation rows, never on test rows. Trial 0 is the recipe as it
is and runs all steps, so that "better" is measured at the same budget. What is tuned stands in
tune/space.py; --set changes the recipe for all trials. ASHA looks at trials when they validate: set
train.steps and train.validate_every to what a trial may cost.

The same command goes on where it was stopped or killed: trials that are done stay, others continue
from their last checkpoint. With a larger --trials it adds some. DIR/best.txt holds the best trial's
settings.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any, cast

from jobs import cli
from jobs.cli import alone_in, load_recipe, place, start_ray, tell_errors
from rec.artifacts import ArtifactError, read_manifest, write_atomic
from rec.config import Config, ConfigError
from rec.data.stream import StreamError, open_rows
from rec.runtime.verify import verify
from rec.train import checkpoint, loop
from rec.train.engine import TrainError
from rec.train.recipe import Recipe
from tune.space import Space, assignments, space_of
from tune.trials import TrialRecord, Trials, best

BEST = "best.txt"
_SEARCH, _RAY = "search.json", "ray"
_MAX_FAILURES = 2  # of a trial's process or of a disk; errors of training are no such


class Search(Config):
    """search.json: what the trials below one folder have in common."""

    recipe_type: str
    recipe: dict[str, Any]
    rows: str  # version
    space: dict[str, str]


def tune_recall(
    recipe: Recipe[Any],
    rows: str,
    out: str,
    num_trials: int,
    *,
    concurrency: int | None = None,
    use_gpu: bool | None = None,
    shared: Sequence[str] = (),
) -> list[TrialRecord]:
    """Run or continue a search of `num_trials` trials; the records of all that there are.

    Args:
        recipe: as trial 0 takes it.
        rows: published rows with validation rows.
        out: the search's folder, which all nodes see.
        concurrency: trials at a time; None: as many as Ray has CPUs, or GPUs where used.
        use_gpu: one GPU a trial; None: where Ray has any.
        shared: assignments that `recipe` was made with, for BEST.

    Raises:
        ConfigError, ArtifactError, StreamError, TrainError: recipe and rows cannot be tuned, or
            another search is in `out`.
    """
    space = space_of(cast(Config, recipe))
    trials = Trials(out)
    _check(recipe, rows, out, space)
    done = sum(record.state != "running" for record in trials.all())
    if done < num_trials:
        _run(recipe, rows, out, space, num_trials - done, concurrency, use_gpu)
    records = trials.all()
    _write_best(records, out, shared)
    return records


def _check(recipe: Recipe[Any], rows: str, out: str, space: Space) -> None:
    """Refuse what cannot be tuned or compared; note what is searched."""
    if "://" in out:
        raise ConfigError(f"{out}: trials keep checkpoints in a local or shared folder; give one")
    if recipe.train.engine != "plain":
        raise ConfigError(
            f"train.engine {recipe.train.engine!r}: a trial is one process; set it to plain"
        )
    loop.check(recipe, world=1)
    manifest = read_manifest(rows, recipe.kind)
    if not open_rows(rows, recipe.kind, "heldout").num_rows:
        raise ConfigError(f"{rows}: no validation rows to compare trials on; give a later cut-off")
    kind, fields = checkpoint.describe(recipe)
    search = Search(
        recipe_type=kind,
        recipe=fields,
        rows=manifest.version,
        space={path: str(bounds) for path, bounds in space.items()},
    )
    file = os.path.join(out, _SEARCH)
    if not os.path.exists(file):
        write_atomic(file, search.to_json().encode())
        return
    with open(file) as stream:
        text = stream.read()
    try:
        there = Search.from_json(text)
    except ValueError as error:  # of another release, or mended by hand
        raise ConfigError(f"{file}: not of a search: {error}; choose another --out") from error
    if names := checkpoint.differing(there.model_dump(), search.model_dump()):
        raise ConfigError(
            f"{out}: holds another search (differs: {', '.join(names)}); choose another --out"
        )


def _run(
    recipe: Recipe[Any],
    rows: str,
    out: str,
    space: Space,
    num_trials: int,
    concurrency: int | None,
    use_gpu: bool | None,
) -> None:
    """So many trials more, on Ray Tune. Its own snapshots, which it does not write as one and
    every ten seconds, are not what the search goes on from: the records are."""
    import ray
    from ray import tune

    from tune.halving import Halving, Proposals
    from tune.progress import Progress
    from tune.trial import FIGURE, Task, run_trial

    verify(rows, read_manifest(rows, recipe.kind), on_ray=True)
    resources = ray.cluster_resources()
    gpu = bool(resources.get("GPU")) if use_gpu is None else use_gpu
    concurrency = concurrency or max(1, int(resources.get("GPU" if gpu else "CPU", 1)))
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # trials have logs of their own
    trials = Trials(out)
    own = os.path.join(out, _RAY)
    shutil.rmtree(own, ignore_errors=True)  # of a search that was killed
    tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, task=Task(recipe, rows, out)),
            {"cpu": 1, "gpu": int(gpu)},
        ),
        tune_config=tune.TuneConfig(
            metric=FIGURE,
            mode="max",
            num_samples=num_trials,
            max_concurrent_trials=concurrency,
            search_alg=Proposals(space, trials),
            scheduler=Halving(recipe.train.steps, trials),
            reuse_actors=True,  # a new process takes seconds to import torch
        ),
        run_config=tune.RunConfig(
            name=_RAY,
            storage_path=out,
            verbose=0,
            callbacks=[Progress(trials, num_trials)],
            failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    ).fit()
    shutil.rmtree(own, ignore_errors=True)


def _write_best(records: list[TrialRecord], out: str, shared: Sequence[str]) -> None:
    found = best(records)
    if found is None:
        return
    default = records[0]
    about = f"trial {found.number} of {len(records)}: NDCG@10 {found.figure:.5f} on validation rows"
    if default.number == 0 and default.state == "finished":
        about += f", {default.figure:.5f} as it is"
    lines = [f"# {about}", *shared, *assignments(found.values)]
    write_atomic(os.path.join(out, BEST), ("\n".join(lines) + "\n").encode())


def parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    options = cli.parser("tune.recall", __doc__)
    options.add_argument(
        "--recipe", required=True, metavar="MODULE:FUNCTION", help="a function returning a recipe"
    )
    options.add_argument(
        "--rows", type=place, required=True, help="published rows with validation rows"
    )
    options.add_argument(
        "--out", type=place, required=True, help="the search's folder, on this machine or shared"
    )
    options.add_argument("--trials", type=int, default=8, help="in all, the recipe as it is first")
    options.add_argument(
        "--concurrency",
        type=int,
        help="trials at a time, on one CPU each; not given: as many as Ray has CPUs, or GPUs",
    )
    options.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one GPU a trial; not given: where Ray has any",
    )
    recipe = cli.recipe_settings(cli.peek(argv, "--recipe"))
    cli.add_overrides(options, recipe, "those of the recipe: add --recipe to --help")
    return options


@tell_errors("recall", ConfigError, ArtifactError, StreamError, TrainError)
def main(arguments: list[str] | None = None) -> int:
    flags = parser(arguments)
    options = flags.parse_args(arguments)
    for name in ("trials", "concurrency"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            flags.error(f"--{name} {getattr(options, name)}: must be at least 1")
    recipe = load_recipe(options.recipe, options.set)
    start_ray(options)
    with alone_in(options.out):
        records = tune_recall(
            recipe,
            options.rows,
            options.out,
            options.trials,
            concurrency=options.concurrency,
            use_gpu=options.gpu,
            shared=options.set,
        )
    from tune.progress import table

    print(table(records))
    if left := [record.number for record in records if record.state == "running"]:
        print(f"not done: trials {left}; run the same command again to continue")
    found = best(records)
    if found is None:
        print("error: no trial ran all its steps", file=sys.stderr)
        return 1
    print(f"best        trial {found.number}, NDCG@10 {found.figure:.5f} on validation rows")
    print(f"to train    python -m jobs.train --recipe {options.recipe} --rows {options.rows} ...")
    print(f"            --set @{os.path.join(options.out, BEST)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
