"""Cold items of MovieLens: SASRec on ids alone beside SASRec on ids and what is told of films.

    python -m bench.cold --data ../shared/data/movielens --record

From the files to the figures by the jobs a user runs: tables, behaviour, a split by time, training,
ranking of all items. What is told of films is their genres and keywords, and a vector of title,
plot, keywords and genres by a frozen text encoder. Trained up to 2010 with three seeds each and one
number of steps, which targets between 2010 and 2012 chose; asked of users after 2012: of each
user's events there the last fifth are targets, those before are history, for nearly all of these
users are new. A hit: one of the user's targets of the kind is among the first ten of all films that
the user has not seen. Differences are paired by user, each user's mean over seeds; intervals are
over users.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.harness import Report, main
from jobs import behaviour, ingest, sequences
from jobs import train as training
from rec.artifacts import MANIFEST, exists, join, seal
from rec.batch import SequenceBatch
from rec.contract import Scorer
from rec.data.logs import LogFiles
from rec.data.parquet import read_table
from rec.data.sequence_rows import SequenceRowsConfig
from rec.features.histories import as_scores, recency_matrix
from rec.metrics.baselines import text_encoder_vectors
from rec.metrics.bootstrap import bootstrap_interval, paired_difference
from rec.metrics.ranking import hit_rate
from rec.metrics.ranks import only_columns
from rec.models.estimators.popularity import Popularity
from rec.models.sequence.encoder import load_encoder
from rec.recipes.content import minilm_folder
from rec.recipes.sequence import SASRecRecipe, sasrec
from rec.runtime.ranking_data import RankedItems, read_ranked_items, training_histories
from rec.runtime.ranking_encoder import EncoderScorer
from rec.runtime.ranking_judge import Judge
from rec.schema import EMBEDDINGS
from rec.sources import MovieLensSource

Floats = NDArray[np.floating]
CUTOFF, TEST_CUTOFF, END = (datetime(year, 1, 1, tzinfo=UTC) for year in (2010, 2012, 2019))
TARGET_SHARE = 0.2
IDS = "ids alone"
# name -> what items' vectors are made of
VARIANTS: dict[str, tuple[str, ...]] = {
    IDS: ("id",),
    "ids, genres, keywords": ("id", "tags", "categories"),
    "ids, content vectors": ("id", "content"),
    "ids, all of it": ("id", "tags", "categories", "content"),
}
MAIN = "ids, all of it"  # what is held to the bar
STEPS = (50, 100, 200, 400)  # optimiser steps a run, to choose from
K = 10
FEW = 5  # events at most on the training side: hardly ever seen


def write_vectors(tables: str, out: str, num_films: int | None) -> None:
    """An embedding table of the films that are told anything of, by a frozen text encoder; one
    that is there already stays."""
    if exists(join(out, MANIFEST)):
        return
    names = ["item_id", "title", "description", "tags", "categories"]
    parts = sorted(Path(tables, "items").rglob("*.parquet"))
    films = pa.concat_tables([read_table(str(part), names) for part in parts])
    rows = films.slice(0, num_films).to_pylist()
    texts = [
        ". ".join(
            [
                row["title"],
                row["description"] or "",
                *(row["tags"] or []),
                *(row["categories"] or []),
            ]
        )
        for row in rows
    ]
    vectors = text_encoder_vectors(texts, Path(minilm_folder()), max_length=64)
    columns = [
        pa.array([row["item_id"] for row in rows]),
        pa.array(np.zeros(len(rows), np.int32)),
        pa.array(np.ones(len(rows), np.float32)),
        pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32())),
    ]
    Path(out, "v1").mkdir(parents=True)
    table = pa.Table.from_arrays(columns, schema=EMBEDDINGS)
    pq.write_table(table, Path(out, "v1", "part-00000.parquet"))
    # the encoder has seen no log: there is no time up to which it would know one
    seal(out, "v1", "embedding-table", metrics={"cutoff": None})


def make_rows(data: str, work: str, num_films: int | None) -> str:
    """From the folder of MovieLens to published sequence rows."""
    tables, log, rows = (join(work, name) for name in ("tables", "behaviour", "rows"))
    source = MovieLensSource(path=data)
    ingest.run_tables(ingest.IngestConfig(source=source), work)
    write_vectors(tables, join(work, "vectors"), num_films)
    settings = ["sequences.max_length=4000"]  # nobody has more: nothing later pushes events out
    behaviour.run(behaviour.config_of(tables, settings), log, END)
    config = SequenceRowsConfig(
        cutoff=CUTOFF,
        test_cutoff=TEST_CUTOFF,
        target_share=TARGET_SHARE,
        items=LogFiles(path=join(tables, "items")),
    )
    sequences.run(log, config, rows, content=join(work, "vectors"))
    return rows


class ContentNeighbours:
    """score(u, i) = cosine of i's content vector and the recency-weighted mean of those of u's
    history: no training, no ids, so a cold item is as good as any other."""

    def __init__(self, items: RankedItems, half_life: float) -> None:
        assert items.content is not None
        self._vectors = items.content.astype(np.float32)
        self._half_life = half_life

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) float32."""
        users = recency_matrix(batch, len(self._vectors), self._half_life) @ self._vectors
        users /= np.maximum(np.linalg.norm(users, axis=1, keepdims=True), 1e-12)
        return as_scores(users @ self._vectors.T, np.zeros(len(self._vectors)))


class Slices(NamedTuple):
    """Whether each of Q users was shown a target, over all targets, of cold and of rare items."""

    all: Floats
    cold: Floats
    rare: Floats


