"""Which events of a user are trained on, which validate and which test; rows of each.

Leave one out: a user's last event is test, the one before it validation; who has fewer than three
is trained on alone. By time: validation begins after one cut-off and test after another. Either
way what is trained on of a user is known from that user's events up to there, so nothing that
happens later changes a training row of whom behaviour cut no events.

Of a user's events in a held-out stretch of time all are targets, or a share of them, the latest:
those before are history then, so that a user who is new in that stretch has one, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.data.ledger import Ledger
from rec.data.shuffle import hash_strings
from rec.schema import SEQUENCE_ROWS

TRAIN, HELDOUT, TEST = 0, 1, 2
SIDES = ("train", "heldout", "test")
_MIN_EVENTS = 3  # of a user of whom one is left out
_ORDER = 1  # salt of the hash by which rows of a shard are mixed


class Cutoffs(NamedTuple):
    """Microseconds since 1970: training ends with the first and validation with the second."""

    train: int
    heldout: int


class Events(NamedTuple):
    """Sequences of U users laid end to end, E events, oldest first; users without any are kept."""

    users: pa.Array  # (U,) ids
    user: NDArray[np.int64]  # (E,) positions in users, ascending
    items: pa.Array  # (E,) ids
    times: NDArray[np.int64]  # (E,) microseconds since 1970
    weights: NDArray[np.float32]  # (E,)


def events_of(sequences: pa.Table) -> Events:
    """The events of SEQUENCES of one domain."""
    sequences = sequences.combine_chunks()
    items = sequences.column("item_ids").combine_chunks()
    return Events(
        sequences.column("user_id").combine_chunks(),
        pc.list_parent_indices(items).to_numpy().astype(np.int64),
        items.flatten(),
        pc.list_flatten(sequences.column("event_times")).cast(pa.int64()).to_numpy(),
        pc.list_flatten(sequences.column("weights")).to_numpy(),
    )


def roles(events: Events, cutoffs: Cutoffs | None) -> NDArray[np.int8]:
    """(E,) TRAIN, HELDOUT or TEST; None leaves one out."""
    if cutoffs is not None:
        later = (events.times > cutoffs.train).astype(np.int8)
        return later + (events.times > cutoffs.heldout)
    sizes = _sizes(events, np.ones(len(events.user), bool))
    left = np.cumsum(sizes)[events.user] - np.arange(len(events.user))  # 1: the user's last
    role = np.where(left == 1, TEST, np.where(left == 2, HELDOUT, TRAIN))
    return np.where(sizes[events.user] < _MIN_EVENTS, TRAIN, role).astype(np.int8)


def trained_on(events: Events, role: NDArray[np.int8], min_user_events: int) -> NDArray[np.bool_]:
    """(E,) events on the training side, of users who have enough of them there."""
    early = role == TRAIN
    return early & (_sizes(events, early) >= min_user_events)[events.user]


class Sides(NamedTuple):
    """The rows of one shard."""

    tables: dict[str, pa.Table]  # side -> SEQUENCE_ROWS
    counts: dict[str, dict[str, int]]  # side -> rows and events, and what is special of them
    ledger: Ledger


def split_rows(
    events: Events,
    item_index: NDArray[np.int32],
    num_trained: int,
    cutoffs: Cutoffs | None,
    min_user_events: int,
    target_share: float = 1.0,
) -> Sides:
    """Rows of each side, in the order of a hash of their users.

    A training row holds the user's events on the training side whose items are trained on. A
    held-out row holds the same (also of a user with too few for a training row) and then all
    events in validation; a test row all of that and then all in the test. Of the events that a
    row adds, the targets come last. Both are kept whatever is known of their items.

    Args:
        events: of one shard.
        item_index: (E,) their items; those below `num_trained` are trained on.
        num_trained: items with num_events above 0.
        cutoffs: None leaves one out.
        min_user_events: fewer on the training side make no training row.
        target_share: of a user's events in a held-out stretch, rounded up; above 0, at most 1.
    """
    role = roles(events, cutoffs)
    known = item_index < num_trained
    early, enough = role == TRAIN, trained_on(events, role, min_user_events)
    history = early & known
    masks = {
        "train": enough & known,
        "heldout": history | (role == HELDOUT),
        "test": history | (role >= HELDOUT),
    }
    aimed = {
        "heldout": _targets(events, role == HELDOUT, target_share),
        "test": _targets(events, role == TEST, target_share),
    }
    targets = {side: _sizes(events, mask) for side, mask in aimed.items()}
    tables = {
        side: _rows(events, item_index, mask, targets.get(side)) for side, mask in masks.items()
    }
    counts: dict[str, dict[str, int]] = {
        "train": {"rows": tables["train"].num_rows, "events": int(masks["train"].sum())}
    }
    for side, number in targets.items():
        before = _sizes(events, masks[side]) - number
        counts[side] = {
            "rows": tables[side].num_rows,
            "events": int(number.sum()),
            "events_of_cold_items": int((aimed[side] & ~known).sum()),
            "rows_without_history": int(((number > 0) & (before == 0)).sum()),
        }
    return Sides(tables, counts, _ledger(events, role, enough, known, counts, cutoffs is None))


def _targets(events: Events, mask: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """(E,) the last `share` of each user's events in the mask, rounded up."""
    sizes = _sizes(events, mask)
    user = events.user[mask]
    left = np.cumsum(sizes)[user] - np.arange(len(user))  # 1: the user's last
    found = np.zeros(len(mask), bool)
    # not past a whole number that the product misses by its rounding alone
    found[mask] = left <= np.ceil(sizes * share - 1e-9)[user]
    return found


