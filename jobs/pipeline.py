"""The whole path: raw items to tables, rows, a trained encoder, embeddings, an index, a report
and an answered HTTP query.

    python -m jobs.pipeline --out runs/demo
    python -m jobs.pipeline --source movielens --path DIR --recipe rec.recipes.content:films \\
        --out runs/films --set recipe.train.steps=500

Every step is also a job of its own (`python -m jobs.STEP --help`) and goes on where it was: the
same command, given again, continues a run that was stopped or broke, and leaves alone what is
done. On a cluster: `ray job submit -- python -m jobs.pipeline ...`, with an --out that all nodes
reach.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray

from jobs import embed, evaluate, index, ingest, train
from jobs.cli import add_overrides, load_recipe, parser, peek, place, recipe_settings, start_ray
from rec.artifacts import filesystem, join
from rec.config import Config, ConfigError
from rec.recipes.content import ContentRecipe, demo
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.spec import IndexConfig
from rec.runtime.embed import EmbedConfig
from rec.runtime.evaluation_tasks import EvaluationConfig
from rec.runtime.partition import EmbedError
from rec.sources import AnySource
from rec.train.engine import TrainError

_ERRORS = (*ingest.ERRORS, TrainError, EmbedError, IndexBuildError)


class PipelineConfig(Config):
    """Every setting of every step."""

    source: AnySource
    recipe: ContentRecipe
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluationConfig


def arguments(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    flags = parser("jobs.pipeline", __doc__)
    ingest.add_source(flags)
    flags.add_argument(
        "--recipe",
        default="rec.recipes.content:demo",
        metavar="MODULE:FUNCTION",
        help="a function that returns a content recipe (default: %(default)s)",
    )
    flags.add_argument("--out", type=place, required=True, help="run folder, local or s3://")
    flags.add_argument(
        "--workers", type=int, default=1, help="training processes (default: %(default)s)"
    )
    flags.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one GPU a training process, started for it where the cluster scales; not given: "
        "where Ray has enough now",
    )
    flags.add_argument("--ask", help="text to search for over HTTP at the end; default: a title")
    flags.add_argument(
        "--overwrite", action="store_true", help="replace tables and rows of another config there"
    )
    flags.add_argument("--no-serve", action="store_true", help="end with the report")
    flags.add_argument("--show", action="store_true", help="print the settings and do nothing")
    recipe = recipe_settings(peek(argv, "--recipe"))
    defaults = PipelineConfig(
        source=ingest.shown_source(argv),
        recipe=recipe if isinstance(recipe, ContentRecipe) else demo(),
        evaluate=EvaluationConfig(run="OUT"),
    )
    add_overrides(flags, defaults)
    return flags


def configure(options: argparse.Namespace) -> PipelineConfig:
    """The typed config of the command line.

    Raises:
        ConfigError: the source, the recipe or an override is wrong.
    """
    recipe = load_recipe(options.recipe)
    if not isinstance(recipe, ContentRecipe):
        raise ConfigError(
            f"--recipe {options.recipe}: {type(recipe).__name__}, expected a content recipe"
        )
    config = PipelineConfig(
        source=ingest.source_of(options.source, options.path),
        recipe=recipe,
        evaluate=EvaluationConfig(run=options.out),
    )
    return config.override(options.set)


def run(
    config: PipelineConfig,
    out: str,
    *,
    workers: int = 1,
    use_gpu: bool | None = None,
    overwrite: bool = False,
) -> bool:
    """Raw items to the report; False when training was asked to stop before its end."""
    ingest.run(
        ingest.IngestConfig(source=config.source, rows=config.recipe.rows), out, overwrite=overwrite
    )
    rows, encoder, embeddings = (join(out, name) for name in ("rows", "encoder", "embeddings"))
    trained = train.run(config.recipe, rows, out, workers=workers, use_gpu=use_gpu)
    if trained.stopped:
        print(f"pipeline: stopped after step {trained.step}; the same command continues")
        return False
    embed.run(encoder, rows, embeddings, config.embed)
    index.run(embeddings, join(out, "index"), config.index)
    evaluate.run(config.evaluate)
    return True


def newest_title(out: str) -> str:
    """Title of the run's newest held-out item, something to search for."""
    files, path = filesystem(join(out, "tables", "items"))
    items = pads.dataset(path, filesystem=files, format="parquet", exclude_invalid_files=False)
    best: tuple[object, str] | None = None
    for batch in items.to_batches(columns=["title", "published_at"]):
        titled = batch.filter(pc.is_valid(batch.column("title")))
        if titled.num_rows == 0:
            continue
        newest = titled.sort_by([("published_at", "descending")]).slice(0, 1).to_pylist()[0]
        key = newest["published_at"]
        if best is None or (key is not None and (best[0] is None or key > best[0])):
            best = (key, newest["title"])
    if best is None:
        raise ConfigError("no item has a title to search for; give --ask TEXT")
    return best[1]


def serve_once(out: str, question: str) -> int:
    """Serve the run over HTTP, put one question to it, print the answer, stop."""
    command = [sys.executable, "-m", "serve_apps", "--encoder", join(out, "encoder")]
    command += ["--index", join(out, "index"), "--port", "0", "--ask", question]
    command += ["--titles", join(out, "tables", "items")]
    command += ["--address", ray.get_runtime_context().gcs_address]  # the Ray of this run
    return subprocess.run(command, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv).parse_args(argv)
    started = time.monotonic()
    try:
        config = configure(options)
        if options.show:
            print(config.to_json())
            return 0
        start_ray(options)
        if not run(
            config,
            options.out,
            workers=options.workers,
            use_gpu=options.gpu,
            overwrite=options.overwrite,
        ):
            return 0
        if not options.no_serve:
            status = serve_once(options.out, options.ask or newest_title(options.out))
            if status:
                return status
    except _ERRORS as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return 1
    print(
        f"pipeline: {time.monotonic() - started:.0f} s; "
        f"{join(options.out, 'report', 'report.html')}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