def slices_of(judge: Judge, scorer: Scorer[SequenceBatch]) -> Slices:
    ranks, events = judge.ranks(scorer), judge.items.num_events
    kinds = (events == 0, (events > 0) & (events <= FEW))
    found = [hit_rate(only_columns(ranks, judge.aims.relevant, kind)[1], K) for kind in kinds]
    return Slices(hit_rate(ranks, K), *found)


def recipe_of(features: Sequence[str], seed: int, steps: int, id_dropout: float) -> SASRecRecipe:
    names = ", ".join(f'"{name}"' for name in features)
    return sasrec().override(
        [
            f"inputs.features=[{names}]",
            f"inputs.id_dropout={id_dropout}",
            "train.batch_size=32",
            f"train.steps={steps}",
            f"train.warmup_steps={min(20, steps)}",  # the recipe's 100 are a third of these steps
            f"train.seed={seed}",
            "train.precision=fp32",
            f"train.validate_every={steps}",
            f"train.checkpoint_every={steps}",
        ]
    )


def trained(
    options: argparse.Namespace, work: str, rows: str, judge: Judge, report: Report
) -> dict[str, list[Slices]]:
    """Every variant with every seed, all with the number of steps that suits the main one."""
    choices, seeds = ((10, 20), (1,)) if options.quick else (STEPS, (1, 2, 3))

    def one(name: str, seed: int, steps: int, judge: Judge) -> Slices:
        recipe = recipe_of(VARIANTS[name], seed, steps, options.id_dropout)
        place = join(work, f"{name.replace(' ', '-').replace(',', '')}-{steps}-{seed}")
        outcome = training.run(recipe, rows, place, workers=0)
        assert outcome.encoder is not None
        slices = slices_of(judge, EncoderScorer(load_encoder(outcome.encoder), judge.items))
        hits = ", ".join(f"{kind} {v.mean():.4f}" for kind, v in slices._asdict().items())
        print(f"== {name}, {steps} steps, seed {seed}: HR@{K} {hits}", flush=True)
        return slices

    early = Judge.of(rows, "heldout", judge.items, (K,))
    by_steps = {steps: one(MAIN, 0, steps, early).cold.mean() for steps in choices}
    steps = max(by_steps, key=by_steps.__getitem__)
    told = ", ".join(f"{count} steps {value:.4f}" for count, value in by_steps.items())
    report.note(f"{steps} steps, chosen by cold HR@{K} of {MAIN} on validation, a seed: {told}")
    return {name: [one(name, seed, steps, judge) for seed in seeds] for name in VARIANTS}


def baselines(rows: str, judge: Judge, report: Report) -> dict[str, list[Slices]]:
    popularity = Popularity(len(judge.items)).fit(training_histories(rows))
    early = Judge.of(rows, "heldout", judge.items, (K,))
    found = {h: ContentNeighbours(judge.items, h) for h in (3.0, 10.0, 30.0, np.inf)}
    half_life = max(found, key=lambda h: hit_rate(early.ranks(found[h]), K).mean())
    report.note(
        f"content neighbours: half-life {half_life:g} events, tuned by HR@{K} on validation"
    )
    return {
        "popularity": [slices_of(judge, popularity)],
        "content neighbours": [slices_of(judge, found[half_life])],
    }


def mean_over_seeds(runs: Sequence[Slices], kind: str) -> Floats:
    return np.mean([getattr(run, kind) for run in runs], axis=0)


def tell(found: dict[str, list[Slices]], report: Report) -> None:
    """The table, and what side information adds over ids alone."""
    heads = [f"all, HR@{K}", f"cold, HR@{K}", f"1 to {FEW} events, HR@{K}"]
    report.table += [f"| method | {' | '.join(heads)} |", "| --- | ---: | ---: | ---: |"]
    for name, runs in found.items():
        cells = []
        for kind in Slices._fields:
            value, low, high = bootstrap_interval(mean_over_seeds(runs, kind))
            cells.append(f"{value:.4f} [{low:.4f}, {high:.4f}]")
        report.table.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(["", *report.table]), flush=True)
    for name in VARIANTS:
        if name == IDS:
            continue
        for kind in ("cold", "rare", "all"):
            ours, ids = (mean_over_seeds(found[n], kind) for n in (name, IDS))
            value, low, high = paired_difference(ours, ids)
            what = f"{name} over {IDS}, {kind} items, HR@{K}"
            report.add(what, value)
            report.add(
                f"{what}, 95 % interval from", low, 1e-4 if (name, kind) == (MAIN, "cold") else None
            )
            report.add(f"{what}, 95 % interval to", high)
        seeds = ", ".join(f"{run.cold.mean():.4f}" for run in found[name])
        report.note(f"{name}: cold HR@{K} by seed {seeds}")


def measure(options: argparse.Namespace, report: Report) -> None:
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="raycall-cold-") as folder:
        work = options.work or folder
        rows = make_rows(options.data, work, 500 if options.quick else None)
        items = read_ranked_items(rows)
        judge = Judge.of(rows, "test", items, (K,))
        found = baselines(rows, judge, report) | trained(options, work, rows, judge, report)
    one = found["popularity"][0]
    cold = (items.num_events == 0).astype(np.float32)
    report.note(
        f"{len(items):,} films, {int(cold.sum()):,} of them cold; {len(one.all)} users with "
        f"{judge.aims.relevant.nnz:,} targets, {len(one.cold)} of them with "
        f"{int((judge.aims.relevant @ cold).sum()):,} of cold films"
    )
    report.note(
        "popularity and ids alone give all cold films one score; ties count against a method, so "
        "none of them is ever found"
    )
    tell(found, report)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="the MovieLens folder")
    parser.add_argument("--work", help="keep tables, rows and models here; else nothing is kept")
    parser.add_argument("--id-dropout", type=float, default=0.3, help="see rec.nn.items")


if __name__ == "__main__":
    main("cold", __doc__, measure, arguments)