def _rows(
    events: Events,
    item_index: NDArray[np.int32],
    mask: NDArray[np.bool_],
    targets: NDArray[np.int64] | None,
) -> pa.Table:
    """SEQUENCE_ROWS of the users who have any target, or where None is asked for any event."""
    sizes = _sizes(events, mask)
    chosen = sizes > 0 if targets is None else targets > 0
    mask = mask & chosen[events.user]
    users = np.flatnonzero(chosen)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes[users])]), pa.int32())
    number = np.zeros(len(users), np.int64) if targets is None else targets[users]
    table = pa.Table.from_arrays(
        [
            events.users.take(pa.array(users)),
            pa.ListArray.from_arrays(offsets, pa.array(item_index[mask], pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(events.weights[mask], pa.float32())),
            pa.ListArray.from_arrays(offsets, pa.array(events.times[mask], pa.int64())),
            pa.array(number, pa.int32()),
        ],
        schema=SEQUENCE_ROWS,
    )
    mixed = np.argsort(hash_strings(table.column("user_id"), _ORDER), kind="stable")
    return table.take(pa.array(mixed))


def _ledger(
    events: Events,
    role: NDArray[np.int8],
    enough: NDArray[np.bool_],
    known: NDArray[np.bool_],
    counts: dict[str, dict[str, int]],
    leave_one_out: bool,
) -> Ledger:
    """What became of every event, and which users have which rows."""
    early = role == TRAIN
    ledger = Ledger().record(
        "events to rows",
        len(role),
        sum(side["events"] for side in counts.values()),
        {
            "of a user with too few": int((early & ~enough).sum()),
            "of an item with too few": int((enough & ~known).sum()),
            "before a held-out row's targets": int((role != TRAIN).sum())
            - sum(counts[side]["events"] for side in SIDES[1:]),
        },
    )
    num_users = len(events.users)
    none = num_users - int((_sizes(events, early) > 0).sum())
    few = num_users - none - int((_sizes(events, enough) > 0).sum())
    rows = counts["train"]["rows"]
    dropped = {
        "nothing to train on": none,
        "too few events": few,
        "only items with too few": num_users - none - few - rows,
    }
    ledger = ledger.record("training rows", num_users, rows, dropped)
    for side, name in (("heldout", "validation rows"), ("test", "test rows")):
        reason = f"fewer than {_MIN_EVENTS} events" if leave_one_out else "nothing in that time"
        rows = counts[side]["rows"]
        ledger = ledger.record(name, num_users, rows, {reason: num_users - rows})
    return ledger


def _sizes(events: Events, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(U,) how many of each user's events are in the mask."""
    return np.bincount(events.user[mask], minlength=len(events.users)).astype(np.int64)
