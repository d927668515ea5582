from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rec.data.duplicates import DUPLICATES
from rec.data.events import EVENTS, LabelEvents, read_events
from rec.data.labels import (
    ITEM_LABELS,
    VOCABULARY,
    LabelConfig,
    count_labels,
    gather,
    weigh,
)
from rec.data.ledger import Ledger, LedgerError
from rec.data.pairs import PAIRS, check_arrived, in_order, join_events, join_words
from rec.data.parquet import write_table
from rec.data.split import Split
from rec.data.tables import shard_file
from rec.data.texts import training_items
from rec.features.tags import LabelWeights
from rec.schema import COMMENTS, EDGES, ITEMS, SEARCHES

START = datetime(2024, 1, 1, tzinfo=UTC)
CUTOFF = START + timedelta(days=10)
SPLIT = Split(heldout_fraction=0.5, cutoff=CUTOFF)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def random_events(seed: int) -> list[dict[str, object]]:
    """Items a to f (e and f held out) and events about them and about one unknown item."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for shard, item in enumerate("abcdef"):
        rows.append({"item_id": item, "shard": shard % 2, "heldout": item in "ef"})
    for _ in range(120):
        query = bool(random.random() < 0.4)
        rows.append(
            {
                "item_id": str(random.choice(list("abcdefz"))),
                "label": str(random.choice(["red", "blue", "wolf"])),
                "event_time": day(float(random.integers(0, 20))) if random.random() < 0.9 else None,
                "coefficient": 0.5 if query else 1.0,
                "source": "query" if query else "tag",
                "num_events": 1,
                "num_shown": 1 if query else None,
            }
        )
    random.shuffle(rows)  # type: ignore[arg-type]
    return rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_agree_with_a_plain_loop(seed: int) -> None:
    rows = random_events(seed)
    config = LabelEvents(min_clicks=2)
    pairs, ledger = join_events(pa.Table.from_pylist(rows, schema=EVENTS), SPLIT, config)

    items = {row["item_id"]: row for row in rows if row.get("label") is None}
    groups: dict[tuple[object, ...], list[dict[str, object]]] = defaultdict(list)
    unknown = late = rare = 0
    for row in rows:
        if row.get("label") is None:
            continue
        item = items.get(row["item_id"])
        time = row["event_time"]
        if item is None:
            unknown += 1
        elif not item["heldout"] and isinstance(time, datetime) and time > CUTOFF:
            late += 1
        else:
            groups[row["item_id"], row["label"], row["source"]].append(row)
    expected: dict[tuple[object, object], list[dict[str, object]]] = defaultdict(list)
    for (item_id, label, source), group in groups.items():
        if source == "query" and len(group) < 2:
            rare += len(group)
        else:
            expected[item_id, label] += group
    found = {(row["item_id"], row["label"]): row for row in pairs.to_pylist()}
    assert found.keys() == expected.keys()
    for key, group in expected.items():
        times = [r["event_time"] for r in group if r["event_time"] is not None]
        assert found[key]["num_events"] == len(group)
        assert found[key]["last_time"] == (max(times) if times else None)  # type: ignore[type-var]
        assert found[key]["coefficient"] == max(r["coefficient"] for r in group)  # type: ignore[type-var]
        assert found[key]["shard"] == items[key[0]]["shard"]
        assert found[key]["heldout"] == items[key[0]]["heldout"]
    dropped = ledger.stages["label events"].dropped
    assert dropped == {
        "item unknown": unknown,
        "after the cut-off": late,
        "query with too few clicks": rare,
    }  # reasons without rows are not listed


def test_what_happens_after_the_cutoff_changes_nothing_in_training() -> None:
    rows = random_events(3)
    early = [
        r
        for r in rows
        if r.get("event_time") is None or r["event_time"] <= CUTOFF  # type: ignore[operator]
    ]
    results = []
    for chosen in (rows, early):
        pairs, _ = join_events(pa.Table.from_pylist(chosen, schema=EVENTS), SPLIT, LabelEvents())
        train = pairs.filter(pa.array([not h for h in pairs["heldout"].to_pylist()]))
        counts = count_labels(pairs, None, CUTOFF, LabelWeights())
        results.append(
            [sorted(t.to_pylist(), key=str) for t in (train.select(PAIRS.names), counts)]
        )
        times = [t for t in train["last_time"].to_pylist() if t is not None]
        assert max(times) <= CUTOFF
    assert results[0] == results[1]


def pairs_table() -> pa.Table:
    rows = [
        ("a", 0, False, "red", 1, day(9), 1.0),
        ("a", 0, False, "blue", 3, day(1), 0.5),
        ("b", 0, False, "red", 2, None, 1.0),
        ("c", 1, False, "red", 1, day(2), 1.0),
        ("d", 1, True, "red", 9, day(15), 1.0),
        ("d", 1, True, "new", 9, day(15), 1.0),
    ]
    return pa.Table.from_pylist(
        [dict(zip(PAIRS.names, (*row, True, False), strict=True)) for row in rows], schema=PAIRS
    )


def test_counts_use_the_window_for_items_and_all_times_for_mass() -> None:
    config = LabelWeights(half_life_days=10, fresh_floor=0.0)
    counts = count_labels(pairs_table(), day(5), CUTOFF, config)
    found = {row["label"]: row for row in counts.to_pylist()}
    assert found.keys() == {"red", "blue", ""}  # "new" is only on a held-out item
    assert (found["red"]["num_items"], found["red"]["num_pairs"]) == (2, 3)  # b's is untimed
    assert (found["blue"]["num_items"], found["blue"]["num_pairs"]) == (0, 1)
    assert found[""]["num_items"] == 2
    red = math.log(2) * 2 ** (-1 / 10) + math.log(3) + math.log(2) * 2 ** (-8 / 10)
    assert found["red"]["mass"] == pytest.approx(red, rel=1e-6)
    assert found["blue"]["mass"] == pytest.approx(math.log(4) * 2 ** (-9 / 10) * 0.5, rel=1e-6)


def test_weights_come_from_the_vocabulary_and_held_out_items_get_them_too() -> None:
    vocabulary = pa.table([["blue", "red"], [0, 1], [5, 9], [2.0, 1.5]], schema=VOCABULARY)
    config = LabelWeights(half_life_days=10, fresh_floor=0.0, min_weight=0.0, max_weight=3.0)
    rows = weigh(pairs_table(), vocabulary, 0.5, CUTOFF, config).to_pylist()
    found = {(row["item_id"], row["label_id"]): row["weight"] for row in rows}
    assert found.keys() == {("a", 0), ("a", 1), ("b", 1), ("c", 1), ("d", 1)}
    assert found["a", 0] == pytest.approx(math.log(4) * 2.0 * 2 ** (-9 / 10) * 0.5 / 0.5, rel=1e-5)
    assert found["a", 1] == pytest.approx(math.log(2) * 1.5 * 2 ** (-1 / 10) / 0.5, rel=1e-5)
    assert found["d", 1] == 3.0  # an event after training counts as fresh; then the clip


def test_labels_are_gathered_by_item() -> None:
    rows = pa.table(
        {
            "item_id": ["b", "a", "b"],
            "label_id": pa.array([4, 1, 2], pa.int32()),
            "weight": pa.array([0.5, 1.0, 2.0], pa.float32()),
        }
    )
    expected = [
        {"item_id": "a", "label_ids": [1], "label_weights": [1.0]},
        {"item_id": "b", "label_ids": [2, 4], "label_weights": [2.0, 0.5]},
    ]
    assert gather(rows).to_pylist() == expected
    assert gather(rows.slice(0, 0)) == ITEM_LABELS.empty_table()


def test_nothing_is_fitted_on_an_item_that_looks_like_another(tmp_path: Path) -> None:
    uri, split = str(tmp_path), Split(heldout_fraction=1e-9)
    items = [{"item_id": x, "domain": "v", "title": f"of {x}1", "tags": [x]} for x in "ab"]
    again = [{"item_id": "b", "duplicate_of": "a", "num_near": 1, "num_frames": 1}]
    write_table(shard_file(uri, "items", 0), pa.Table.from_pylist(items, schema=ITEMS))
    write_table(shard_file(uri, "duplicates", 0), pa.Table.from_pylist(again, schema=DUPLICATES))
    config = LabelEvents(min_evidence=1.0)
    for place, expected in ((uri, ["a"]), (None, ["a", "b"])):
        block, _ = read_events(uri, "items", 0, split, config, place)
        pairs, ledger = join_events(block, split, config)
        assert sorted(pairs["label"].to_pylist()) == expected
        dropped = {"item looks like another one": 1} if place else {}
        assert ledger.stages["label events"].dropped == dropped
        words = join_words(block, split)["word"].to_pylist()
        assert sorted(words) == [f"{x}1" for x in expected]
        assert training_items(uri, 0, split, place)["item_id"].to_pylist() == expected


def test_by_default_queries_count_by_their_clicks_alone(tmp_path: Path) -> None:
    shown = {"user_id": "u", "item_id": "a", "event_time": day(5), "dwell_ms": 9000}
    query = "how do wolves live in the far north"
    rows = [{**shown, "query": query, "clicked": n < 2} for n in range(100)]
    table = pa.Table.from_pylist([{"item_id": "a", "domain": "v"}], schema=ITEMS)
    write_table(shard_file(str(tmp_path), "items", 0), table)
    table = pa.Table.from_pylist(rows, schema=SEARCHES)
    write_table(shard_file(str(tmp_path), "searches", 0), table)
    for config, expected in (
        (LabelEvents(), [query]),
        (LabelEvents(min_click_rate=0.05), []),
        (LabelEvents(max_query_words=5), []),
    ):
        events = [
            read_events(str(tmp_path), name, 0, SPLIT, config)[0] for name in ("items", "searches")
        ]
        pairs, _ = join_events(pa.concat_tables(events), SPLIT, config)
        assert pairs["label"].to_pylist() == expected


def test_events_of_each_table(tmp_path: Path) -> None:
    uri = str(tmp_path)
    items = [
        {"item_id": "a", "domain": "v", "tags": ["#Red", "??"], "published_at": day(3)},
        {"item_id": "b", "domain": "v", "tags": None, "published_at": None},
    ]
    edge = {"source_type": "item", "target_type": "tag", "weight": 1.0, "event_time": day(4)}
    edges = [
        {**edge, "source_id": "a", "relation": "tagged", "target_id": "Blue sky"},
        {**edge, "source_id": "a", "relation": "likes", "target_id": "u"},
        {**edge, "source_id": "u", "relation": "tagged", "target_id": "x", "source_type": "user"},
    ]
    click = {"user_id": "u", "query": "Wolf!", "item_id": "b", "clicked": True, "dwell_ms": 9000}
    searches = [
        {**click, "event_time": day(5)},
        {**click, "event_time": day(5), "dwell_ms": 10},
        {**click, "event_time": day(5), "dwell_ms": None},
        {**click, "event_time": day(5), "returned": True},
        {**click, "event_time": day(5), "clicked": False},
        {**click, "event_time": day(5), "item_id": None},
    ]
    data = {"items": (items, ITEMS), "edges": (edges, EDGES), "searches": (searches, SEARCHES)}
    for name, (rows, schema) in data.items():
        write_table(shard_file(uri, name, 7), pa.Table.from_pylist(rows, schema=schema))
    config = LabelConfig().events
    found = {name: read_events(uri, name, 7, SPLIT, config)[0].to_pylist() for name in data}
    assert [(r["item_id"], r["label"], r["shard"]) for r in found["items"]] == [
        ("a", None, 7),
        ("b", None, 7),
        ("a", "red", None),
    ]
    assert found["items"][0]["heldout"] is False
    assert found["items"][2]["event_time"] == day(3)
    assert [(r["item_id"], r["label"], r["source"]) for r in found["edges"]] == [
        ("a", "blue sky", "user tag")
    ]
    keys = ("item_id", "label", "source", "num_events", "num_shown", "event_time")
    assert [tuple(r[key] for key in keys) for r in found["searches"]] == [
        ("b", "wolf", "query", 1, 5, day(5))
    ]
    off = LabelEvents(tag_coefficient=0, user_tag_coefficient=0, query_coefficient=0)
    assert [len(read_events(uri, name, 7, SPLIT, off)[0]) for name in data] == [2, 0, 0]


def test_what_makes_no_event_is_counted_by_reason(tmp_path: Path) -> None:
    uri = str(tmp_path)
    items = [{"item_id": "a", "domain": "v", "tags": ["#Red", "??"]}]
    search = {"user_id": "u", "query": "wolf", "clicked": True, "dwell_ms": 9000}
    search |= {"item_id": "a", "event_time": day(5)}
    changed = [{}, {"item_id": None}, {"query": "?!"}, {"query": "a b c"}, {"dwell_ms": 1}]
    searches = [{**search, **change} for change in changed]
    comment = {"user_id": "u", "item_id": "a", "event_time": day(5), "likes": 3}
    comment |= {"comment_id": "c"}
    texts = ["the wolf runs far", "see www.wolf.com it is free", "so cool"]
    comments = [{**comment, "text": text} for text in texts]
    comments.append({**comment, "text": texts[0], "likes": 0})
    data = {"items": (items, ITEMS), "searches": (searches, SEARCHES)}
    for name, (rows, schema) in {**data, "comments": (comments, COMMENTS)}.items():
        write_table(shard_file(uri, name, 0), pa.Table.from_pylist(rows, schema=schema))
    config = LabelEvents(max_query_words=2, comment_coefficient=0.5, min_comment_likes=1)
    ledger = Ledger()
    tables = []
    for name in (*data, "comments"):
        table, read = read_events(uri, name, 0, SPLIT, config)
        tables.append(table)
        ledger = ledger.merge(read)
    assert {name: (s.rows_in, s.rows_out) for name, s in ledger.stages.items()} == {
        "read tags": (2, 1),
        "read searches": (5, 1),
        "read comments": (4, 1),
        "words of comments": (4, 3),
    }
    assert ledger.stages["read searches"].dropped == {
        "search that shows no item": 1,
        "nothing but signs": 1,
        "query with too many words": 1,
        "no visit, or one that did not stay": 1,
    }
    assert ledger.stages["read comments"].dropped == {
        "comment with too few likes": 1,
        "comment with a link": 1,
        "comment with too few words": 1,
    }


def test_events_lost_on_their_way_are_missed() -> None:
    rows = [{"item_id": "a", "shard": 0, "heldout": False}]
    rows += [{"item_id": "a", "label": x, "source": "tag", "num_events": 1} for x in "xyz"]
    block = pa.Table.from_pylist(rows, schema=EVENTS)
    _, ledger = join_events(block, SPLIT, LabelEvents())
    check_arrived(3, ledger)
    _, ledger = join_events(block.slice(0, 3), SPLIT, LabelEvents())
    with pytest.raises(LedgerError, match="3 label events were read and 2 came"):
        check_arrived(3, ledger)


def test_what_one_stage_of_labels_gives_the_next_takes() -> None:
    rows: list[dict[str, object]] = [{"item_id": "a", "shard": 0, "heldout": False}]
    tag = {"item_id": "a", "label": "red", "source": "tag", "num_events": 1}
    query = {**tag, "source": "query", "num_events": 5, "num_shown": 5}
    rows += [tag, {**tag, "source": "user tag"}, query, {**tag, "label": "blue"}]
    block = pa.Table.from_pylist(rows, schema=EVENTS)
    pairs, ledger = join_events(block, SPLIT, LabelEvents())
    stages = ledger.stages
    assert (stages["label events"].rows_in, stages["label events"].rows_out) == (8, 8)
    assert (stages["label pairs"].rows_in, stages["label pairs"].rows_out) == (8, 2)
    assert stages["label pairs"].dropped == {"counted with another event of its item and label": 6}
    assert pairs.num_rows == 2


def test_stages_of_labels_are_listed_as_rows_pass_them() -> None:
    names = ["label pairs", "read searches", "another", "label events", "read tags"]
    ledger = Ledger(num_problems=1)
    for name in names:
        ledger = ledger.record(name, 2, 2)
    told = in_order(ledger)
    assert list(told.stages) == [
        "read tags",
        "read searches",
        "label events",
        "label pairs",
        "another",
    ]
    assert told == ledger


def test_no_items_give_no_words() -> None:
    assert join_words(EVENTS.empty_table(), SPLIT).num_rows == 0
