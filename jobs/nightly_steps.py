"""The steps of a night, from a day's delivery to a new version of the index."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from jobs import embed, index, ingest, pipeline
from jobs.nightly_canary import CanaryConfig
from jobs.nightly_plan import LEFT, Night, forget_catalogue
from jobs.pipeline_users import FILTERS
from jobs.steps import Step, published
from rec.artifacts import exists, join, read_manifest
from rec.config import Config
from rec.data.item_facts import KIND as FACTS
from rec.data.item_facts import carry_facts
from rec.data.media import MediaConfig
from rec.data.merge import merge_tables
from rec.data.rows import RowsConfig
from rec.data.tables import LEDGER, read_tables
from rec.recipes.content import ContentRecipe
from rec.retrieval.spec import IndexConfig
from rec.runtime.changed import any_rows, carry, changed_rows, no_vectors
from rec.runtime.embed import EmbedConfig
from rec.runtime.evaluation_tasks import EvaluationConfig
from rec.sources import AnySource

COUNTS = ("delivered", "new", "altered", "unchanged")  # of rows, in the manifest of the changed
_END = datetime.max.replace(tzinfo=UTC)


class NightlyConfig(Config):
    """Every setting of every step."""

    source: AnySource
    media: MediaConfig = MediaConfig()
    recipe: ContentRecipe
    train_every: int = Field(default=7, ge=0)  # days; 0: the encoder is trained once and for all
    warm_steps: int | None = Field(default=None, ge=1)  # of training on; None: as of the first
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig(attributes=FILTERS)
    canary: CanaryConfig = CanaryConfig()


def recipe_of(config: NightlyConfig, night: Night) -> ContentRecipe:
    """What this night trains: the first recipe, or the same going on from an encoder, with whose
    tokenizer the rows are made: its weights know no other."""
    if not night.trains or night.start is None:
        return config.recipe
    text = config.recipe.rows.text
    text = text.model_copy(update={"tokenizer": text.tokenizer or _tokenizer_of(night.start)})
    steps = config.warm_steps or config.recipe.train.steps
    return config.recipe.model_copy(
        update={
            "start": night.start,
            "rows": config.recipe.rows.model_copy(update={"text": text}),
            "train": config.recipe.train.model_copy(update={"steps": steps}),
        }
    )


def rows_to_embed(config: NightlyConfig, night: Night) -> RowsConfig:
    """How a delivery becomes rows that nothing is trained on: with the tokenizer of the encoder,
    and none held out."""
    update = {"tokenizer": _tokenizer_of(night.encoder), "attention_encoder": None}
    text = config.recipe.rows.text.model_copy(update=update)
    return config.recipe.rows.model_copy(update={"text": text, "cutoff": _END})


def _tokenizer_of(encoder: str) -> str:
    return join(encoder, read_manifest(encoder, "content-encoder").root, "tokenizer")


def steps_of(
    config: NightlyConfig, night: Night, out: str, *, overwrite: bool = False, **how: Any
) -> list[Step]:
    """The steps of the night; `how` as for jobs.pipeline.steps_of.

    The one called "changed" ends a run where it finds nothing to do.
    """
    recipe = recipe_of(config, night)
    whole = pipeline.PipelineConfig(
        source=config.source,
        media=config.media,
        recipe=recipe,
        evaluate=EvaluationConfig(run=night.folder),
        users=None,
    )
    known = pipeline.steps_of(whole, night.folder, overwrite=overwrite, **how)
    of_pipeline = {step.name: step for step in known}
    made_of = recipe.rows if night.trains else rows_to_embed(config, night)
    ingested = ingest.IngestConfig(source=config.source, media=config.media, rows=made_of)
    from_all = len(night.deliveries) > 1
    steps = [of_pipeline["tables"]]
    if from_all:
        steps.append(_merging(night))
    steps.append(_rows(night, ingested, "catalogue" if from_all else "tables", overwrite))
    steps.append(_facts(night, "catalogue" if from_all else "tables"))
    steps.append(of_pipeline["encoder"] if night.trains else _changed(night))
    return [*steps, *_publishing(config, night, out)]


def _merging(night: Night) -> Step:
    place = join(night.folder, "catalogue")

    def work() -> bool:
        found = merge_tables(night.deliveries, place)
        number = found.tables["items"].num_rows
        print(f"catalogue: {number:,} items of {len(night.deliveries)} deliveries", flush=True)
        return True

    return Step(
        "catalogue",
        {"deliveries": list(night.deliveries)},
        ("tables",),
        lambda: read_tables(place).version if exists(join(place, LEDGER)) else None,
        work,
    )


def _rows(night: Night, config: ingest.IngestConfig, tables: str, overwrite: bool) -> Step:
    def work() -> bool:
        forget_catalogue(night)
        place = join(night.folder, tables)
        ingest.run_rows(config, night.folder, overwrite=overwrite, tables=place)
        return True

    return Step(
        "rows",
        config.rows.model_dump(mode="json"),
        (tables,),
        lambda: published(join(night.folder, "rows"), "content-rows"),
        work,
        refuses=lambda _: "" if overwrite else "refused without --overwrite",
    )


def _changed(night: Night) -> Step:
    rows, place = join(night.folder, "rows"), join(night.folder, "changed")
    previous = night.previous
    assert previous is not None

    def work() -> bool:
        found = changed_rows(rows, previous, place).metrics
        told = [f"{found[name]:,} {name}" for name in COUNTS]
        told += [f"{found['absent']:,} leave"] if night.whole else []
        print(f"changed: {', '.join(told)}", flush=True)
        return bool(found["new"] + found["altered"] + (found["absent"] if night.whole else 0))

    return Step(
        "changed",
        {"table": read_manifest(previous).version} | _whole(night),
        ("rows",),
        lambda: published(place, "content-rows"),
        work,
    )


def _whole(night: Night) -> dict[str, bool]:
    return {"whole": True} if night.whole else {}


def _facts(night: Night, tables: str) -> Step:
    place = join(night.folder, "facts")
    previous = night.facts

    def work() -> bool:
        carry_facts(join(night.folder, tables), place, previous)
        return True

    return Step(
        "facts",
        {"facts": previous and read_manifest(previous).version},
        (tables,),
        lambda: published(place, FACTS),
        work,
    )


def _publishing(config: NightlyConfig, night: Night, out: str) -> list[Step]:
    rows = "rows" if night.trains else "changed"
    place, vectors, table = (join(night.folder, one) for one in (rows, "vectors", "embeddings"))
    built = join(out, "index")
    settings = config.embed.model_dump(mode="json")
    if not night.trains:
        settings["encoder"] = read_manifest(night.encoder).version

    def run_embed() -> bool:
        if night.previous and not any_rows(place):
            no_vectors(place, night.previous, vectors)
        else:
            embed.run(night.encoder, place, vectors, config.embed)
        return True

    def run_carry() -> bool:
        whole = join(night.folder, "rows") if night.whole and night.previous else None
        found = carry(place, vectors, table, night.previous, whole).metrics
        left = f"; {found[LEFT]:,} have left" if whole else ""
        print(
            f"embeddings: {found['num_rows']:,} vectors: {found['embedded']:,} embedded now, "
            f"{found['replaced']:,} of them in place of others; {found['carried']:,} as they "
            f"were{left}",
            flush=True,
        )
        return True

    def run_index() -> bool:
        facts = join(night.folder, "facts")
        attributes = join(facts, read_manifest(facts).root)
        index.run(table, built, config.index, attributes=attributes)
        return True

    return [
        Step(
            "vectors",
            settings,
            (rows, *(["encoder"] if night.trains else [])),
            lambda: published(vectors, "embedding-table"),
            run_embed,
        ),
        Step(
            "embeddings",
            {**_whole(night)},
            ("vectors",),
            lambda: published(table, "embedding-table"),
            run_carry,
        ),
        Step(
            "index",
            config.index.model_dump(mode="json"),
            ("facts", "embeddings"),
            lambda: published(built, "index"),
            run_index,
        ),
    ]
