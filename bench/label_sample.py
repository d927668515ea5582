"""Print a sample of cleaned labels to be judged by hand: what stayed, what went, beside the text.

    python -m jobs.ingest --source movielens --path ../shared/data/movielens --out runs/films
    python -m bench.label_sample --tables runs/films/tables

Half of the sample stayed and half went. A label is judged by whether it says something true about
the item that one could want to find it by; a person writes that beside it.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import defaultdict

import numpy as np
import ray
import ray.data

from jobs.cli import parser, place, start_ray
from rec.data.cleaning import clean_labels
from rec.data.events import LabelEvents
from rec.data.pairs import build_pairs
from rec.data.parquet import read_table
from rec.data.split import Split, stable_uniform
from rec.data.tables import read_tables, shard_file

_TEXT = 160  # characters shown of a description


def _rows(files: list[str], limit: float) -> set[tuple[int, str, str]]:
    """(shard, item, label) of a stable share of the pairs."""
    found: set[tuple[int, str, str]] = set()
    for file in files:
        table = read_table(file, ["shard", "item_id", "label"])
        keys = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        drawn = stable_uniform([f"{item}\n{label}" for _, item, label in keys], "label sample")
        found.update(keys[i] for i in np.flatnonzero(drawn < limit).tolist())
    return found


def sample(tables_uri: str, size: int, min_evidence: float) -> None:
    """Print `size` pairs, as many that stayed as that went, and how many there are of each."""
    tables = read_tables(tables_uri)
    split = Split(heldout_fraction=1e-9)  # all is training: nothing is evaluated on held-out items
    with tempfile.TemporaryDirectory(prefix="raycall-sample-") as work:
        config = LabelEvents(min_evidence=min_evidence, min_click_rate=0.05, max_query_words=5)
        raw = build_pairs(tables_uri, tables, split, config, work)
        cleaned = clean_labels(raw, min_evidence, work)
        share = min(1.0, 4000 / max(raw.num_pairs, 1))  # enough to draw both halves from
        before, stayed = _rows(raw.files, share), _rows(cleaned.files, share)
    print(f"{raw.num_pairs} pairs, {cleaned.num_pairs} stay")
    print(cleaned.ledger.table())
    for title, pairs in (("stayed", stayed), ("went", before - stayed)):
        chosen = sorted(pairs, key=lambda key: stable_uniform([f"{key}"], "order")[0])[: size // 2]
        print(f"\n{title}:")
        by_shard: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for shard, item, label in chosen:
            by_shard[shard].append((item, label))
        for shard, labels in sorted(by_shard.items()):
            columns = ["item_id", "title", "description"]
            items = read_table(shard_file(tables_uri, "items", shard), columns)
            texts = {row["item_id"]: row for row in items.to_pylist()}
            for item, label in sorted(labels):
                text = (texts[item]["description"] or "-")[:_TEXT]
                print(f"  {label!r:<32} {texts[item]['title']}: {text}")


def main() -> None:
    flags = parser("bench.label_sample", __doc__)
    flags.add_argument("--tables", type=place, required=True, help="folder of jobs.ingest's tables")
    flags.add_argument("--size", type=int, default=20, help="labels shown")
    flags.add_argument("--min-evidence", type=float, default=1.0, help="in nats")
    options: argparse.Namespace = flags.parse_args()
    start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    sample(options.tables, options.size, options.min_evidence)
    ray.shutdown()


if __name__ == "__main__":
    main()
