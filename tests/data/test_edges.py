from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.data.edges import (
    CLICKED,
    CO_WATCHED,
    COMMENTED,
    COUNTS,
    INTERACTED,
    NEXT,
    PREFERS,
    SEARCHED,
    TAGGED,
    EdgeConfig,
    as_edges,
    edges_of,
    frequent,
    hash_edges,
    strongest,
    sum_counts,
)
from rec.data.item_tags import ITEM_TAGS, tag_counts, tags_by_item
from rec.data.log_rows import LONG, USER_ROWS
from rec.data.logs import LogFiles
from rec.data.shuffle import bucket_of
from rec.data.user_rows import UserRows, sort_rows
from rec.graphs.csr import NO_TIME

HOUR = 3_600_000_000
LOG = LogFiles()
Count = tuple[int, str, str, int, int]

events = st.lists(
    st.tuples(st.sampled_from("uv"), st.sampled_from("abc"), st.integers(0, 200)), max_size=30
)
counts = st.lists(
    st.tuples(
        st.sampled_from([INTERACTED, NEXT]),
        st.sampled_from("ab"),
        st.sampled_from("xyz"),
        st.integers(1, 3),
        st.integers(0, 2),
    ),
    max_size=30,
)


def rows_of(found: list[tuple[str, str, int]], query: str | None = None) -> UserRows:
    """Rows of (user, item, quarter of an hour)."""
    rows = [
        {"user": u, "item": i, "query": query, "time": q * HOUR // 4, "event": 0, "dwell": LONG}
        for u, i, q in found
    ]
    return sort_rows(pa.Table.from_pylist(rows, schema=USER_ROWS))


def counted(table: pa.Table) -> dict[tuple[int, str, str], tuple[int, int]]:
    rows = table.to_pylist()
    found = {(r["kind"], r["source"], r["target"]): (r["num"], r["last"]) for r in rows}
    assert len(found) == len(rows)
    return found


def table_of(rows: list[Count]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 5
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, COUNTS, strict=True)], COUNTS)


