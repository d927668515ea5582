"""The whole path: raw items to tables, rows, a trained encoder, embeddings, an index, a report
and an answered HTTP query; where the source tells what users did, also to sequences, a trained
encoder of users, an index for it and recommendations over HTTP (--set users=null leaves that out).

    python -m jobs.pipeline --out runs/demo
    python -m jobs.pipeline --source movielens --path DIR --recipe rec.recipes.content:films \\
        --out runs/films --set recipe.train.steps=500

Every step is also a job of its own (`python -m jobs.STEP --help`) and goes on where it was: the
same command, given again, continues a run that was stopped or broke, and leaves alone what is
done: OUT/steps holds a stamp of each step's settings and of the hashes of what it read and made.
--dry-run says what is done and what would run. One pipeline at a time in an --out. On a cluster:
`ray job submit -- python -m jobs.pipeline ...`, with an --out that all nodes reach.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray

from jobs import behaviour, embed, evaluate, index, ingest, sequences, train
from jobs.cli import (
    add_overrides,
    add_task_memory,
    alone_in,
    count,
    load_recipe,
    parser,
    peek,
    place,
    recipe_settings,
    start_ray,
    tell_errors,
)
from jobs.pipeline_users import FILTERS, UsersConfig, somebody, steps_of_users
from jobs.pipeline_users import FOLDER as USERS
from jobs.steps import Step, counted, going_on, last_step, plan, published, run
from rec.artifacts import exists, filesystem, join, read_bytes
from rec.config import Config, ConfigError
from rec.data.media import MediaConfig
from rec.data.tables import LEDGER, read_tables
from rec.data.tasks import finished_shards
from rec.recipes.content import ContentRecipe, demo
from rec.retrieval.ann import Ann
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.spec import IndexConfig
from rec.runtime.embed import EmbedConfig
from rec.runtime.evaluate import METRICS
from rec.runtime.evaluation_tasks import EvaluationConfig
from rec.runtime.partition import EmbedError
from rec.sources import AnySource
from rec.train import loop
from rec.train.engine import TrainError

_ERRORS = (
    *ingest.ERRORS,
    *behaviour.ERRORS,
    *sequences.ERRORS,
    TrainError,
    EmbedError,
    IndexBuildError,
)


class PipelineConfig(Config):
    """Every setting of every step."""

    source: AnySource
    media: MediaConfig = MediaConfig()
    recipe: ContentRecipe
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig(attributes=FILTERS)
    evaluate: EvaluationConfig
    users: UsersConfig | None  # None: nothing is made of what users did


def _users_of(source: AnySource) -> UsersConfig | None:
    return UsersConfig() if "interactions" in source.tables else None


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
        "--workers", type=count, default=1, help="training processes (default: %(default)s)"
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
        "--ask-user",
        metavar="ID",
        help="whom to recommend to at the end; default: one who did much",
    )
    flags.add_argument(
        "--overwrite", action="store_true", help="replace tables and rows of another config there"
    )
    flags.add_argument("--no-serve", action="store_true", help="end with the report")
    flags.add_argument("--show", action="store_true", help="print the settings and do nothing")
    flags.add_argument(
        "--dry-run",
        action="store_true",
        help="print which steps are done, which would run and why, and do nothing",
    )
    recipe = recipe_settings(peek(argv, "--recipe"))
    source = ingest.shown_source(argv)
    defaults = PipelineConfig(
        source=source,
        recipe=recipe if isinstance(recipe, ContentRecipe) else demo(),
        evaluate=EvaluationConfig(run="OUT"),
        users=_users_of(source),
    )
    add_task_memory(flags)
    add_overrides(flags, defaults)
    return flags


def configure(options: argparse.Namespace) -> PipelineConfig:
    """The typed config of the command line.

    Raises:
        ConfigError, TrainError: the source, the recipe or an override is wrong.
    """
    recipe = load_recipe(options.recipe)
    if not isinstance(recipe, ContentRecipe):
        raise ConfigError(
            f"--recipe {options.recipe}: {type(recipe).__name__}, expected a content recipe"
        )
    source = ingest.source_of(options.source, options.path)
    config = PipelineConfig(
        source=source,
        recipe=recipe,
        evaluate=EvaluationConfig(run=options.out),
        users=_users_of(source),
    ).override(options.set)
    if options.ask_user and config.users is None:
        raise ConfigError("--ask-user: nothing is made of what users did, or the source tells none")
    # of later steps, but told before there is the work of the ones before to lose
    _try_factory("index", config.index, config.recipe.model.embedding_dim)
    ranks = max(options.workers, 1)  # 0 is this process
    loop.check(config.recipe, ranks)
    if config.users is not None:
        _try_factory("users.index", config.users.index, config.users.recipe.model.dim)
        loop.check(config.users.recipe, ranks)
    return config


def _try_factory(name: str, index: IndexConfig, dim: int) -> None:
    if index.factory != "auto":
        try:
            Ann.make(index.factory, dim)
        except ValueError as error:
            raise ConfigError(f"{name}.factory: {error}") from error


def steps_of(
    config: PipelineConfig,
    out: str,
    *,
    workers: int = 1,
    use_gpu: bool | None = None,
    overwrite: bool = False,
) -> list[Step]:
    """The steps from raw items to the report, and where the source tells of users to an index for
    them; each with how to know what it made."""
    tables, rows, encoder, embeddings, built = (
        join(out, name) for name in ("tables", "rows", "encoder", "embeddings", "index")
    )
    ingested = ingest.IngestConfig(
        source=config.source, media=config.media, rows=config.recipe.rows
    )
    contents = config.source.contents()

    def run_training() -> bool:
        trained = train.run(config.recipe, rows, out, workers=workers, use_gpu=use_gpu)
        if trained.stopped:
            print(f"pipeline: stopped after step {trained.step}; the same command continues")
        return not trained.stopped

    def done(work: Callable[[], object]) -> Callable[[], bool]:
        return lambda: work() is not None

    def unless_told(changed: Sequence[str]) -> str:  # noqa: ARG001
        return "" if overwrite else "refused without --overwrite"

    steps = [
        Step(
            "tables",
            ingested.model_dump(mode="json", include={"source", "media"})
            | ({"contents": contents} if contents else {}),
            (),
            lambda: read_tables(tables).version if exists(join(tables, LEDGER)) else None,
            done(lambda: ingest.run_tables(ingested, out, overwrite=overwrite)),
            lambda: counted(finished_shards(join(tables, "state")), "shards stand already"),
            refuses=unless_told,
            always=True,
        ),
        Step(
            "rows",
            config.recipe.rows.model_dump(mode="json"),
            ("tables",),
            lambda: published(rows, "content-rows"),
            done(lambda: ingest.run_rows(ingested, out, overwrite=overwrite)),
            refuses=unless_told,
        ),
        Step(
            "encoder",
            config.recipe.model_dump(mode="json"),
            ("rows",),
            lambda: published(encoder, "content-encoder"),
            run_training,
            lambda: counted(last_step(join(out, "train")), "steps are trained and saved"),
            refuses=going_on(join(out, "train")),
        ),
        Step(
            "embeddings",
            config.embed.model_dump(mode="json"),
            ("encoder", "rows"),
            lambda: published(embeddings, "embedding-table"),
            done(lambda: embed.run(encoder, rows, embeddings, config.embed)),
        ),
        Step(
            "index",
            config.index.model_dump(mode="json"),
            ("tables", "embeddings"),
            lambda: published(built, "index"),
            done(
                lambda: index.run(embeddings, built, config.index, attributes=join(tables, "items"))
            ),
        ),
        Step(
            "report",
            config.evaluate.model_dump(mode="json"),
            ("tables", "rows", "encoder", "index"),
            lambda: _digest(join(out, "report", METRICS)),
            done(lambda: evaluate.run(config.evaluate)),
        ),
    ]
    if config.users is not None:
        steps += steps_of_users(config.users, out, workers=workers, use_gpu=use_gpu)
    return steps


def _digest(uri: str) -> str | None:
    return hashlib.sha256(read_bytes(uri)).hexdigest()[:16] if exists(uri) else None


def show_plan(steps: Sequence[Step], out: str) -> None:
    """Print what a run would do; nothing is written and Ray is not started."""
    for step, now in plan(steps, out):
        refused = f"; {now.refused}" if now.refused else ""
        print(f"  {step.name:<12}{'done' if now.done else 'to do':<7}{now.why}{refused}")


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


def serving(out: str, *, users: bool) -> list[str]:
    """What to give to Python to serve the run: everything that the page at / shows."""
    flags = {"encoder": "encoder", "index": "index", "items": "tables"}
    if users:
        theirs = {"user-encoder": "encoder", "item-index": "index", "sequences": "sequences"}
        flags |= {flag: f"{USERS}/{name}" for flag, name in theirs.items()}
    places = (part for flag, name in flags.items() for part in (f"--{flag}", join(out, name)))
    return ["-m", "serve_apps", *places]


def serve_once(out: str, question: str, user: str | None = None) -> int:
    """Serve the run over HTTP, put one question to it, print the answer, stop.

    Args:
        user: whom to recommend to as well; None where the run has no users.
    """
    command = [sys.executable, *serving(out, users=user is not None), "--port", "0"]
    command += ["--ask", question, *([] if user is None else ["--ask-user", user])]
    command += ["--address", ray.get_runtime_context().gcs_address]  # the Ray of this run
    return subprocess.run(command, check=False).returncode


@tell_errors("pipeline", *_ERRORS)
def main(argv: list[str] | None = None) -> int:
    options = arguments(argv).parse_args(argv)
    started = time.monotonic()
    config = configure(options)
    if options.show:
        print(config.to_json())
        return 0
    steps = steps_of(
        config,
        options.out,
        workers=options.workers,
        use_gpu=options.gpu,
        overwrite=options.overwrite,
    )
    if options.dry_run:
        show_plan(steps, options.out)
        return 0
    start_ray(options)
    with alone_in(options.out):
        if not run(steps, options.out):
            return 0
        if not options.no_serve:
            question = options.ask or newest_title(options.out)
            user = options.ask_user
            if user is None and config.users is not None:
                user = somebody(options.out)
            status = serve_once(options.out, question, user)
            if status:
                return status
    served = serving(options.out, users=config.users is not None)
    explore = shlex.join([sys.executable, *served, "--no-keys"])
    print(f"to look at the items, then at http://127.0.0.1:8000/ :\n  {explore}")
    print(
        f"pipeline: {time.monotonic() - started:.0f} s; "
        f"{join(options.out, 'report', 'report.html')}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
