"""Edges to graphs: nodes numbered densely, edges as CSR shards of those numbers.

Nodes live in buckets by a hash of their type and id. A node's number is the number of nodes of
its type in earlier buckets plus its rank among those of its own, so the shard of bucket b holds
the edges of one range of source nodes, and nobody ever holds a map of all ids.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.data.edges import KINDS
from rec.data.shuffle import codes, hash_strings, mix, starts
from rec.graphs.csr import CsrShard, build_shard

NODE_TYPES = ("user", "item", "query", "tag")
NODES = pa.schema([("type", pa.int8()), ("id", pa.string())])
BY_TARGET = pa.schema(
    [
        ("kind", pa.int8()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("weight", pa.float32()),
        ("time", pa.int64()),
    ]
)
BY_SOURCE = pa.schema(
    [field if field.name != "target" else ("target", pa.int64()) for field in BY_TARGET]
)
_SOURCES = np.array([NODE_TYPES.index(kind.source_type) for kind in KINDS], np.int8)
_TARGETS = np.array([NODE_TYPES.index(kind.target_type) for kind in KINDS], np.int8)


def graph_name(kind: int) -> str:
    """The folder of a kind's shards: item-co_watched-item."""
    return "-".join(KINDS[kind])


def by_target(counts: pa.Table) -> pa.Table:
    """COUNTS as BY_TARGET."""
    weight = counts.column("num").cast(pa.float32())
    columns = [*(counts.column(name) for name in ("kind", "source", "target")), weight]
    return pa.table([*columns, counts.column("last")], schema=BY_TARGET)


def ends_of(counts: pa.Table) -> pa.Table:
    """NODES at either end of COUNTS, each once."""
    kind = counts.column("kind").to_numpy()
    types = np.concatenate([_SOURCES[kind], _TARGETS[kind]])
    ids = [*counts.column("source").chunks, *counts.column("target").chunks]
    return distinct(pa.table([types, pa.chunked_array(ids, pa.string())], schema=NODES))


def distinct(nodes: pa.Table) -> pa.Table:
    """NODES in order of type and id, each once."""
    kind = nodes.column("type").to_numpy().astype(np.int64)
    name, names = codes(nodes.column("id"))
    order = np.lexsort((name, kind))
    runs = starts(kind[order], name[order])[:-1]
    kept = order[runs]
    columns = [pa.array(kind[kept].astype(np.int8)), names.take(pa.array(name[kept]))]
    return pa.table(columns, schema=NODES)


def hash_node(types: NDArray[np.int8], ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """(n,) by type and id, and by nothing that the edge's own shuffles use."""
    return mix(hash_strings(ids, salt=2) ^ types.astype(np.uint64))


def hash_targets(edges: pa.Table) -> NDArray[np.uint64]:
    """(n,) of BY_TARGET: the node that its target is."""
    return hash_node(_TARGETS[edges.column("kind").to_numpy()], edges.column("target"))


def hash_sources(edges: pa.Table) -> NDArray[np.uint64]:
    """(n,) of BY_SOURCE: the node that its source is."""
    return hash_node(_SOURCES[edges.column("kind").to_numpy()], edges.column("source"))


def num_by_type(nodes: pa.Table) -> list[int]:
    """How many NODES there are of each type."""
    return np.bincount(nodes.column("type").to_numpy(), minlength=len(NODE_TYPES)).tolist()


def first_indices(counts: list[list[int]]) -> NDArray[np.int64]:
    """(buckets + 1, types) number of the first node of each bucket, and of all, by type."""
    total = np.cumsum(np.array(counts, np.int64).reshape(-1, len(NODE_TYPES)), axis=0)
    return np.concatenate([np.zeros((1, len(NODE_TYPES)), np.int64), total])


def _numbers(
    nodes: pa.Table, types: NDArray[np.int8], ids: pa.ChunkedArray, first: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(n,) numbers of nodes that are all of one bucket.

    Args:
        nodes: NODES of the bucket, as `distinct` orders them.
        types: (n,)
        ids: (n,)
        first: (types,) number of the bucket's first node of each type.
    """
    found = np.full(len(types), -1)
    kinds = nodes.column("type").to_numpy()
    for number in range(len(NODE_TYPES)):
        mine = np.flatnonzero(types == number)
        names = nodes.column("id").filter(pa.array(kinds == number)).combine_chunks()
        at = pc.index_in(ids.take(pa.array(mine)), value_set=names)
        found[mine] = at.to_numpy().astype(np.int64) + first[number]
    return found


def number_targets(edges: pa.Table, nodes: pa.Table, first: NDArray[np.int64]) -> pa.Table:
    """BY_TARGET of one bucket of targets as BY_SOURCE."""
    types = _TARGETS[edges.column("kind").to_numpy()]
    target = _numbers(nodes, types, edges.column("target"), first)
    at = edges.column_names.index("target")
    return edges.set_column(at, "target", pa.array(target)).cast(BY_SOURCE)


def shards(edges: pa.Table, nodes: pa.Table, first: NDArray[np.int64]) -> dict[int, CsrShard]:
    """BY_SOURCE of one bucket of sources as a shard for each kind.

    Args:
        edges: of all kinds.
        nodes: NODES of the bucket.
        first: (types,) number of the bucket's first node of each type.
    """
    kinds = edges.column("kind").to_numpy()
    source = _numbers(nodes, _SOURCES[kinds], edges.column("source"), first)
    size = num_by_type(nodes)
    target, weight, time = (edges.column(c).to_numpy() for c in ("target", "weight", "time"))
    found: dict[int, CsrShard] = {}
    for kind, node_type in enumerate(_SOURCES.tolist()):
        mine = kinds == kind
        found[kind] = build_shard(
            int(first[node_type]),
            size[node_type],
            source[mine],
            target[mine],
            weight[mine],
            time[mine],
        )
    return found