@given(events, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_interactions_agree_with_plain_loops(
    found: list[tuple[str, str, int]], window: int
) -> None:
    config = EdgeConfig(window=window, session_gap_minutes=30)
    expected: dict[tuple[int, str, str], tuple[int, int]] = {}

    def add(kind: int, source: str, target: str, time: int) -> None:
        num, last = expected.get((kind, source, target), (0, time))
        expected[kind, source, target] = (num + 1, max(last, time))

    users: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for user, item, quarter in found:
        users[user].append((quarter * HOUR // 4, item))
        add(INTERACTED, user, item, quarter * HOUR // 4)
    for rows in users.values():
        rows.sort(key=lambda row: row[0])
        session, number = [], 0
        for i, (time, _) in enumerate(rows):
            before = rows[i - 1][0] if i else time
            number += time - before > HOUR / 2 or time // (24 * HOUR) != before // (24 * HOUR)
            session.append(number)
        for i, (_, first) in enumerate(rows):
            for j in range(i + 1, min(i + window + 1, len(rows))):
                time, second = rows[j]
                if session[i] == session[j] and first != second:
                    add(NEXT, first, second, time)
                    add(CO_WATCHED, first, second, time)
                    add(CO_WATCHED, second, first, time)
    assert counted(edges_of("interactions", rows_of(found), LOG, config)) == expected


def test_searches_and_comments() -> None:
    config = EdgeConfig()
    found = [("u", "a", 1), ("u", "b", 2), ("v", "a", 3)]
    searches = edges_of("searches", rows_of(found, "wolf"), LOG, config)
    assert counted(searches) == {
        (SEARCHED, "u", "wolf"): (2, HOUR // 2),
        (SEARCHED, "v", "wolf"): (1, 3 * HOUR // 4),
        (CLICKED, "wolf", "a"): (2, 3 * HOUR // 4),
        (CLICKED, "wolf", "b"): (1, HOUR // 2),
    }
    comments = edges_of("comments", rows_of(found), LOG, config)
    assert counted(comments)[COMMENTED, "u", "b"] == (1, HOUR // 2)
    assert comments.num_rows == 3


@given(counts, st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_sums_of_parts_are_sums_of_all(rows: list[Count], cut: int) -> None:
    expected: dict[tuple[int, str, str], tuple[int, int]] = {}
    for kind, source, target, num, last in rows:
        was, when = expected.get((kind, source, target), (0, last))
        expected[kind, source, target] = (was + num, max(when, last))
    whole = sum_counts(table_of(rows))
    assert counted(whole) == expected
    assert [(r["kind"], r["source"], r["target"]) for r in whole.to_pylist()] == sorted(expected)
    parts = [sum_counts(table_of(part)) for part in (rows[:cut], rows[cut:])]
    assert sum_counts(pa.concat_tables(parts)).equals(whole)


@given(counts, st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_the_strongest_of_buckets_strongest_are_those_of_all(
    rows: list[Count], degree: int, num_buckets: int
) -> None:
    table = sum_counts(table_of(rows))
    expected: list[Count] = []
    by_source: dict[tuple[int, str], list[Count]] = defaultdict(list)
    for r in table.to_pylist():
        by_source[r["kind"], r["source"]].append(tuple(r.values()))
    for key in sorted(by_source):
        best = sorted(by_source[key], key=lambda c: (-c[3], -c[4], c[2]))
        expected += best[:degree]
    whole = strongest(table, degree)
    assert [tuple(r.values()) for r in whole.to_pylist()] == expected
    bucket = bucket_of(hash_edges(table), num_buckets)
    parts = [strongest(table.filter(pa.array(bucket == b)), degree) for b in range(num_buckets)]
    assert strongest(pa.concat_tables(parts), degree).equals(whole)


def test_rare_pairs_go_and_other_edges_stay() -> None:
    table = table_of([(INTERACTED, "u", "a", 1, 0), (NEXT, "a", "b", 1, 0), (NEXT, "a", "c", 2, 0)])
    assert frequent(table, 2).column("target").to_pylist() == ["a", "c"]


def test_counts_as_edges() -> None:
    rows = as_edges(table_of([(TAGGED, "a", "wolf", 1, NO_TIME), (CLICKED, "q", "a", 3, HOUR)]))
    assert [tuple(r.values()) for r in rows.to_pylist()] == [
        ("item", "a", "tagged", "tag", "wolf", 1.0, None),
        ("query", "q", "clicked", "item", "a", 3.0, datetime(1970, 1, 1, 1, tzinfo=UTC)),
    ]


def test_tags_of_items() -> None:
    items = pa.Table.from_pylist(
        [
            {"item_id": "b", "tags": ["old"]},
            {"item_id": "a", "tags": ["#Wolf", "wolf", "!!", "sea", "sky"]},
            {"item_id": "b", "tags": ["sea"]},
            {"item_id": "c", "tags": None},
        ],
        schema=ITEM_TAGS,
    )
    tags, ledger = tags_by_item(items, 2)
    assert tags.to_pylist() == [
        {"item": "a", "tag": "wolf"},
        {"item": "a", "tag": "sea"},
        {"item": "b", "tag": "sea"},
    ]
    assert ledger.stages["item tags"].dropped == {
        "no letter in the tag": 1,
        "the item's tag again": 1,
        "beyond the item's first": 1,
    }
    seen = [
        table_of([(INTERACTED, "u", "a", 2, 5), (INTERACTED, "u", "b", 1, 9)]),
        table_of([(INTERACTED, "v", "x", 1, 1), (INTERACTED, "v", "b", 1, 7)]),
    ]
    found = sum_counts(pa.concat_tables(list(tag_counts(tags, seen))))
    assert counted(found) == {
        (TAGGED, "a", "wolf"): (1, NO_TIME),
        (TAGGED, "a", "sea"): (1, NO_TIME),
        (TAGGED, "b", "sea"): (1, NO_TIME),
        (PREFERS, "u", "wolf"): (2, 5),
        (PREFERS, "u", "sea"): (3, 9),
        (PREFERS, "v", "sea"): (1, 7),
    }


@pytest.mark.parametrize("items", [[], [{"item_id": "a", "tags": None}]])
def test_no_tags_at_all(items: list[dict]) -> None:
    tags, _ = tags_by_item(pa.Table.from_pylist(items, schema=ITEM_TAGS), 2)
    assert tags.num_rows == 0
    (tagged, prefers) = tag_counts(tags, [table_of([(INTERACTED, "u", "a", 2, 5)])])
    assert tagged.num_rows == prefers.num_rows == 0
    assert np.array_equal(prefers.schema.names, COUNTS.names)
