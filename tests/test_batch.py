"""Batches: rows, take and to treat every tensor alike and leave absent ones absent."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.batch import ContentBatch, SequenceBatch

SIZE = 7


def batch(training: bool) -> ContentBatch:
    generator = torch.Generator().manual_seed(0)

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 9, (SIZE, *shape), generator=generator)

    def reals(*shape: int) -> torch.Tensor:
        return torch.randn(SIZE, *shape, generator=generator)

    inputs = ContentBatch(
        token_ids=integers(5),
        token_mask=integers(5) > 4,
        frames=integers(2, 3, 4, 4).to(torch.uint8),
        frame_mask=integers(2) > 4,
        log_mel=reals(1, 96, 64),
        audio_mask=integers(1) > 4,
    )
    if not training:
        return inputs
    return ContentBatch(
        **{f.name: getattr(inputs, f.name) for f in fields(inputs)[:6]},
        word_ids=integers(5),
        term_scores=reals(5),
        label_ids=integers(3),
        label_weights=reals(3),
        views=reals(2, 3, 4, 4),
        view_mask=integers() > 4,
        token_targets=integers(5),
    )


def assert_rows(found: ContentBatch, source: ContentBatch, rows: list[int]) -> None:
    assert len(found) == len(rows)
    for field in fields(source):
        expected, value = getattr(source, field.name), getattr(found, field.name)
        if expected is None:
            assert value is None
        else:
            assert value.dtype == expected.dtype
            assert value.tolist() == [expected[row].tolist() for row in rows]


@pytest.mark.parametrize("training", [False, True])
@given(start=st.integers(0, SIZE), stop=st.integers(0, SIZE + 3))
def test_rows(training: bool, start: int, stop: int) -> None:
    source = batch(training)
    assert_rows(source.rows(start, stop), source, list(range(SIZE))[start:stop])


@pytest.mark.parametrize("training", [False, True])
@given(index=st.lists(st.integers(0, SIZE - 1), max_size=12))
def test_take(training: bool, index: list[int]) -> None:
    source = batch(training)
    assert_rows(source.take(index), source, index)
    assert_rows(source.take(torch.tensor(index, dtype=torch.long)), source, index)


@pytest.mark.parametrize("training", [False, True])
def test_to_a_device(training: bool) -> None:
    source = batch(training)
    moved = source.to("meta")
    for field in fields(source):
        value = getattr(moved, field.name)
        assert value is None if getattr(source, field.name) is None else value.is_meta
    assert_rows(source.to("cpu"), source, list(range(SIZE)))


def test_micro_batches_are_views() -> None:
    source = batch(False)
    assert source.rows(2, 4).frames.data_ptr() == source.frames[2:].data_ptr()


def test_length_and_frozen() -> None:
    source = batch(True)
    assert len(source) == SIZE
    with pytest.raises(FrozenInstanceError):
        source.frames = source.frames  # type: ignore[misc]


def histories(lists: list[list[int]]) -> SequenceBatch:
    flat = [item for items in lists for item in items]
    return SequenceBatch(
        lengths=torch.tensor([len(items) for items in lists]),
        item_index=torch.tensor(flat, dtype=torch.long),
        weights=torch.tensor(flat) / 2,
        times=torch.tensor(flat, dtype=torch.long) * 10,
        target_mask=torch.tensor(flat, dtype=torch.long) % 2 == 0,
    )


def assert_same(found: SequenceBatch, expected: SequenceBatch) -> None:
    for field in fields(expected):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        assert (value is None) == (wanted is None), field.name
        assert value is None or value.tolist() == wanted.tolist(), field.name


LISTS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=5)


@given(lists=LISTS, start=st.integers(0, 5), stop=st.integers(0, 7))
def test_histories_are_cut_at_users(lists: list[list[int]], start: int, stop: int) -> None:
    found = histories(lists).rows(start, stop)
    if not lists[start:stop]:
        assert len(found) == 0
        assert len(found.item_index) == 0
        return
    assert_same(found, histories(lists[start:stop]))


@given(lists=LISTS, data=st.data())
def test_histories_are_taken_whole_and_in_the_order_asked(
    lists: list[list[int]], data: st.DataObject
) -> None:
    index = data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=6))
    assert_same(histories(lists).take(index), histories([lists[i] for i in index]))


EMPTY_TOO = st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=5)


@given(lists=EMPTY_TOO, count=st.integers(0, 5), data=st.data())
def test_the_latest_events_stay(lists: list[list[int]], count: int, data: st.DataObject) -> None:
    def last(items: list[int], number: int) -> list[int]:
        return items[max(0, len(items) - number) :]

    expected = histories([last(items, count) for items in lists])
    assert_same(histories(lists).latest(count), expected)
    counts = data.draw(st.lists(st.integers(0, 5), min_size=len(lists), max_size=len(lists)))
    each = histories([last(items, n) for items, n in zip(lists, counts, strict=True)])
    assert_same(histories(lists).latest(torch.tensor(counts)), each)


@given(lists=EMPTY_TOO)
def test_events_to_predict_are_not_known(lists: list[list[int]]) -> None:
    known = histories([[item for item in items if item % 2] for items in lists])
    assert_same(histories(lists).known(), known)


@given(lists=EMPTY_TOO, data=st.data())
def test_marked_events_are_those_to_predict(lists: list[list[int]], data: st.DataObject) -> None:
    first = data.draw(st.lists(st.integers(0, 5), min_size=len(lists), max_size=len(lists)))
    marked = histories(lists).mark(torch.tensor(first))
    expected = [i >= f for items, f in zip(lists, first, strict=True) for i in range(len(items))]
    assert marked.target_mask.tolist() == expected
    assert marked.users().tolist() == [u for u, items in enumerate(lists) for _ in items]
