"""Batches of histories agree with a plain loop over users, whatever rows they come from."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.features.sequences import collate_sequences, histories
from rec.schema import SEQUENCE_ROWS


def table(users: list[tuple[list[int], int]]) -> pa.Table:
    rows = [
        {
            "user_id": f"u{number}",
            "item_index": items,
            "weights": [item / 4 for item in items],
            "event_times": [10**15 + place for place in range(len(items))],
            "num_targets": num_targets,
        }
        for number, (items, num_targets) in enumerate(users)
    ]
    return pa.Table.from_pylist(rows, schema=SEQUENCE_ROWS)


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[list[int], int]]:
    lists = st.lists(st.integers(0, 99), min_size=1, max_size=7)
    users = draw(st.lists(lists, max_size=5))
    return [(items, draw(st.integers(0, len(items)))) for items in users]


@given(users=rows(), max_length=st.integers(1, 8), start=st.integers(0, 2))
def test_a_target_has_at_most_so_many_events_before_it(
    users: list[tuple[list[int], int]], max_length: int, start: int
) -> None:
    lengths: list[int] = []
    items: list[int] = []
    marks: list[bool] = []
    for known, num_targets in users[start:]:
        stay = known[-(max_length + max(num_targets, 1)) :]
        first = len(stay) - num_targets if num_targets else 1
        lengths.append(len(stay))
        items += stay
        marks += [place >= first for place in range(len(stay))]
    # a slice, whose lists begin in the middle of their values
    found = collate_sequences(table(users).slice(start), max_length)
    assert found.lengths.tolist() == lengths
    assert found.item_index.tolist() == items
    assert found.target_mask.tolist() == marks
    assert found.weights.tolist() == [item / 4 for item in items]
    assert found.item_index.dtype == found.times.dtype == found.lengths.dtype == torch.int64
    assert found.weights.dtype == torch.float32


@given(users=rows())
def test_a_history_ends_before_its_targets(users: list[tuple[list[int], int]]) -> None:
    known, targets = histories(table(users))
    expected = [items[: len(items) - num_targets] for items, num_targets in users]
    assert known.lengths.tolist() == [len(items) for items in expected]
    assert known.item_index.tolist() == [item for items in expected for item in items]
    assert not known.target_mask.any()
    held = [items[len(items) - num_targets :] for items, num_targets in users]
    ends = zip(targets.offsets[:-1], targets.offsets[1:], strict=True)
    assert [targets.item_index[start:stop].tolist() for start, stop in ends] == held


def test_pieces_of_a_table_are_read_as_one() -> None:
    whole = table([([1, 2, 3], 0), ([4, 5], 1), ([6], 1)])
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    found = collate_sequences(pieces, 4)
    assert found.item_index.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.times.tolist() == [10**15 + place for place in (0, 1, 2, 0, 1, 0)]


def test_rows_without_a_column_are_refused() -> None:
    with pytest.raises(KeyError, match="num_targets"):
        collate_sequences(table([([1], 0)]).drop_columns("num_targets"), 4)
