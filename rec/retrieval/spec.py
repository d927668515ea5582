"""What index to build: the settings, and what `auto` makes of size, memory, recall and updates."""

from __future__ import annotations

import math
import re
from numbers import Integral
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from rec.config import Config
from rec.retrieval.errors import IndexBuildError

FLAT_UP_TO = 20_000  # below this brute force answers within a millisecond and needs no tuning
ROWS_PER_SHARD = 10_000_000
TRAIN_PER_LIST = 64  # FAISS asks for at least 39 points a centroid
_LEAST_PER_LIST = 39
MAX_LOG_SEQ = 10**15  # names of a log's files have 16 digits
MAX_THREADS = 1024
_MAY_LOSE = 0.02  # of a short vector's length by 8-bit codes


class IndexConfig(Config):
    """How to build. Defaults: exact up to 20,000 items, inverted lists tuned to a recall beyond."""

    factory: str = "auto"  # or a FAISS factory string: "Flat" (exact), "IVF1024,SQ8", "HNSW32"
    recall_target: float = Field(default=0.95, gt=0, le=1)  # recall@10 to tune to; 1 = exact
    # GiB that the whole index may take, attributes apart; for auto
    memory_gb: float | None = Field(default=None, gt=0)
    updates_per_day: float = Field(default=0.0, ge=0)  # share of the items that changes a day
    num_shards: int = Field(default=0, ge=0)  # 0 = one for every ten million rows
    merge: bool = False  # the shards, built apart, become one
    attributes: tuple[str, ...] = ()  # columns to keep for filters
    # held-out rows to tune with, and as many to report; together at most a fifth of the rows
    num_queries: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("attributes")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{list(names)}: a column is named twice")
        return names

    def held_out(self, num_rows: int) -> int:
        """Rows to measure with that nothing is trained on."""
        return min(2 * self.num_queries, max(1, num_rows // 5))

    def shards_of(self, num_rows: int) -> int:
        """Shards to build, none of them empty."""
        return max(1, min(self.num_shards or -(-num_rows // ROWS_PER_SHARD), num_rows))


def check(config: Any, log_seq: Any, num_threads: Any) -> None:
    """What a build is asked. Raises IndexBuildError by name of what is not as it should be."""
    if not isinstance(config, IndexConfig):
        raise IndexBuildError(f"config is {config!r}, expected an IndexConfig")
    for graph, num in re.findall(r"(HNSW|NSG)(\d+)", config.factory):
        if int(num) < 2:  # FAISS would end the process, or never come to an end
            raise IndexBuildError(
                f"factory {config.factory!r}: {graph}{num} is no graph, each vector needs at least "
                f"2 neighbours; take HNSW32"
            )
    for name, value, least, most in (
        ("log_seq", log_seq, 0, MAX_LOG_SEQ),
        ("num_threads", num_threads, 1, MAX_THREADS),
    ):
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (is_whole and least <= int(value) <= most):
            raise IndexBuildError(
                f"{name} is {value!r}, expected a whole number, {least} to {most}; or None"
            )


def num_bytes(num_rows: int, dim: int, bytes_a_value: float, key_bytes: float) -> float:
    """Memory of inverted lists: codes, FAISS's row numbers, the list of each row (for filters),
    keys, and centroids."""
    lists = num_lists(num_rows, num_rows)  # at most
    return num_rows * (bytes_a_value * dim + 8 + 4 + key_bytes) + 4 * lists * dim


def is_uneven(sample: np.ndarray) -> bool:
    """Whether codes of one range a value tell the shorter of these (n, D) vectors badly apart:
    8-bit ones lose a fiftieth or more of a vector that only one in a hundred is shorter than. Even
    vectors lose a hundredth. Recall over all rows does not show it, as the long ones are its hits;
    recall under a filter that leaves short ones does.
    """
    norms = np.linalg.norm(sample.astype(np.float64), axis=1)
    if not (norms > 0).any():
        return False
    steps = np.ptp(sample.astype(np.float64), axis=0) / 255
    lost = np.sqrt((steps**2).sum() / 12)  # of a number rounded to steps, the root mean square
    return bool(lost > _MAY_LOSE * np.quantile(norms[norms > 0], 0.01))


def factories(
    num_rows: int,
    dim: int,
    config: IndexConfig,
    key_bytes: float = 32.0,
    uneven: bool = False,
    must_fit: bool = True,
) -> list[str]:
    """FAISS factory strings to try in turn until one reaches the recall asked without strain (see
    `rec.retrieval.tune.Verdict`); of those tried the best is taken.

    Up to 20,000 rows, where they fit the memory, or where recall 1 is asked: Flat. Else inverted
    lists, a power of two that leaves 39 training points a list: about 4 sqrt(N), but sqrt(N) of PQ
    codes, several of which a query passes in the time of one centroid. With, fastest first among
    those that can reach the recall and fit the memory; the ablest that fits where none can:

        PQ + refinement by 8-bit codes   1.3 d bytes a row   recall up to about .97
        PQ + refinement by full vectors  4.3 d               .995
        full vectors                     4 d                 1
        8-bit codes                      1 d                 .98; and where a fifth or more of
                                                             the items changes a day: it has no
                                                             codebook that would grow old

    Of vectors that are `uneven` (see `is_uneven`) only full vectors, where those fit the memory.
    Beside that each row has its id and where it stands, `key_bytes`; see `num_bytes`.

    Graphs (HNSW) are left to a factory string: they took several times the memory and build time
    of these at no more throughput, and lose recall under filters.

    Args:
        must_fit: where nothing fits the memory it is refused; else the smallest is taken.

    Raises:
        IndexBuildError: nothing fits the memory, or nothing that is exact where recall 1 is asked.
    """
    if config.factory != "auto":
        return [config.factory]
    room = math.inf if config.memory_gb is None else config.memory_gb * 2**30
    in_full = least = num_rows * (4.0 * dim + key_bytes)
    if is_lossy := config.recall_target < 1:
        least = min(in_full, num_bytes(num_rows, dim, 1.0, key_bytes))
    if must_fit and least > room:
        raise IndexBuildError(
            f"memory_gb is {config.memory_gb:g}, and {num_rows} rows of {dim} values take at least "
            f"{least / 2**30:.3g} GiB{'' if is_lossy else ' to be searched exactly'}: give as much"
        )
    if not is_lossy or (num_rows <= FLAT_UP_TO and in_full <= room):
        return ["Flat"]
    num_training = num_rows - config.held_out(num_rows)
    by_speed = [
        (f"PQ{dim // 2}x4fs,Refine(SQ8)", 1.3, 0.97),
        (f"PQ{dim // 2}x4fs,RFlat", 4.3, 0.995),
        ("SQ8", 1.0, 0.98),
        ("Flat", 4.0, 1.0),
    ]
    if dim % 2 or config.updates_per_day >= 0.2:
        by_speed = by_speed[2:]
    fitting = [kind for kind in by_speed if num_bytes(num_rows, dim, kind[1], key_bytes) <= room]
    if uneven and by_speed[-1] in fitting:
        fitting = by_speed[-1:]
    able = [kind for kind in fitting if kind[2] >= config.recall_target]
    chosen = able or sorted(fitting, key=lambda kind: -kind[2])[:1] or [("SQ8", 1.0, 0.98)]
    return [f"IVF{num_lists(num_training, num_rows, name)},{name}" for name, _, _ in chosen]


def num_lists(num_training: int, num_rows: int, codes: str = "") -> int:
    """About 4 sqrt(N), or sqrt(N) of PQ codes, as a power of two that leaves 39 training points a
    list."""
    times = 1 if codes.startswith("PQ") else 4
    lists = 2 ** round(math.log2(times * math.sqrt(num_rows)))
    while _LEAST_PER_LIST * lists > num_training and lists > 1:
        lists //= 2
    return lists
