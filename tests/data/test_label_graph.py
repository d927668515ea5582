from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.data.label_graph import MAX_LABELS, count_met, edges_of
from rec.data.pairs import PAIRS
from rec.schema import EDGES

LABELS = ["red", "blue", "wolf", "sea"]


def table(pairs: set[tuple[str, str]], heldout: str = "h") -> pa.Table:
    rows = [{"item_id": i, "label": x, "heldout": i == heldout} for i, x in sorted(pairs)]
    return pa.Table.from_pylist(rows, schema=PAIRS)


@settings(deadline=None)
@given(st.sets(st.tuples(st.sampled_from("abcdefh"), st.sampled_from([*LABELS, "rare"]))))
def test_edges_agree_with_a_plain_loop(pairs: set[tuple[str, str]]) -> None:
    halves = [{p for p in pairs if p[0] < "c"}, {p for p in pairs if p[0] >= "c"}]
    met = pa.concat_tables([count_met(table(half), pa.array(LABELS)) for half in halves])
    edges = edges_of(met, pa.array(LABELS))
    assert edges.schema == EDGES
    items = {x: {i for i, y in pairs if y == x and i != "h"} for x in LABELS}
    expected = {
        (a, b): len(items[a] & items[b]) / len(items[a])
        for a, b in permutations(LABELS, 2)
        if len(items[a] & items[b]) >= 2
    }
    found = {(r["source_id"], r["target_id"]): r["weight"] for r in edges.to_pylist()}
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        assert np.isclose(found[key], weight)


def test_memory_is_that_of_the_labels_that_meet() -> None:
    labels = [f"l{n:02d}" for n in range(40)]
    pairs = pa.table(
        {
            "item_id": np.repeat([f"i{n}" for n in range(2500)], len(labels)),
            "label": labels * 2500,
            "heldout": np.zeros(2500 * len(labels), bool),
        }
    )
    tracemalloc.start()
    met = count_met(pairs, pa.array(labels))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert met.num_rows == len(labels) ** 2
    assert set(met["num_items"].to_pylist()) == {2500}
    # 100,000 pairs; the 4,000,000 in which labels meet would be 32 MB before they are sorted
    assert peak < 20e6


def test_an_item_with_very_many_labels_counts_with_its_most_frequent() -> None:
    labels = [f"l{n:03d}" for n in range(100)]
    met = count_met(table({("a", x) for x in labels}), pa.array(labels))
    assert met.num_rows == MAX_LABELS**2
    assert max(met["source"].to_pylist()) == MAX_LABELS - 1
