"""One night: from a day's delivery to what is served.

    python -m jobs.nightly --source folder --path s3://b/deliveries/{day} --out s3://b/nightly \\
        --service http://127.0.0.1:8000 --key-file s3://b/admin.key

{day} in --path stands for the day (2026-01-31): a folder with the items that are new or altered.
Items that come again as they are are not embedded again, so it may also hold the whole catalogue.

A vector is good as long as its item's content and the encoder stay what they are. So on most nights
the encoder stays, and only items whose content changed are embedded. Every `train_every` days it is
trained on, from its own weights, with all that was delivered so far; then all items are embedded,
as no vector is what it was. A new version of OUT/index is published, has to find items by their own
vectors and to have the recall of the one before, and the service is asked to use it, without
another deployment. A version that is refused anywhere is rolled back, and the status is 1.

A night that was stopped or broke goes on with the same command; --dry-run says what it would do.
An item that is delivered no longer stays in the index, but for nights with --whole: then the
delivery is the catalogue, and what is not in it leaves. One job in an --out at a time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, date, datetime

from jobs import ingest
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
from jobs.nightly_canary import CanaryError, check_index, sample, swap
from jobs.nightly_plan import LEFT, Night, plan_night, prune, record
from jobs.nightly_steps import COUNTS, NightlyConfig, steps_of
from jobs.pipeline import show_plan
from jobs.steps import published, run
from rec.artifacts import Manifest, join, read_bytes, read_manifest
from rec.client import Client
from rec.config import ConfigError
from rec.recipes.content import ContentRecipe, demo
from rec.retrieval import versions
from rec.retrieval.errors import IndexBuildError, LogError
from rec.runtime.partition import EmbedError
from rec.train import loop
from rec.train.engine import TrainError

_ERRORS = (*ingest.ERRORS, TrainError, EmbedError, IndexBuildError, LogError, CanaryError)
_DAY = "{day}"
_INDEX = "index"


def arguments(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    flags = parser("jobs.nightly", __doc__)
    ingest.add_source(flags)
    flags.add_argument(
        "--recipe",
        default="rec.recipes.content:demo",
        metavar="MODULE:FUNCTION",
        help="a function that returns a content recipe (default: %(default)s)",
    )
    flags.add_argument("--out", type=place, required=True, help="of all nights, local or s3://")
    flags.add_argument(
        "--day", type=_day, default=datetime.now(UTC).date(), help="2026-01-31; default: today, UTC"
    )
    flags.add_argument(
        "--workers", type=count, default=1, help="training processes (default: %(default)s)"
    )
    flags.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one GPU a training process; not given: where Ray has enough now",
    )
    flags.add_argument(
        "--whole",
        action="store_true",
        help="the delivery holds all items: those that are not in it leave the index",
    )
    flags.add_argument("--service", metavar="URL", help="the service that is to use the version")
    flags.add_argument("--key-file", help="file, local or s3://, with an API key of role admin")
    flags.add_argument(
        "--keep",
        type=count,
        default=3,
        help="nights whose rows and vectors are kept, and index versions (default: %(default)s)",
    )
    flags.add_argument(
        "--overwrite", action="store_true", help="replace what another delivery of the day became"
    )
    flags.add_argument("--show", action="store_true", help="print the settings and do nothing")
    flags.add_argument("--dry-run", action="store_true", help="print what would be done and why")
    recipe = recipe_settings(peek(argv, "--recipe"))
    defaults = NightlyConfig(
        source=ingest.shown_source(argv),
        recipe=recipe if isinstance(recipe, ContentRecipe) else demo(),
    )
    add_task_memory(flags)
    add_overrides(flags, defaults)
    return flags


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a day, as 2026-01-31") from None


def configure(options: argparse.Namespace) -> NightlyConfig:
    """The typed config of the command line.

    Raises:
        ConfigError, TrainError: the source, the recipe or an override is wrong.
    """
    recipe = load_recipe(options.recipe)
    if not isinstance(recipe, ContentRecipe):
        raise ConfigError(
            f"--recipe {options.recipe}: {type(recipe).__name__}, expected a content recipe"
        )
    if options.key_file and not options.service:
        raise ConfigError("--key-file: for which service? give --service URL")
    path = options.path and options.path.replace(_DAY, options.day.isoformat())
    source = ingest.source_of(options.source, path)
    config = NightlyConfig(source=source, recipe=recipe).override(options.set)
    loop.check(config.recipe, max(options.workers, 1))
    return config


def _client(options: argparse.Namespace) -> Client | None:
    if not options.service:
        return None
    key = read_bytes(options.key_file).decode().strip() if options.key_file else None
    return Client(options.service, key=key)


def judge(
    config: NightlyConfig, night: Night, out: str, before: Manifest | None, client: Client | None
) -> dict[str, float]:
    """Hold the version of the index that was published to the canary, and have it served.

    Raises:
        CanaryError: it is refused; the version before is in use again.
    """
    built, table = join(out, _INDEX), join(night.folder, "embeddings")
    vectors = join(night.folder, "vectors")
    try:
        measured = check_index(built, table, vectors, before, config.canary, night.last)
        print("canary: " + ", ".join(f"{k} {v:.3f}" for k, v in measured.items()), flush=True)
        if client is not None:
            fresh, _ = sample(vectors, config.canary.num_items)
            swap(client, night.encoder, built, fresh, config.canary)
    except CanaryError as error:
        if before is None:
            raise CanaryError(f"{error}; there is no version before to roll back to") from error
        versions.rollback(built, before.version)
        raise CanaryError(
            f"{error}; {built} is back at version {before.version}. Once it is mended the same "
            f"command tries again; without {night.folder} the next night goes on from the one "
            "before"
        ) from error
    return measured


def run_night(
    config: NightlyConfig, night: Night, options: argparse.Namespace, client: Client | None
) -> bool:
    """Carry out the night; False where it was stopped before its end."""
    out: str = options.out
    built = join(out, _INDEX)
    steps = steps_of(
        config,
        night,
        out,
        workers=options.workers,
        use_gpu=options.gpu,
        overwrite=options.overwrite,
    )
    before = _before(built, night)
    done = run(steps, night.folder)
    counts = _counts(night)
    if not done:
        if not night.trains:
            model = read_manifest(night.encoder).version
            record(night, counts=counts, model_version=model, index_version=None)
            print(f"nightly: {night.day}: nothing changed; {built} stays as it is")
        return False
    measured = judge(config, night, out, before, client)
    table = read_manifest(join(night.folder, "embeddings")).metrics
    names = ("embedded", "replaced", "carried", LEFT, "num_rows")
    counts |= {name: table[name] for name in names if name in table}
    version, model = (read_manifest(one).version for one in (built, night.encoder))
    record(
        night,
        counts=counts,
        model_version=model,
        index_version=version,
        canary=measured,
        swapped=client is not None,
    )
    removed = prune(out, options.keep)
    versions.collect(built, max(options.keep, 2))
    served = f"served at {options.service}" if client else "published; no --service was told"
    print(
        f"nightly: {night.day}, index version {version} of model {model} is {served}; "
        f"{len(removed)} folders of older nights removed",
        flush=True,
    )
    return True


def _counts(night: Night) -> dict[str, int]:
    """What was found of the rows delivered; nothing where all are embedded anyway."""
    if night.trains:
        return {}
    metrics = read_manifest(join(night.folder, "changed")).metrics
    return {name: metrics[name] for name in COUNTS}


def _before(built: str, night: Night) -> Manifest | None:
    """The version in use before this night's own, which it may have published already."""
    if not published(built, "index"):
        return None
    found = read_manifest(built, "index")
    table = published(join(night.folder, "embeddings"), "embedding-table")
    if table is None or found.lineage.get("embedding-table") != table:
        return found
    kept = {one.version: one for one in versions.history(built)}
    return kept.get(found.config.get("replaced", ""))


@tell_errors("nightly", *_ERRORS)
def main(argv: list[str] | None = None) -> int:
    options = arguments(argv).parse_args(argv)
    started = time.monotonic()
    config = configure(options)
    if options.show:
        print(config.to_json())
        return 0
    night = plan_night(options.out, options.day, config.train_every, whole=options.whole)
    print(f"nightly: {night.day}; {night.told()}", flush=True)
    if options.dry_run:
        show_plan(steps_of(config, night, options.out), night.folder)
        return 0
    client = _client(options)
    start_ray(options)
    with alone_in(options.out), client or nullcontext():
        if run_night(config, night, options, client):
            print(f"nightly: {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
