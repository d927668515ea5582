"""Tables to content rows: what a content encoder trains on and embeds.

    <out>/manifest.json
    <out>/<root>/train/shard-*.parquet, heldout/shard-*.parquet    CONTENT_ROWS
    <out>/<root>/tokenizer/      a Hugging Face folder
    <out>/<root>/labels.parquet, label_edges/    the labels, and which are on the same items
    <out>/<root>/terms.parquet   words and in how many training texts they are
    <out>/<root>/duplicates/     items left out because they look like another one, and which
    <out>/<root>/left_out/       all items that have no row, and why
    <out>/<root>/ledger.json     rows in, out and dropped, by stage

Split, tokenizer, idf, labels and weights are fitted first, on the training side alone; then every
item shard is a Ray task. Finished shards are kept when the job is run again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.artifacts import (
    MANIFEST,
    Manifest,
    exists,
    filesystem,
    join,
    read_bytes,
    read_manifest,
    seal,
    write_atomic,
)
from rec.config import Config
from rec.data.attempts import Attempt
from rec.data.budget import Budget
from rec.data.content_stages import (
    CONTENT_ROWS,
    AddFrames,
    AddLabels,
    AddSound,
    DropDuplicates,
    DropEmpty,
    ScoreTerms,
    Tokenise,
)
from rec.data.duplicates import duplicate_ids, find_duplicates
from rec.data.labels import ITEM_LABELS, LabelConfig, build_labels, label_file
from rec.data.ledger import Ledger
from rec.data.parquet import ParquetFile, read_or_empty, read_table, write_table
from rec.data.split import Split, fit_split, stable_uniform
from rec.data.stage import Stage, run_stages
from rec.data.tables import Tables, changes, read_tables, shard_file
from rec.data.tasks import Summary, hash_files, with_markers
from rec.data.texts import TextConfig, fit_terms, fit_tokenizer, local_folder
from rec.features.terms import TermTable, WordFinder, read_terms
from rec.features.text import TextTokenizer
from rec.schema import MEDIA

if TYPE_CHECKING:
    from rec.features.attention import AttentionScorer

KIND = "content-rows"
BUDGET = Budget(memory_gb=1.5)  # of a shard's task: a shard of media, and the tools
_ITEM_COLUMNS = ["item_id", "published_at", "title", "description"]


class RowsError(ValueError):
    """Rows cannot be written to a folder. Says which and what to do."""


class RowsConfig(Config):
    """How content rows are made of tables."""

    text: TextConfig = TextConfig()
    labels: LabelConfig = LabelConfig()
    max_frames: int = Field(default=4, ge=1)  # kept of an item, evenly spread
    max_audio_patches: int = Field(default=4, ge=1)  # of 0.96 s, evenly spread
    max_audio_seconds: float = Field(default=60.0, gt=0)  # of a sound that are read at all
    # an item is left out whose frames differ from another's in at most so many of 64 bits, the
    # held-out one rather than the training one; about 4 finds what was compressed or scaled again;
    # None keeps all
    duplicate_distance: int | None = Field(default=None, ge=0, le=8)
    min_tokens: int = Field(default=0, ge=0)  # of an item without frame and sound, else no row
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)  # the latest published
    cutoff: datetime | None = None  # instead of the fraction; UTC where no zone is given


class Fitted(Config):
    """What was learned from the training side, beside the files of the artifact."""

    split: Split
    num_texts: int
    label_folder: str
    num_labels: int
    ledger: Ledger


def build_rows(
    tables_uri: str,
    out_uri: str,
    config: RowsConfig,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write and publish the content rows of the tables at `tables_uri`.

    Rows that were published from the same tables and config stay as they are.

    Args:
        tables_uri: folder of `rec.data.ingest.write_tables`.
        out_uri: the artifact's folder, local (shared by all nodes) or s3://.
        config: sizes, split, text and label settings.
        overwrite: replace rows of other tables or another config instead of refusing.
        progress: called with finished and all shards.

    Raises:
        RowsError: other rows are published at `out_uri`, or the tables have no media_index to find
            duplicates by.
        IngestError: there are no finished tables.
    """
    tables = read_tables(tables_uri)
    if config.duplicate_distance is not None and "media_index" not in tables.tables:
        raise RowsError(
            f"{tables_uri} has no media_index, by which duplicates are found; run jobs.ingest "
            "with --overwrite, or leave duplicate_distance at None"
        )
    about = config.model_dump(mode="json")
    if exists(join(out_uri, MANIFEST)):
        old = read_manifest(out_uri, KIND)
        if old.config == about and old.lineage == {"tables": tables.version}:
            return old
        if not overwrite:
            was = {**old.config, "tables": old.lineage.get("tables")}
            differ = changes(was, {**about, "tables": tables.version})
            raise RowsError(
                f"{out_uri} holds rows of other tables or another config ({differ}); choose "
                "another folder or pass --overwrite"
            )
    digest = hashlib.sha256(json.dumps([about, tables.version]).encode()).hexdigest()[:12]
    root, work = f"v-{digest}", join(out_uri, f"work-{digest}")
    place = join(out_uri, root)
    fitted = _fit(tables_uri, tables, config, place, work)

    def run(index: int, _: Attempt) -> Summary:
        return write_rows(tables_uri, index, config, fitted, place)

    done: dict[int, Summary] = {}
    found = with_markers(run, join(work, "done"), range(tables.num_shards), BUDGET, "rows")
    for summary in found:
        done[summary["index"]] = summary
        if progress:
            progress(len(done), tables.num_shards)
    manifest = _finish(out_uri, root, fitted, [done[i] for i in sorted(done)], tables, about)
    files, path = filesystem(work)
    files.delete_dir(path)
    return manifest


