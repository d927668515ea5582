"""Shards that become one hold what an index filled at once holds, however full their lists are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tables import clustered, embeddings

# of PQ8x4fs a block has 128 bytes: FAISS's own merge takes a list of 128 rows, or of a multiple,
# for one that is empty, and writes past its end
SIZES = [256, 256, 128, 32, 33, 1, 190, 384, 5]
FACTORIES = [
    "IVF1,PQ8x4fs",
    "IVF1,PQ8x4fs,RFlat",
    "IVF1,PQ7x4fs,Refine(SQ8)",
    "OPQ8,IVF4,PQ8x4fs,RFlat",
    "IVF4,RaBitQfs",
    "IVF4,SQ8",
    "PQ8x4fs,RFlat",
]

_MERGE = """
import sys
import numpy as np
from rec.retrieval.ann import Ann

sizes, factories = eval(sys.argv[1]), sys.argv[2:]
for factory in factories:
    print(factory, file=sys.stderr, flush=True)
    dim = 14 if "PQ7" in factory else 16
    rows = np.random.default_rng(0).standard_normal((sum(sizes), dim)).astype(np.float32)
    empty = Ann.make(factory, dim)
    empty.train(rows)
    whole, merged, start = (*(Ann.from_bytes(empty.to_bytes()) for _ in range(2)), 0)
    whole.add(rows)
    for size in sizes:
        shard = Ann.from_bytes(empty.to_bytes())
        shard.add(rows[start : start + size])
        merged.merge(Ann.from_bytes(shard.to_bytes()))
        start += size
    found, expected = (ann.search(rows[:300], 10) for ann in (merged, whole))
    assert merged.size == whole.size == len(rows)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
"""

_COMPACT = """
import sys
import numpy as np
from rec.retrieval.build import build_index
from rec.retrieval.changes import Delete, Put
from rec.retrieval.live import LiveIndex
from rec.retrieval.spec import IndexConfig

table, folder = sys.argv[1:]
config = IndexConfig(factory="IVF1,PQ8x4fs,RFlat", num_shards=4, merge=True, num_queries=50)
assert build_index(table, folder + "/i", config).config["num_shards"] == 1
live = LiveIndex(folder + "/i", folder + "/log", compact_at=None, keep=1, grace_s=0)
vectors = live.index.reconstruct(np.arange(512))
for number in range(8):  # again lists of 128 rows each
    live.apply([Delete(f"item-{number}"), Put(f"new-{number}", vectors[number])])
    live.compact()
ids = [f"{'new' if n < 8 else 'item'}-{n}" for n in range(512)]
assert live.index.search(vectors, 1, exact=True).ids[:, 0].tolist() == ids
near = live.index.search(vectors, 10).ids
assert sum(own in row for own, row in zip(ids, near.tolist())) > 500
live.close()
"""


def _run(code: str, *arguments: str) -> None:
    """In a process of its own: one that FAISS ends must not end the tests."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_merged_is_what_is_filled_at_once() -> None:
    _run(_MERGE, str(SIZES), *FACTORIES)


def test_compactions_merge_lists_of_whole_blocks(tmp_path: Path) -> None:
    table = embeddings(tmp_path / "t", clustered(512), num_parts=1)
    _run(_COMPACT, table, str(tmp_path))
