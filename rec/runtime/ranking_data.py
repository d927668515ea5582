"""What an evaluation of recommenders reads: items, training histories, and who is asked what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load
from scipy import sparse

from rec.artifacts import ArtifactError, Manifest, filesystem, join, read_bytes, read_manifest
from rec.batch import SequenceBatch
from rec.data.sequence_rows import KIND
from rec.data.stream import RowPass, open_rows
from rec.features.histories import seen_matrix
from rec.features.sequences import Targets, histories
from rec.metrics.diversity import category_shares

Floats = NDArray[np.floating]
Side = Literal["test", "heldout"]
_FIT_USERS = 4096  # histories in a batch that baselines are fitted on


@dataclass(frozen=True)
class RankedItems:
    """The N candidates, in order of item_index."""

    item_ids: pa.StringArray
    num_events: NDArray[np.int64]  # (N,) on the training side
    categories: sparse.csr_array | None  # (N, C) shares; None where nobody told of any
    content: Floats | None  # (N, D) unit rows
    content_mask: NDArray[np.bool_] | None  # (N,)

    def __len__(self) -> int:
        return len(self.num_events)


def read_ranked_items(rows: str) -> RankedItems:
    """The items of the sequence rows at `rows`."""
    manifest = read_manifest(rows, KIND)
    files, path = filesystem(join(rows, manifest.root, "items.parquet"))
    columns = ["item_id", "num_events", "category_index"]
    table = pq.read_table(path, columns=columns, filesystem=files).combine_chunks()
    lists = table.column("category_index").combine_chunks()
    num_categories = manifest.metrics["num_categories"]
    content, mask = _content(rows, manifest)
    return RankedItems(
        item_ids=table.column("item_id").cast(pa.string()).combine_chunks(),
        num_events=table.column("num_events").to_numpy(),
        categories=category_shares(lists.to_pylist(), num_categories) if num_categories else None,
        content=content,
        content_mask=mask,
    )


def _content(rows: str, manifest: Manifest) -> tuple[Floats | None, NDArray[np.bool_] | None]:
    if not manifest.metrics["content_dim"]:
        return None, None
    tensors = load(read_bytes(join(rows, manifest.root, "content.safetensors")))
    return tensors["vectors"], tensors["mask"]


def _whole(table: pa.Table) -> SequenceBatch:
    return histories(table)[0]  # training rows hold nothing out


def training_histories(rows: str) -> RowPass[SequenceBatch]:
    """All training rows, batch by batch; can be walked again and again."""
    return RowPass(open_rows(rows, KIND, "train"), _whole, batch_size=_FIT_USERS)


def questions(
    rows: str, side: Side, users: int, max_users: int | None = None
) -> Iterator[tuple[SequenceBatch, Targets]]:
    """Histories and targets of one side, at most `users` at a time, always in one order.

    Args:
        max_users: of the first rows in all (a sample: rows are mixed by hash); None: all.
    """
    left = max_users
    for batch, targets in RowPass(open_rows(rows, KIND, side), histories, batch_size=users):
        if left is None or left > len(batch):
            yield batch, targets
        else:
            offsets = targets.offsets[: left + 1]
            yield batch.rows(0, left), Targets(offsets, targets.item_index[: offsets[-1]])
            return
        left = None if left is None else left - len(batch)


class Aims(NamedTuple):
    """What Q users should be shown, and what had to be settled for that."""

    relevant: sparse.csr_array  # (Q, N) non-zero at a user's targets, each item once
    history_lengths: NDArray[np.int64]  # (Q,) events
    counts: dict[str, int]


def read_aims(
    rows: str, side: Side, num_items: int, users: int, max_users: int | None = None
) -> Aims:
    """The targets of one side, of its first `max_users` rows.

    An item that is a target of one user twice counts once. A target that the user has seen
    before stays in the denominator; where the seen are left out of the lists it cannot be found.

    Raises:
        ArtifactError: a row holds no target, or the rows are of other items.
    """
    lengths, parts = [np.empty(0, np.int64)], [sparse.csr_array((0, num_items), dtype=np.float32)]
    num_targets = num_seen = 0
    for batch, targets in questions(rows, side, users, max_users):
        sizes = np.diff(targets.offsets)
        if not sizes.all():
            raise ArtifactError(
                f"{rows}, {side}: a row without targets, nothing to ask; rows of "
                f"this side hold some out (num_targets of at least 1)"
            )
        if len(targets.item_index) and targets.item_index.max() >= num_items:
            raise ArtifactError(
                f"{rows}, {side}: item_index {targets.item_index.max()}, but "
                f"{num_items} items; publish the rows again"
            )
        cells = (np.repeat(np.arange(len(batch)), sizes), targets.item_index)
        ones = np.ones(len(targets.item_index), np.float32)
        wanted = sparse.csr_array((ones, cells), shape=(len(batch), num_items))
        wanted.data[:] = 1
        num_targets += len(targets.item_index)
        num_seen += int(wanted.multiply(seen_matrix(batch, num_items)).sum())
        parts.append(wanted)
        lengths.append(batch.lengths.numpy())
    relevant = sparse.csr_array(sparse.vstack(parts, format="csr"))
    history_lengths = np.concatenate(lengths)
    return Aims(
        relevant,
        history_lengths,
        {
            "users": len(history_lengths),
            "users without history": int((history_lengths == 0).sum()),
            "targets": num_targets,
            "targets that repeat another of the same user": num_targets - relevant.nnz,
            "targets that the user has seen before": num_seen,
        },
    )


def position_of(item_ids: pa.StringArray, wanted: pa.StringArray) -> NDArray[np.int64]:
    """(n,) where each wanted id stands among `item_ids`, -1 for one that does not."""
    found = pc.index_in(wanted, value_set=item_ids)
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
