from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.graphs.csr import CsrError, CsrGraph, CsrShard, build_shard

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=40)


def shard_of(first: int, num_nodes: int, edges: list[tuple[int, int]]) -> CsrShard:
    source = np.array([e[0] for e in edges], np.int64)
    target = np.array([e[1] for e in edges], np.int64)
    weight = np.arange(len(edges), dtype=np.float32)
    return build_shard(first, num_nodes, source, target, weight, source * 100)


@given(pairs, st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_neighbours_are_those_of_a_plain_loop(edges: list[tuple[int, int]], cut: int) -> None:
    parts = [
        shard_of(0, cut, [e for e in edges if e[0] < cut]),
        shard_of(cut, 10 - cut, [e for e in edges if e[0] >= cut]),
    ]
    graph = CsrGraph([CsrShard.from_bytes(part.to_bytes()) for part in reversed(parts)])
    assert graph.num_nodes == 10
    for node in range(10):
        indices, weights = graph.neighbours(node)
        assert indices.tolist() == sorted(target for source, target in edges if source == node)
        assert len(weights) == len(indices)
    for part in parts:
        for node in range(part.first, part.first + part.num_nodes):
            assert set(part.times[part.edges(node)].tolist()) <= {node * 100}


def test_weights_stay_with_their_edges() -> None:
    graph = CsrGraph([shard_of(0, 2, [(1, 5), (0, 7), (1, 3), (1, 5)])])
    indices, weights = graph.neighbours(1)
    assert indices.tolist() == [3, 5, 5]
    assert weights.tolist() == [2, 0, 3]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CsrError, match="sources 4 to 4, expected 0 to 3"):
        shard_of(0, 4, [(4, 0)])
    with pytest.raises(CsrError, match="begins at node 3, expected 2"):
        CsrGraph([shard_of(0, 2, []), shard_of(3, 2, [])])
    with pytest.raises(CsrError, match="node 2, expected 0 to 1"):
        CsrGraph([shard_of(0, 2, [])]).neighbours(2)
    with pytest.raises(CsrError, match="not a shard"):
        CsrShard.from_bytes(b"nothing")
    good = shard_of(0, 2, [(0, 1), (1, 1)])
    bad = CsrShard(0, good.indptr, good.indices[:1], good.weights[:1], good.times[:1])
    with pytest.raises(CsrError, match="indptr ends at 2, but 1"):
        CsrShard.from_bytes(bad.to_bytes())
