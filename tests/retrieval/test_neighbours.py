"""Item-to-item tables against a plain loop, in ranges, with many vectors and dead rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tables import clustered, index_of

from rec.retrieval.index import Index
from rec.retrieval.neighbours import neighbours
from rec.schema import SCORES


def as_lists(table: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["query_id"], []).append(row["item_id"])
    return found


@pytest.mark.parametrize("per_item", [1, 3])
@pytest.mark.parametrize("with_dead", [False, True])
def test_against_a_plain_loop(tmp_path: Path, per_item: int, with_dead: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = clustered(120)
    owner = rng.permutation(np.repeat(np.arange(120 // per_item), per_item))
    interests = [int((owner[:row] == item).sum()) for row, item in enumerate(owner)]
    ids = [f"item-{o}" for o in owner]
    index = index_of(tmp_path, vectors, ids=ids, interests=interests)
    dead = np.isin(owner, [1, 5]) & with_dead
    index = Index(index.parts, index.manifest, dead if with_dead else None)
    pieces = [neighbours(index, start, start + 50, 6) for start in (0, 50, 100)]
    assert all(piece.schema == SCORES for piece in pieces)
    table = pa.concat_tables(pieces)
    found = as_lists(table)
    live = sorted(set(owner[~dead].tolist()))
    assert sorted(found) == sorted(f"item-{o}" for o in live)
    for item in live:
        best = {
            other: float((vectors[owner == item] @ vectors[owner == other].T).max())
            for other in live
            if other != item
        }
        expected = sorted(best, key=lambda other: -best[other])[:6]
        assert found[f"item-{item}"] == [f"item-{other}" for other in expected]
    assert table.num_rows == 6 * len(live)


def test_no_rows(tmp_path: Path) -> None:
    index = index_of(tmp_path, clustered(5))
    assert neighbours(index, 5, 10, 3).num_rows == 0
    assert neighbours(index, 0, 5, 9).num_rows == 20  # four others each