def _fit(tables_uri: str, tables: Tables, config: RowsConfig, place: str, work: str) -> Fitted:
    """Fit split, tokenizer, idf and labels, or read what an earlier run fitted."""
    marker = join(work, "fitted.json")
    if exists(marker):
        return Fitted.from_json(read_bytes(marker).decode())
    split = fit_split(tables_uri, tables.num_shards, config.heldout_fraction, config.cutoff)
    tokenizer = join(place, "tokenizer")
    # what is left out is left out first, so that nothing is fitted on it
    compared, again = Ledger(), None
    if config.duplicate_distance is not None:
        again = place
        compared = find_duplicates(tables_uri, tables, split, config.duplicate_distance, again)
    fit_tokenizer(tables_uri, tables, split, config.text, tokenizer, again)
    terms, num_texts = fit_terms(tables_uri, tables, split, config.text, tokenizer, again)
    write_table(join(place, "terms.parquet"), terms)
    edges = join(place, "label_edges")
    labels = build_labels(tables_uri, tables, split, config.labels, work, edges, again)
    write_table(join(place, "labels.parquet"), labels.vocabulary)
    fitted = Fitted(
        split=split,
        num_texts=num_texts,
        label_folder=labels.folder,
        num_labels=labels.vocabulary.num_rows,
        ledger=compared.merge(labels.ledger),
    )
    write_atomic(marker, fitted.to_json().encode())
    return fitted


class _Tools(NamedTuple):
    tokenizer: TextTokenizer
    finder: WordFinder
    terms: TermTable
    attention: AttentionScorer | None


@functools.lru_cache(maxsize=1)
def _tools(place: str, text_json: str, num_texts: int) -> _Tools:
    """What the stages need, opened once a worker process."""
    config = TextConfig.from_json(text_json)
    tokenizer = TextTokenizer(local_folder(join(place, "tokenizer")), config.max_tokens)
    attention = None
    if config.attention_encoder is not None:
        from rec.features.attention import AttentionScorer  # torch: seconds, and few need it

        attention = AttentionScorer(
            config.attention_encoder,
            layers=config.attention_layers,
            vocab_size=tokenizer.vocab_size,
        )
    terms = read_terms(read_table(join(place, "terms.parquet")), num_texts, config.min_texts)
    return _Tools(tokenizer, WordFinder(tokenizer), terms, attention)


