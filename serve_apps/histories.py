"""What users did and what is popular, as published sequence rows tell it. Knows nothing of HTTP."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec.artifacts import Manifest, open_artifact

_SIDES = ("train", "heldout", "test")  # a user's row of a later side holds the earlier ones' events
_COLUMNS = {"user_id": pa.large_string(), "item_index": pa.large_list(pa.int32())}


class PopularItem(NamedTuple):
    item_id: str
    num_events: int  # on the training side


class Histories:
    """All users of a "sequence-rows" artifact, in memory: 4 bytes an event, and the users' ids.

    A user's history is all that the rows know, events that were held out to be predicted included:
    who is served now has done them.

    Args:
        uri: of the rows, local or s3://.
        manifest: of the version to read; None: the one in use.

    Raises:
        ArtifactError: there are none, or a file is absent or altered.
    """

    def __init__(self, uri: str, manifest: Manifest | None = None) -> None:
        manifest, folder = open_artifact(uri, "sequence-rows", manifest=manifest)
        self.version = manifest.version
        items = pq.read_table(folder / "items.parquet", columns=["item_id", "num_events"])
        self.item_ids: list[str] = items.column("item_id").to_pylist()
        counts = items.column("num_events").to_numpy()
        by_count = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        self.popular = [PopularItem(self.item_ids[i], int(counts[i])) for i in by_count]
        rows = _latest(pa.concat_tables([_side(folder, side) for side in _SIDES]))
        self._users = rows.column("user_id").combine_chunks()
        lists = rows.column("item_index").combine_chunks()
        self._offsets, self._index = lists.offsets.to_numpy(), lists.values.to_numpy()

    def __len__(self) -> int:
        """Users with at least one event."""
        return len(self._users)

    def of(self, user: str) -> list[str]:
        """Ids of the items that the user chose, the newest last; of a user not there, none."""
        # as Arrow sorts: by the bytes of UTF-8, which is the order of code points
        at = self._at(user)
        if at == len(self._users) or self._users[at].as_py() != user:
            return []
        index = self._index[self._offsets[at] : self._offsets[at + 1]]
        return [self.item_ids[i] for i in index]

    def users(self, prefix: str, limit: int) -> list[tuple[str, int]]:
        """The first users, by id, whose ids begin with `prefix`, and the events of each."""
        start = self._at(prefix)
        ids = self._users.slice(start, limit).to_pylist()
        counts = np.diff(self._offsets[start : start + len(ids) + 1]).tolist()
        return [one for one in zip(ids, counts, strict=True) if one[0].startswith(prefix)]

    def _at(self, user: str) -> int:
        return bisect_left(self._users, user, key=lambda found: found.as_py())


def _side(folder: Path, side: str) -> pa.Table:
    schema = pa.schema(list(_COLUMNS.items()))
    files = sorted((folder / side).glob("*.parquet"))
    parts = [pq.read_table(file, columns=list(_COLUMNS)).cast(schema) for file in files]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _latest(rows: pa.Table) -> pa.Table:
    """The last row of each user, by user."""
    order = pc.sort_indices(rows, sort_keys=[("user_id", "ascending")])  # stable
    rows = rows.take(order).combine_chunks()
    users = rows.column("user_id")
    last = np.ones(rows.num_rows, bool)
    if rows.num_rows > 1:
        last[:-1] = np.asarray(pc.not_equal(users.slice(0, len(users) - 1), users.slice(1)))
    return rows.filter(pa.array(last)).combine_chunks()
