"""Item-to-item tables: the neighbours of every item of an index, as a score table in parts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rec.retrieval.filters import Filter
from rec.retrieval.index import Index
from rec.retrieval.queries import MAX_K, whole
from rec.schema import SCORES

_BATCH = 256


def neighbours(
    index: Index, start: int, stop: int, k: int, where: Filter | None = None
) -> pa.Table:
    """Rows of `rec.schema.SCORES` for the items whose first vector is one of these rows.

    Each item has up to k neighbours, best first, itself left out; of several vectors the best
    counts. Rows that are dead have none.

    Args:
        start, stop: rows of the index; ranges that cover all rows cover every item once.
        k: 1 to 9,999.
        where: neighbours that may be returned.

    Raises:
        QueryError: as `Index.search`, or a row is negative.
    """
    start, stop = whole(start, "start", 0), whole(stop, "stop", 0)
    k = whole(k, "k", 1, MAX_K - 1)  # the item itself is found with them
    rows = np.arange(start, min(stop, index.num_rows))
    if index.dead is not None:
        rows = rows[~index.dead[rows]]
    pieces = [SCORES.empty_table()]
    for first in range(0, len(rows), _BATCH):
        pieces.append(_batch(index, rows[first : first + _BATCH], k, where))
    return pa.concat_tables(pieces)


def _batch(index: Index, rows: np.ndarray, k: int, where: Filter | None) -> pa.Table:
    item_ids = index.ids(rows).tolist()
    if index.many:
        vectors_of = index.locate(item_ids)
        firsts = [n for n, own in enumerate(vectors_of) if own[0] == rows[n]]
        owners = [item_ids[n] for n in firsts for _ in vectors_of[n]]
        rows = np.concatenate([np.zeros(0, np.int64), *(vectors_of[n] for n in firsts)])
    else:
        owners = item_ids
    hits = index.search(index.reconstruct(rows), k, where=where, exclude=[[i] for i in owners])
    best: dict[str, dict[str, float]] = {owner: {} for owner in owners}
    for owner, ids, scores in zip(owners, hits.ids, hits.scores.tolist(), strict=True):
        mine = best[owner]
        for item_id, score in zip(ids, scores, strict=True):
            if item_id is not None and score > mine.get(item_id, -np.inf):
                mine[item_id] = score
    query_ids, found, values = [], [], []
    for owner, mine in best.items():
        ranked = sorted(mine.items(), key=lambda entry: -entry[1])[:k]
        query_ids += [owner] * len(ranked)
        found += [item_id for item_id, _ in ranked]
        values += [score for _, score in ranked]
    columns = [pa.array(query_ids, pa.string()), pa.array(found, pa.string())]
    return pa.Table.from_arrays([*columns, pa.array(values, pa.float32())], schema=SCORES)