def write_rows(
    tables_uri: str, index: int, config: RowsConfig, fitted: Fitted, place: str
) -> Summary:
    """Write the rows of one item shard, mixed by a stable hash; counts and ledger come back."""
    items = read_table(shard_file(tables_uri, "items", index), _ITEM_COLUMNS)
    media = read_or_empty(shard_file(tables_uri, "media", index), MEDIA, MEDIA.names)
    labels = read_or_empty(label_file(fitted.label_folder, index), ITEM_LABELS, ITEM_LABELS.names)
    tools = _tools(place, config.text.to_json(), fitted.num_texts)
    again = place if config.duplicate_distance is not None else None
    stages: list[Stage] = [
        DropDuplicates(duplicate_ids(again, index)),
        Tokenise(tools.tokenizer),
        ScoreTerms(tools.finder, tools.terms, tools.attention, config.text.alpha),
        AddFrames(media, config.max_frames),
        AddSound(media, config.max_audio_patches, config.max_audio_seconds),
        DropEmpty(config.min_tokens),
        AddLabels(labels),
    ]
    rows, ledger, left_out = run_stages(stages, items)
    if left_out.num_rows:
        write_table(shard_file(place, "left_out", index), left_out)
    rows = rows.select(CONTENT_ROWS.names).cast(CONTENT_ROWS)
    rows = rows.take(np.argsort(stable_uniform(rows.column("item_id").to_pylist(), "order")))
    heldout = fitted.split.heldout(rows)
    counts: dict[str, dict[str, int]] = {}
    for side, mask in (("train", ~heldout), ("heldout", heldout)):
        part = rows.filter(pa.array(mask))
        counts[side] = _counts(part)
        if part.num_rows:
            with ParquetFile(shard_file(place, side, index), CONTENT_ROWS) as file:
                file.write(part)
    return {"index": index, "counts": counts, "ledger": ledger.to_json()}


def _counts(rows: pa.Table) -> dict[str, int]:
    """How many rows there are and how many have each modality."""
    sizes = {
        "with_text": pc.list_value_length(rows.column("token_ids")),
        "with_frames": pc.list_value_length(rows.column("frames")),
        "with_sound": pc.binary_length(rows.column("log_mel")),
        "with_labels": pc.list_value_length(rows.column("label_ids")),
    }
    found = {name: pc.sum(pc.greater(size, 0)).as_py() or 0 for name, size in sizes.items()}
    return {"rows": rows.num_rows, **found}


def _finish(
    out_uri: str,
    root: str,
    fitted: Fitted,
    summaries: list[Summary],
    tables: Tables,
    about: dict[str, Any],
) -> Manifest:
    """Balance the ledger, write it, publish."""
    ledger = Ledger()
    metrics: dict[str, Any] = {"num_labels": fitted.num_labels, "num_texts": fitted.num_texts}
    metrics["cutoff"] = fitted.split.cutoff.isoformat() if fitted.split.cutoff else None
    for side in ("train", "heldout"):
        found = [summary["counts"][side] for summary in summaries]
        metrics[side] = {name: sum(part[name] for part in found) for name in found[0]}
    # not as they finished: the same rows are the same version
    for summary in sorted(summaries, key=lambda summary: summary["index"]):
        ledger = ledger.merge(Ledger.from_json(summary["ledger"]))
    entered = ledger.stages["drop duplicates"].rows_in
    dropped = {**ledger.stages["drop duplicates"].dropped, **ledger.stages["drop empty"].dropped}
    written = metrics["train"]["rows"] + metrics["heldout"]["rows"]
    ledger = ledger.merge(fitted.ledger).record("items to rows", entered, written, dropped)
    write_atomic(join(out_uri, root, "ledger.json"), ledger.to_json().encode())
    if not metrics["train"]["rows"]:
        raise RowsError(f"{out_uri}: no training rows; the ledger says why:\n{ledger.table()}")
    return seal(
        out_uri,
        root,
        KIND,
        lineage={"tables": tables.version},
        config=about,
        metrics=metrics,
        hashed=hash_files(join(out_uri, root)),
    )
