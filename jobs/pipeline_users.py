"""The pipeline's steps from what users did to recommendations, for sources that tell of it.

    OUT/users/behaviour, sequences, train, encoder, embeddings, index

The split by time is the content's: training ends with the cut-off of OUT/rows, validation half-way
from there to the last interaction. Where items have no times, one event of each user is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from jobs import behaviour, embed, index, sequences, train
from jobs.steps import Step, counted, going_on, last_step, published
from rec.artifacts import filesystem, join, read_manifest
from rec.config import Config, ConfigError
from rec.data.behaviour_config import BehaviourConfig
from rec.data.logs import LogFiles
from rec.data.parquet import read_table, stream_folder
from rec.data.sequence_rows import SequenceRowsConfig
from rec.data.tables import read_tables, shard_file
from rec.data.tasks import Summary, map_shards
from rec.recipes.sequence import SASRecRecipe, demo
from rec.retrieval.spec import IndexConfig

FOLDER = "users"
# what a service can filter by
FILTERS = ("domain", "tags", "categories", "uploader_id", "published_at")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN = 3  # items of a user that are told


class UsersConfig(Config):
    """From interactions to an index of items that users' vectors are compared with."""

    domain: str | None = None  # of the items; None: the one with the most interactions
    recipe: SASRecRecipe = demo()
    index: IndexConfig = IndexConfig(attributes=FILTERS)


class Spread(NamedTuple):
    """What interactions there are."""

    domain: str  # the one with the most
    end: datetime  # just after the last one


def steps_of_users(
    config: UsersConfig, out: str, *, workers: int = 1, use_gpu: bool | None = None
) -> list[Step]:
    """The steps, each with how to know what it made; they follow "tables" and "rows"."""
    users, tables = join(out, FOLDER), join(out, "tables")
    done, rows, encoder, embeddings, built = (
        join(users, name) for name in ("behaviour", "sequences", "encoder", "embeddings", "index")
    )

    def run_behaviour() -> bool:
        logs = BehaviourConfig(interactions=LogFiles(path=join(tables, "interactions")))
        return behaviour.run(logs, done, spread(tables).end, overwrite=True) is not None

    def run_sequences() -> bool:
        found = spread(tables)
        cutoff, middle = split(join(out, "rows"), found.end)
        made = SequenceRowsConfig(
            cutoff=cutoff, test_cutoff=middle, domain=config.domain or found.domain
        )
        return sequences.run(done, made, rows, overwrite=True) is not None

    def run_training() -> bool:
        trained = train.run(config.recipe, rows, users, workers=workers, use_gpu=use_gpu)
        if trained.stopped:
            print(f"pipeline: stopped after step {trained.step}; the same command continues")
        return not trained.stopped

    def finished(work: Callable[[], object]) -> Callable[[], bool]:
        return lambda: work() is not None

    trained = join(users, "train")
    return [
        Step("behaviour", {}, ("tables",), lambda: published(done, "behaviour"), run_behaviour),
        Step(
            "sequences",
            {"domain": config.domain},
            ("rows", "behaviour"),
            lambda: published(rows, "sequence-rows"),
            run_sequences,
        ),
        Step(
            "users",
            config.recipe.model_dump(mode="json"),
            ("sequences",),
            lambda: published(encoder, "sequence-encoder"),
            run_training,
            lambda: counted(last_step(trained), "steps are trained and saved"),
            refuses=going_on(trained),
        ),
        Step(
            "items",
            {},
            ("users",),
            lambda: published(embeddings, "embedding-table"),
            finished(lambda: embed.run_items(encoder, embeddings)),
        ),
        Step(
            "item-index",
            config.index.model_dump(mode="json"),
            ("tables", "items"),
            lambda: published(built, "index"),
            finished(
                lambda: index.run(embeddings, built, config.index, attributes=join(tables, "items"))
            ),
        ),
    ]


def spread(tables: str) -> Spread:
    """What interactions the tables hold; only counts and times of a shard leave its task.

    Raises:
        ConfigError: there are none.
    """

    def look(shard: int) -> Summary:
        found = read_table(shard_file(tables, "interactions", shard), ["domain", "event_time"])
        number = pc.value_counts(found.column("domain").combine_chunks())
        last = pc.max(found.column("event_time").cast(pa.int64())).as_py()
        return {"last": last, "domains": {n["values"]: n["counts"] for n in number.to_pylist()}}

    counts: dict[str, int] = {}
    last: int | None = None
    for summary in map_shards(look, range(read_tables(tables).num_shards)):
        for domain, number in summary["domains"].items():
            counts[domain] = counts.get(domain, 0) + number
        last = max((time for time in (last, summary["last"]) if time is not None), default=None)
    if last is None:
        raise ConfigError(f"{tables}: holds no interactions, so there is nobody to recommend to")
    domain = max(sorted(counts), key=lambda name: counts[name])
    return Spread(domain, _EPOCH + timedelta(microseconds=last + 1))


def split(rows: str, end: datetime) -> tuple[datetime, datetime] | tuple[None, None]:
    """When training and when validation end; None where the content's items have no times.

    Args:
        rows: of the content, whose cut-off it is.
        end: of the interactions.

    Raises:
        ConfigError: there are no interactions after the cut-off.
    """
    told = read_manifest(rows, "content-rows").metrics["cutoff"]
    if told is None:
        return None, None
    cutoff = datetime.fromisoformat(told)
    middle = cutoff + (end - cutoff) / 2
    if not cutoff < middle < end:
        raise ConfigError(
            f"{rows}: training ends {told}, but interactions end {end.isoformat()}: none are left "
            "to validate and test on; give an earlier recipe.rows.cutoff, or make nothing of what "
            "users did (--set users=null)"
        )
    return cutoff, middle


def somebody(out: str) -> str:
    """A user of much history from the run's first test rows; prints what they did last.

    Raises:
        ConfigError: there are no rows.
    """
    place = join(out, FOLDER, "sequences")
    root = join(place, read_manifest(place, "sequence-rows").root)
    # where nothing is tested, anybody
    for batch in (one for side in ("test", "train") for one in stream_folder(join(root, side))):
        if batch.num_rows:
            lengths = pc.list_value_length(batch.column("item_index"))
            at = pc.index(lengths, pc.max(lengths)).as_py()
            user, latest = (batch.column(name)[at].as_py() for name in ("user_id", "item_index"))
            ids = read_table(join(root, "items.parquet"), ["item_id"]).column("item_id")
            _tell(user, [ids[i].as_py() for i in latest[-_SHOWN:]], join(out, "tables", "items"))
            return user
    raise ConfigError(f"{place}: nobody has done anything")


def _tell(user: str, latest: list[str], items: str) -> None:
    files, path = filesystem(items)
    found = pads.dataset(path, filesystem=files, format="parquet").to_table(
        ["item_id", "title"], filter=pc.field("item_id").isin(latest)
    )
    titles = dict(zip(*(column.to_pylist() for column in found.columns), strict=True))
    print(f"{user} chose last, the newest first:")
    for item_id in reversed(latest):
        print(f"          {item_id}  {titles.get(item_id) or ''}".rstrip(), flush=True)
