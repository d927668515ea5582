"""Build an index artifact from an embedding table: train, fill shards, measure, tune, publish.

One coarse quantiser (and codebook) is trained on a sample and shared by all shards, so that
shards searched together find what one index of all rows would. Shards are filled apart from
each other by whatever `run` is: `map` in this process, Ray's in jobs.index.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rec import artifacts
from rec.artifacts import ArtifactError, Manifest, join
from rec.leftovers import root_in_use
from rec.retrieval import known_log, spec, staging, versions
from rec.retrieval.attributes import kept, num_without
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.fill import (
    HeldOut,
    ShardTask,
    checked_keys,
    counts,
    fill_shard,
    merge_shards,
    read_shards,
)
from rec.retrieval.measure import true_rows, tuned
from rec.retrieval.shards import EFFORT_FILE, INDEX_FILE, QUERIES_FILE, TRAINED_FILE, shard_name
from rec.retrieval.spec import IndexConfig, factories, is_uneven
from rec.retrieval.table import EmbeddingTable, check_published
from rec.retrieval.threads import omp_threads
from rec.retrieval.training import TooFewError, train
from rec.retrieval.tune import Verdict

METRIC = "inner_product"  # cosine, for the unit vectors of our encoders
_SOME_ROWS = 10_000
_RETRAIN_BELOW = 0.02  # recall lost since the training that is continued

_log = logging.getLogger(__name__)
Runner = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Continued:
    """What a build takes over from the version that it is to replace."""

    version: str  # published only while this one is in use
    factory: str = ""
    trained: bytes | None = None  # its index, trained and empty; None = train anew
    num_changed: int = 0  # rows that changed since that training
    recall: float = 0.0  # recall@10 right after that training
    queries: np.ndarray | None = None  # (Q, D) to tune with; None = held-out rows


def build_index(
    embeddings_uri: str,
    out_uri: str,
    config: IndexConfig | None = None,
    *,
    attributes_uri: str | None = None,
    queries_uri: str | None = None,
    log_seq: int | None = None,
    continued: Continued | None = None,
    run: Runner = map,
    num_threads: int | None = None,
) -> Manifest:
    """Index the embedding table at `embeddings_uri` and publish it at `out_uri`.

    Rows of weight 0 (inactive interests) are left out and counted; several interests of one id
    are several vectors of one item. Recall is measured against brute force on queries that the
    quantiser was not trained on; the effort is tuned on one half of them and the recorded recall
    comes from the other; of items that score as the last true one, any counts. Memory here holds
    the ids, a training sample and, to tune, the mapped shards.

    Args:
        config: see IndexConfig.
        attributes_uri: Parquet files with `item_id` (or `id`) and those of config.attributes that
            the embedding table itself does not hold.
        queries_uri: an embedding table of queries (users, texts) to tune with; None = held-out
            rows of the table itself, each without its own hit. They are kept in the version, so
            that a compaction tunes with them too.
        log_seq: live changes up to this number are in the table already; None = unknown, so that
            opening it live makes all changes again.
        continued: the version that this continues (compaction); left with too few rows for
            config.factory, the new one is "Flat".
        run: applies a function to tasks and yields the results in order.
        num_threads: OpenMP threads here; None = all.

    Returns:
        The manifest; `metrics` has recall@10, recall@100 and the curve of efforts tried.

    Raises:
        IndexBuildError: an argument is not as it should be, the table is empty, an (id, interest)
            repeats, a vector is not finite or of another dimension, attributes are missing, FAISS
            refuses the factory string, or the log of live changes has lost some that the table
            does not say it has (log_seq).
        LogError: log.json, which says that, is damaged.
        ArtifactError: a table is not there or not intact, or the index cannot be written.
    """
    config = IndexConfig() if config is None else config
    spec.check(config, log_seq, num_threads)
    builder = _Builder(embeddings_uri, out_uri, config, attributes_uri, run)
    builder.continued, builder.num_threads = continued, num_threads
    builder.log_seq = None if log_seq is None else int(log_seq)  # NumPy's are no JSON
    return builder.build(queries_uri)


class _Builder:
    """One build. What it finds out on the way is kept here."""

    continued: Continued | None = None
    log_seq: int | None = None
    num_threads: int | None = None

    def __init__(
        self, embeddings: str, out: str, config: IndexConfig, attributes: str | None, run: Runner
    ) -> None:
        check_published(embeddings)
        self._source, folder = artifacts.open_artifact(embeddings, "embedding-table")
        self._table = EmbeddingTable(folder)
        self._embeddings, self._out, self._config = embeddings, out, config
        self._attributes, self._run = attributes, run
        self._started = time.monotonic()

    def build(self, queries_uri: str | None) -> Manifest:
        root_in_use(self._out, versions.KIND)  # that no other kind is; before hours of work
        known_log.check_reaches(self._out, self.log_seq)
        keys = checked_keys(self._table, self._embeddings)
        self._check_attributes(keys["id"])
        self._num_rows = keys.num_rows
        self._key_bytes = keys.nbytes / keys.num_rows + 8  # and their order
        rng = np.random.default_rng(self._config.seed)
        order = rng.permutation(self._num_rows)
        held_out = self._held_out(order, queries_uri, rng)
        root, about = self._kept_or_trained(order, held_out)
        about["config"] |= counts(self._table, keys)
        return self._publish(root, about)

    def _kept_or_trained(self, order: np.ndarray, held_out: HeldOut) -> tuple[str, dict[str, Any]]:
        """As `_best_of`: with the training of the version that this continues, unless it does
        markedly worse than it did."""
        if self.continued is not None and self.continued.trained is not None:
            root, about = self._best_of([self.continued.factory], order, held_out)
            if about["metrics"]["recall@10"] >= self.continued.recall - _RETRAIN_BELOW:
                about["config"]["recall_at_training"] = self.continued.recall
                return root, about
            versions.discard(self._out, root)
            self.continued = Continued(self.continued.version)
        dim = held_out.queries.shape[1]
        uneven = self._config.factory == "auto" and is_uneven(self._some(order, held_out))
        # a compaction goes on with more than was allowed: changes would pile up
        must_fit = self.continued is None
        choices = factories(self._num_rows, dim, self._config, self._key_bytes, uneven, must_fit)
        try:
            root, about = self._best_of(choices, order, held_out)
        except TooFewError as error:
            if self.continued is None:
                raise
            told = f"{self._num_rows} rows are too few for {choices[-1]} ({error.reason})"
            _log.warning("%s: %s: the new version compares them all (Flat)", self._out, told)
            root, about = self._best_of(["Flat"], order, held_out)
        about["config"]["recall_at_training"] = about["metrics"]["recall@10"]
        return root, about

    def _some(self, order: np.ndarray, held_out: HeldOut) -> np.ndarray:
        """(n, D) rows by chance."""
        if held_out.own[0] >= 0:  # they were read already
            return held_out.queries
        return self._table.sample(np.sort(order[:_SOME_ROWS]))

    def _best_of(
        self, choices: list[str], order: np.ndarray, held_out: HeldOut
    ) -> tuple[str, dict[str, Any]]:
        """The folder of the first kind of index that does well, or of the best, and what there is
        to say of it; those of the others are removed."""
        made: list[tuple[Verdict, str, dict[str, Any]]] = []
        roots: list[str] = []
        try:
            with versions.under_construction(self._out, roots):
                for factory in choices:
                    roots.append(root := f"v-{uuid.uuid4().hex[:12]}")
                    with omp_threads(self.num_threads):
                        about, verdict = self._fill(root, factory, order, held_out)
                    made.append((verdict, root, about))
                    if verdict.reached and not verdict.strained:
                        break
        except BaseException as error:
            for unfinished in roots:
                versions.discard(self._out, unfinished)
            if isinstance(error, OSError):
                raise ArtifactError(f"{self._out}: cannot be written: {error}") from error
            raise
        best = max(made, key=lambda one: one[0].rank)
        for _, other, _ in made:
            if other != best[1]:
                versions.discard(self._out, other)
        return best[1:]

    def _check_attributes(self, ids: pa.ChunkedArray) -> None:
        """Before hours of work; those of other files are read by each shard."""
        schema, wanted = self._table.schema(), self._config.attributes
        rest = sorted(set(wanted) - set(schema.names))
        if rest and self._attributes is not None:
            if num := num_without(self._attributes, ids, rest):
                told = "items are not there, and have none of the attributes"
                _log.warning("%s: %d %s %s", self._attributes, num, told, rest)
        elif rest:
            raise IndexBuildError(
                f"{self._embeddings}: no columns {rest} to keep as attributes, found "
                f"{schema.names}; say where they are (attributes)"
            )
        own = [name for name in wanted if name in schema.names]
        kept(schema.empty_table().select(own), self._embeddings)

    def _held_out(
        self, order: np.ndarray, queries_uri: str | None, rng: np.random.Generator
    ) -> HeldOut:
        num = 2 * self._config.num_queries
        if self.continued is not None and (kept := self.continued.queries) is not None:
            return HeldOut(kept, np.full(len(kept), -1))
        if queries_uri is None:
            own = np.sort(order[: self._config.held_out(self._num_rows)])
            return HeldOut(self._table.sample(own), own)
        source, folder = artifacts.open_artifact(queries_uri, "embedding-table")
        encoders = source.lineage.get("encoder"), self._source.lineage.get("encoder")
        if None not in encoders and encoders[0] != encoders[1]:
            raise IndexBuildError(
                f"{queries_uri}: queries of encoder {encoders[0]}, {self._embeddings} has vectors "
                f"of {encoders[1]}: a recall would say nothing; embed the queries with that one"
            )
        table = EmbeddingTable(folder)
        there = table.keys().num_rows
        if not there:
            raise IndexBuildError(f"{queries_uri}: the table of queries is empty")
        queries = table.sample(np.sort(rng.permutation(there)[:num]))
        dim = next(self._table.vectors()).shape[1]
        if queries.shape[1] != dim:
            raise IndexBuildError(
                f"{queries_uri}: queries of {queries.shape[1]} values, {self._embeddings} has "
                f"vectors of {dim}"
            )
        return HeldOut(queries, np.full(len(queries), -1))

    def _fill(
        self, root: str, factory: str, order: np.ndarray, held_out: HeldOut
    ) -> tuple[dict[str, Any], Verdict]:
        """Write the shards; what there is to say of them."""
        trained = self._train(factory, order, held_out)
        num_shards = self._config.shards_of(self._num_rows)
        bounds = np.linspace(0, self._num_rows, num_shards + 1).astype(int)
        tasks = [
            ShardTask(
                embeddings=self._embeddings,
                version=self._source.version,
                out=join(self._out, root, shard_name(number)),
                start=int(bounds[number]),
                stop=int(bounds[number + 1]),
                trained=trained,
                attributes=self._attributes,
                columns=self._config.attributes,
                queries=held_out.queries,
            )
            for number in range(num_shards)
        ]
        truth = true_rows(list(self._run(fill_shard, tasks)), bounds[:-1], held_out)
        with staging.folder() as local:
            shards = read_shards(join(self._out, root), num_shards, Path(local))
            if self._config.merge and num_shards > 1:
                shards = [merge_shards(join(self._out, root), shards, trained)]
            effort, metrics, verdict = tuned(shards, held_out, truth, self._config)
        text = json.dumps(effort._asdict()).encode()
        artifacts.write_atomic(join(self._out, root, EFFORT_FILE), text)
        artifacts.write_atomic(join(self._out, root, TRAINED_FILE), trained)
        if held_out.own[0] < 0:
            np.save(queries := BytesIO(), held_out.queries)
            artifacts.write_atomic(join(self._out, root, QUERIES_FILE), queries.getvalue())
        metrics["memory_gb"] = self._memory_gb(root)
        config = {
            "build": self._config.model_dump(),
            "factory": factory,
            "metric": METRIC,
            "dimension": held_out.queries.shape[1],
            "num_shards": len(shards),
            "log_seq": self.log_seq,
            "num_changed": self.continued.num_changed if self.continued else 0,
            **effort._asdict(),
        }
        return {"config": config, "metrics": metrics}, verdict

    def _memory_gb(self, root: str) -> float:
        """GiB that the version takes as it is searched with filters, attributes apart."""
        sizes = artifacts.file_sizes(join(self._out, root))
        held = sum(size for name, size in sizes.items() if name.endswith(f"/{INDEX_FILE}"))
        found = (held + self._num_rows * (4 + self._key_bytes)) / 2**30
        if (asked := self._config.memory_gb) is not None and found > asked:
            _log.warning("%s: takes %.3g GiB, memory_gb is %g", self._out, found, asked)
        return found

    def _train(self, factory: str, order: np.ndarray, held_out: HeldOut) -> bytes:
        if self.continued is not None and self.continued.trained is not None:
            return self.continued.trained
        rest = order if held_out.own[0] < 0 else order[len(held_out.own) :]

        def sample(num: int) -> np.ndarray:
            return self._table.sample(np.sort(rest[:num]))

        return train(factory, held_out.queries.shape[1], sample, self._embeddings)

    def _publish(self, root: str, about: dict[str, Any]) -> Manifest:
        seconds = round(time.monotonic() - self._started, 3)
        return versions.publish(
            self._out,
            root,
            expect=self.continued.version if self.continued else None,
            lineage={**self._source.lineage, "embedding-table": self._source.version},
            config=about["config"],
            metrics={**about["metrics"], "seconds": seconds},
        )
