"""Gather what a content run left behind into a report."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rec.artifacts import ArtifactError, Manifest, exists, join, read_bytes, read_manifest
from rec.data.ledger import Ledger
from rec.data.tables import read_tables
from rec.metrics.vectors import Floats, nearest, unit_rows
from rec.report.charts import large_groups
from rec.report.contents import (
    Curve,
    Item,
    LedgerRow,
    Neighbourhood,
    Point,
    Problem,
    Report,
    ResultRow,
    ResultTable,
    Value,
)
from rec.report.layout import layout
from rec.runtime.evaluation_data import EvaluationItems, read_frames, read_vectors
from rec.runtime.evaluation_results import MODEL, Evaluation
from rec.runtime.train import LOGS
from rec.train.metrics import RECORDS, read_records

_NUM_QUERIES, _NUM_NEIGHBOURS, _NUM_POINTS = 8, 6, 2000
_TITLE_LENGTH = 120  # characters
_BESIDE = ("grad_norm", "item/effective_rank", "lr", "rows_per_s")  # beside the losses
_UNITS = {"rows_per_s": "rows/s", "lr": "learning rate", "grad_norm": "gradient norm"}
_RANKS = frozenset({"median rank"})


def gather(run: str, evaluation: Evaluation, items: EvaluationItems) -> Report:
    """The report of `run`; what it lacks (a log, a ledger) is left out."""
    vectors = unit_rows(read_vectors(join(run, "embeddings"), items.item_ids))
    return Report(
        title=f"Raycall: {run.rstrip('/').rsplit('/', 1)[-1]}",
        created_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=_summary(run, evaluation),
        ledger=_ledger(run),
        curves=_curves(run),
        tables=_tables(evaluation),
        neighbourhoods=_neighbourhoods(run, items, vectors),
        points=_points(items, vectors),
        problems=_problems(run),
        notes=evaluation.notes,
    )


def _manifest(run: str, name: str, kind: str) -> Manifest | None:
    try:
        return read_manifest(join(run, name), kind)
    except ArtifactError:
        return None


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _summary(run: str, evaluation: Evaluation) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if exists(join(run, "tables", "ledger.json")):
        tables = read_tables(join(run, "tables"))
        lines.append(("Source", tables.kind))
        for name, size in tables.tables.items():
            mebibytes = size.num_bytes / 2**20
            lines.append((f"Table {name}", f"{size.num_rows:,} rows, {mebibytes:,.1f} MiB"))
    lines.append(
        (
            "Evaluated items",
            f"{evaluation.num_train:,} training, {evaluation.num_heldout:,} held out",
        )
    )
    if evaluation.cutoff:
        lines.append(("Cut-off", evaluation.cutoff[:10]))
    encoder = _manifest(run, "encoder", "content-encoder")
    if encoder is not None:
        size = sum(entry.num_bytes for entry in encoder.files.values()) / 2**20
        lines.append(("Encoder", f"{encoder.version}, {size:,.0f} MiB"))
        lines.append(("Dimensions", _count(encoder.config.get("embedding_dim", "unknown"))))
        if "step" in encoder.metrics:
            lines.append(("Exported at step", _count(encoder.metrics["step"])))
        if "validation/total" in encoder.metrics:
            lines.append(("Its validation loss", f"{encoder.metrics['validation/total']:.4f}"))
    embeddings = _manifest(run, "embeddings", "embedding-table")
    if embeddings is not None and "num_rows" in embeddings.metrics:
        metrics = embeddings.metrics
        lines.append(
            (
                "Embedding job",
                f"{metrics['num_rows']:,} rows in {metrics['seconds']:,.1f} s, "
                f"{metrics['rows_per_s']:,.1f} rows/s",
            )
        )
    lines += _training_time(run)
    return lines


def _records(run: str) -> list[dict[str, Any]]:
    place = join(run, "train", LOGS)
    return read_records(place) if exists(join(place, RECORDS)) else []


def _training_time(run: str) -> list[tuple[str, str]]:
    timed = [r for r in _records(run) if "rows_per_s" in r]
    if not timed:
        return []
    rate = float(np.median([r["rows_per_s"] for r in timed]))
    return [("Training", f"{timed[-1]['step']:,.0f} steps, median {rate:,.1f} rows/s")]


def _curves(run: str) -> list[Curve]:
    records = _records(run)

    def series(key: str) -> list[tuple[float, float]]:
        return [(r["step"], r[key]) for r in records if r.get(key) is not None]

    keys = {key for record in records for key in record}
    terms = {k.partition("/")[2] for k in keys if k.startswith(("train/", "validation/"))}
    terms = sorted(terms, key=lambda t: (t != "total", t))
    found = [Curve(t, series(f"train/{t}"), series(f"validation/{t}")) for t in terms]
    beside = [key for key in _BESIDE if key in keys]
    found += [
        Curve(_UNITS.get(k, k.partition("/")[2].replace("_", " ")), series(k)) for k in beside
    ]
    return found


def _read_ledger(run: str) -> Ledger:
    rows = _manifest(run, "rows", "content-rows")
    if rows is None:
        return Ledger()
    place = join(run, "rows", rows.root, "ledger.json")
    return Ledger.from_json(read_bytes(place).decode()) if exists(place) else Ledger()


def _ledger(run: str) -> list[LedgerRow]:
    return [
        LedgerRow(stage, counts.rows_in, counts.rows_out, counts.dropped)
        for stage, counts in _read_ledger(run).stages.items()
    ]


def _problems(run: str) -> list[Problem]:
    found: list[Problem] = []
    if exists(join(run, "tables", "ledger.json")):
        tables = read_tables(join(run, "tables"))
        if tables.num_problems:
            what = "parts of the source left out of the tables"
            found.append(Problem(what, tables.num_problems, tables.problems))
    ledger = _read_ledger(run)
    if ledger.num_problems:
        found.append(Problem("parts of rows left out", ledger.num_problems, ledger.problems[:20]))
    embeddings = _manifest(run, "embeddings", "embedding-table")
    if embeddings is not None and embeddings.metrics.get("num_failed"):
        found.append(Problem("rows without an embedding", embeddings.metrics["num_failed"]))
    return found


def _tables(evaluation: Evaluation) -> list[ResultTable]:
    tables: list[ResultTable] = []
    for task in dict.fromkeys(f.task for f in evaluation.figures):
        own = [f for f in evaluation.figures if f.task == task]
        rows: dict[tuple[str, str], ResultRow] = {}
        for f in own:
            ours = f.method == MODEL
            name = f"{f.method}, {f.run.rstrip('/').rsplit('/', 1)[-1]}" if ours else f.method
            row = rows.setdefault((f.run, f.method), ResultRow(name, {}, ours))
            row.values[f.metric] = Value(f.value, f.low, f.high)
        counts = {f.metric: f.num_queries for f in own}
        gains = [
            f"{d.metric}: {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] against {d.baseline}, the "
            f"best baseline, paired by query"
            for d in evaluation.differences
            if d.task == task
        ]
        tables.append(
            ResultTable(
                title=task.capitalize(),
                note=f"{_ASKED[task]} {_over(counts)}.",
                rows=list(rows.values()),
                lower_is_better=_RANKS,
                gains=gains,
            )
        )
    return tables


_LABELS_ASKED = (
    "which of these does a held-out item have? Votes of its nearest training items; "
    "mAP is the mean over labels."
)
_ASKED = {
    "keywords": f"Tags: {_LABELS_ASKED}",
    "genres": f"Categories: {_LABELS_ASKED}",
    "behaviour": "Which items do the same people like? Of all items, for held-out ones.",
    "text to picture": "Which picture belongs to this text, of held-out items that have both?",
    "picture to text": "Which text belongs to this picture, of held-out items that have both?",
}


def _over(counts: dict[str, int]) -> str:
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,} queries"
    return ", ".join(f"{metric} over {n:,}" for metric, n in counts.items())


def _by_hash(ids: Sequence[str]) -> list[int]:
    """Positions in an order that is the same in every run and favours nothing."""
    return sorted(range(len(ids)), key=lambda i: (zlib.crc32(ids[i].encode()), ids[i]))


def _neighbourhoods(run: str, items: EvaluationItems, vectors: Floats) -> list[Neighbourhood]:
    has_picture = np.asarray(items.pixels.any(axis=1))
    heldout = range(items.num_train, len(items))
    order = [heldout[i] for i in _by_hash(items.item_ids[items.num_train :])]
    queries = sorted(order, key=lambda i: not has_picture[i])[:_NUM_QUERIES]
    near = nearest(vectors[queries], vectors, _NUM_NEIGHBOURS + 1)
    shown: list[tuple[int, list[tuple[int, float]]]] = []
    for query, rows, cosines in zip(queries, near.rows, near.similarity, strict=True):
        pairs = [(int(r), float(c)) for r, c in zip(rows, cosines, strict=True) if r != query]
        shown.append((query, pairs[:_NUM_NEIGHBOURS]))
    wanted = {items.item_ids[i] for q, pairs in shown for i in (q, *(r for r, _ in pairs))}
    pictures = dict(_first_frames(run, sorted(wanted)))

    def item(i: int, similarity: float | None = None) -> Item:
        return Item(
            title=_short(items.titles[i]),
            picture=pictures.get(items.item_ids[i]),
            labels=[*items.categories[i], *items.tags[i]],
            similarity=similarity,
            heldout=i >= items.num_train,
        )

    return [Neighbourhood(item(q), [item(r, c) for r, c in pairs]) for q, pairs in shown]


def _short(title: str) -> str:
    """Some titles are whole texts, and thousands of these are more than a page holds."""
    return title if len(title) <= _TITLE_LENGTH else f"{title[: _TITLE_LENGTH - 1]}…"


def _first_frames(run: str, item_ids: Sequence[str]) -> list[tuple[str, bytes]]:
    return [(i, frames[0]) for i, frames in read_frames(join(run, "rows"), item_ids) if frames]


def _points(items: EvaluationItems, vectors: Floats) -> list[Point]:
    """A sample by hash, with as many held-out items among it as chance brings."""
    picked = sorted(_by_hash(items.item_ids)[:_NUM_POINTS])
    groups = large_groups([items.categories[i] for i in picked])
    places = layout(vectors[picked])
    return [
        Point(
            float(x),
            float(y),
            group,
            _short(items.titles[i] or items.item_ids[i]),
            i >= items.num_train,
        )
        for (x, y), group, i in zip(places, groups, picked, strict=True)
    ]
