from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from rec.graphs.csr import CsrError, CsrShard, build_shard

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=40)


def shard_of(first: int, num_nodes: int, edges: list[tuple[int, int]]) -> CsrShard:
    source = np.array([e[0] for e in edges], np.int64)
    target = np.array([e[1] for e in edges], np.int64)
    weight = np.arange(len(edges), dtype=np.float32)
    return build_shard(first, num_nodes, source, target, weight, source * 100)


@given(pairs, st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_a_file_holds_the_edges_of_a_plain_loop(edges: list[tuple[int, int]], cut: int) -> None:
    ranges = [(0, cut), (cut, 10)]
    for low, high in ranges:
        mine = [e for e in edges if low <= e[0] < high]
        found = load(shard_of(low, high - low, mine).to_bytes())
        assert found["first"].tolist() == [low]
        assert len(found["indptr"]) == high - low + 1
        for node in range(low, high):
            at = slice(*found["indptr"][node - low : node - low + 2])
            assert found["indices"][at].tolist() == sorted(t for s, t in mine if s == node)
            assert set(found["times"][at].tolist()) <= {node * 100}
        assert len(found["indices"]) == len(found["weights"]) == len(mine)


def test_weights_stay_with_their_edges() -> None:
    shard = shard_of(0, 2, [(1, 5), (0, 7), (1, 3), (1, 5)])
    assert shard.indices.tolist() == [7, 3, 5, 5]
    assert shard.weights.tolist() == [1, 2, 0, 3]


def test_a_source_out_of_range_is_refused() -> None:
    with pytest.raises(CsrError, match="sources 4 to 4, expected 0 to 3"):
        shard_of(0, 4, [(4, 0)])
