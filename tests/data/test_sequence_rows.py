"""Sequence rows agree with plain loops over users, and know nothing of the future."""

from __future__ import annotations

import fractions
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from rec.artifacts import join, read_bytes, read_manifest, seal, verify, write_atomic
from rec.data import behaviour, sequence_phases, sequences
from rec.data.behaviour_config import State
from rec.data.ledger import Ledger
from rec.data.logs import LogError, LogFiles
from rec.data.parquet import read_table, write_table
from rec.data.sequence_rows import (
    CONTENT,
    KIND,
    SequenceRowsConfig,
    SequenceRowsError,
    build_sequence_rows,
    read_ledger,
)
from rec.data.shuffle import bucket_of, hash_strings
from rec.data.tables import shard_file
from rec.data.tasks import ShardError
from rec.schema import EMBEDDINGS, SEQUENCE_ITEMS, SEQUENCE_ROWS, SEQUENCES, TIMESTAMP

START = datetime(2026, 1, 1, tzinfo=UTC)
CUT, TEST_CUT, END = (START + timedelta(days=day) for day in (10, 20, 30))
BY_TIME = SequenceRowsConfig(cutoff=CUT, test_cutoff=TEST_CUT)
NUM_BUCKETS = 2
Users = dict[str, list[tuple[str, int]]]  # user -> (item, day), in order


def in_a_loop(work: object, indices: Sequence[int], *_: object) -> Iterator[dict[str, object]]:
    assert callable(work)
    return (work(index) for index in indices)


@pytest.fixture(autouse=True)
def no_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rec.data.tasks.map_shards", in_a_loop)
        yield


def publish(
    place: str, users: Users, *, timed: bool = True, domain: str = "", num_cut: int = 0
) -> str:
    """A behaviour artifact; an event's weight is its day, plus one."""
    write_sequences(place, users, domain)
    ledger = Ledger().record("sequences", num_cut + 1, 1, {sequences.CUT: num_cut})
    write_atomic(join(place, "v", "ledger.json"), ledger.to_json().encode())
    state = State(num_buckets=NUM_BUCKETS, num_bytes=1, cutoff=END, timed=timed, days={})
    seal(place, "v", behaviour.KIND, metrics={"state": state.model_dump(mode="json")})
    return place


def write_sequences(place: str, users: Users, domain: str) -> None:
    rows = [
        {
            "user_id": user,
            "domain": domain,
            "item_ids": [item for item, _ in events],
            "event_times": [START + timedelta(days=day) for _, day in events],
            "weights": [day + 1 for _, day in events],
        }
        for user, events in sorted(users.items())
    ]
    table = pa.Table.from_pylist(rows, schema=SEQUENCES)
    bucket = bucket_of(hash_strings(table.column("user_id")), NUM_BUCKETS)
    for index in range(NUM_BUCKETS):
        old = shard_file(join(place, "v"), "sequences", index)
        part = table.filter(pa.array(bucket == index))
        if Path(old).exists():
            part = pa.concat_tables([read_table(old), part])
        write_table(old, part)


class Row(NamedTuple):
    items: list[str]
    weights: list[float]
    num_targets: int


def rows_of(out: str, side: str) -> dict[str, Row]:
    manifest = read_manifest(out, KIND)
    verify(out, manifest)
    ids = items_of(out).column("item_id").to_pylist()
    found: dict[str, Row] = {}
    for index in range(NUM_BUCKETS):
        table = read_table(shard_file(join(out, manifest.root), side, index))
        assert table.schema.equals(SEQUENCE_ROWS)
        for row in table.to_pylist():
            items = [ids[i] for i in row["item_index"]]
            days = [(time - START.timestamp() * 1e6) / 86.4e9 for time in row["event_times"]]
            assert row["weights"] == [day + 1 for day in days]
            assert row["user_id"] not in found
            found[row["user_id"]] = Row(items, row["weights"], row["num_targets"])
    return found


def items_of(out: str) -> pa.Table:
    table = read_table(join(out, read_manifest(out, KIND).root, "items.parquet"))
    assert table.schema.equals(SEQUENCE_ITEMS)
    return table


def plain_sides(
    users: Users, config: SequenceRowsConfig
) -> tuple[dict[str, dict[str, Row]], Counter[str]]:
    """The same by loops."""
    parts: dict[str, list[list[tuple[str, int]]]] = {}
    for user, events in users.items():
        if config.cutoff is None:
            cut = len(events) if len(events) < 3 else len(events) - 2
            parts[user] = [events[:cut], events[cut : cut + 1], events[cut + 1 :]]
        else:
            parts[user] = [
                [e for e in events if low < e[1] <= high]
                for low, high in ((-1, 10), (10, 20), (20, 99))
            ]
    fine = {user for user, p in parts.items() if len(p[0]) >= config.min_user_events}
    counts = Counter(item for user in fine for item, _ in parts[user][0])
    counts = Counter({i: n for i, n in counts.items() if n >= config.min_item_events})
    sides: dict[str, dict[str, Row]] = {"train": {}, "heldout": {}, "test": {}}

    def last(events: list[tuple[str, int]]) -> int:
        return math.ceil(fractions.Fraction(str(config.target_share)) * len(events))

    def add(side: str, user: str, events: list[tuple[str, int]], targets: int) -> None:
        items, weights = [item for item, _ in events], [float(day + 1) for _, day in events]
        sides[side][user] = Row(items, weights, targets)

    for user, (early, middle, late) in parts.items():
        known = [event for event in early if event[0] in counts]
        if user in fine and known:
            add("train", user, known, 0)
        if middle:
            add("heldout", user, known + middle, last(middle))
        if late:
            add("test", user, known + middle + late, last(late))
    return sides, counts


@st.composite
def users_strategy(draw: st.DrawFn) -> Users:
    events = st.tuples(st.sampled_from("abcdef"), st.integers(0, 29))
    number = draw(st.integers(1, 6))
    lists = [draw(st.lists(events, min_size=1, max_size=8)) for _ in range(number)]
    return {f"u{n}": sorted(found, key=lambda e: e[1]) for n, found in enumerate(lists)}


@given(
    users=users_strategy(),
    by_time=st.booleans(),
    min_item=st.integers(1, 3),
    min_user=st.integers(1, 3),
    share=st.sampled_from([1.0, 0.2, 0.6]),
)
@settings(max_examples=40)
def test_rows_agree_with_plain_loops(
    users: Users, by_time: bool, min_item: int, min_user: int, share: float
) -> None:
    config = BY_TIME if by_time else SequenceRowsConfig()
    config = config.override([f"min_item_events={min_item}", f"min_user_events={min_user}"])
    config = config.override([f"target_share={share}"])
    sides, counts = plain_sides(users, config)
    with tempfile.TemporaryDirectory() as folder:
        source, out = publish(join(folder, "behaviour"), users), join(folder, "out")
        if not sides["train"]:
            with pytest.raises(SequenceRowsError, match="no training rows"):
                build_sequence_rows(source, out, config)
            return
        metrics = build_sequence_rows(source, out, config).metrics
        for side, expected in sides.items():
            assert rows_of(out, side) == expected
            assert metrics[side]["rows"] == len(expected)
        items = items_of(out).to_pylist()
        every = {item for events in users.values() for item, _ in events}
        order = sorted(every, key=lambda item: (-counts[item], item))
        assert [(r["item_id"], r["num_events"]) for r in items] == [(i, counts[i]) for i in order]
        stages = read_ledger(out).stages
        num_events = sum(map(len, users.values()))
        assert stages["sequences"].rows_in == stages["events to rows"].rows_in == num_events
        held = [row for side in ("heldout", "test") for row in sides[side].values()]
        trained = sum(len(row.items) for row in sides["train"].values())
        assert metrics["train"]["events"] == trained == sum(counts.values())
        num_out = trained + sum(row.num_targets for row in held)
        assert stages["events to rows"].rows_out == num_out
        new = [row for row in sides["test"].values() if len(row.items) == row.num_targets]
        assert metrics["test"]["rows_without_history"] == len(new)
        cold = [
            item
            for row in sides["test"].values()
            for item in row.items[-row.num_targets :]
            if not counts[item]
        ]
        assert metrics["test"]["events_of_cold_items"] == len(cold)


@given(users=users_strategy(), by_time=st.booleans(), data=st.data())
@settings(max_examples=25)
def test_the_future_changes_no_training_row(
    users: Users, by_time: bool, data: st.DataObject
) -> None:
    config = BY_TIME if by_time else SequenceRowsConfig()
    changed: Users = {}
    later = st.lists(st.tuples(st.sampled_from("abxyz"), st.integers(11, 29)), max_size=6)
    for user, events in users.items():
        if by_time:
            new = sorted(data.draw(later), key=lambda e: e[1])
            changed[user] = [event for event in events if event[1] <= 10] + new
        elif len(events) >= 3:
            new = [(item, events[-1][1]) for item in data.draw(st.permutations("abxyz"))[:2]]
            changed[user] = events[:-2] + new
        else:
            changed[user] = events
    if by_time:
        changed["new"] = [("z", 15), ("a", 25)]
    before, after = plain_sides(users, config)[0], plain_sides(changed, config)[0]
    assert before["train"] == after["train"]
    if not before["train"]:
        return
    with tempfile.TemporaryDirectory() as folder:
        trained = []
        for name, found in (("one", users), ("two", changed)):
            source, out = publish(join(folder, f"{name}-behaviour"), found), join(folder, name)
            build_sequence_rows(source, out, config)
            root = join(out, read_manifest(out, KIND).root)
            # the very rows, with their positions and the order of both users and items
            trained.append([read_table(shard_file(root, "train", i)) for i in range(NUM_BUCKETS)])
            items = items_of(out)
            trained[-1].append(items.filter(pa.array(items["num_events"].to_numpy() > 0)))
        assert all(one.equals(two) for one, two in zip(*trained, strict=True))


USERS: Users = {
    "u": [("a", 1), ("b", 2), ("a", 12), ("c", 25)],
    "v": [("a", 3), ("c", 26)],
    "w": [("d", 25)],
}


def write_items(place: Path) -> LogFiles:
    rows = [
        {"item_id": "a", "tags": ["old"]},
        {"item_id": "a", "tags": ["#Sci-Fi", "sci fi", "!!", "rare"], "uploader_id": "k"},
        {"item_id": "b", "tags": ["sci_fi"], "categories": ["Drama"], "uploader_id": "k"},
        {"item_id": "c", "tags": ["sci-fi", "new"], "categories": ["Drama", "New"]},
        {"item_id": "e", "tags": ["new"], "published_at": CUT},
        {"item_id": "late", "published_at": END + timedelta(days=1)},
    ]
    place.mkdir()
    schema = pa.schema(
        [
            ("item_id", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("categories", pa.list_(pa.string())),
            ("uploader_id", pa.string()),
            ("published_at", TIMESTAMP),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), place / "items.parquet")
    return LogFiles(path=str(place))


def names_of(out: str, kind: str) -> list[str]:
    root = join(out, read_manifest(out, KIND).root)
    return read_table(join(root, f"{kind}.parquet")).column("name").to_pylist()


def test_what_is_told_of_items_is_fitted_on_those_trained_on(tmp_path: Path) -> None:
    source, out = publish(str(tmp_path / "behaviour"), USERS), str(tmp_path / "out")
    config = BY_TIME.model_copy(update={"items": write_items(tmp_path / "items")})
    metrics = build_sequence_rows(source, out, config).metrics
    rows = {row.pop("item_id"): row for row in items_of(out).to_pylist()}
    assert list(rows) == ["a", "b", "c", "d", "e"]  # e from the table alone, d from events alone
    assert [rows[item]["num_events"] for item in rows] == [2, 1, 0, 0, 0]
    assert names_of(out, "tags") == ["sci fi"]  # "new" is of no item that is trained on
    assert names_of(out, "categories") == []  # Drama of one alone
    assert names_of(out, "uploaders") == ["k"]
    assert [rows[item]["tag_index"] for item in rows] == [[0], [0], [0], [], []]
    assert [rows[item]["uploader_index"] for item in rows] == [0, 0, -1, -1, -1]
    assert rows["e"]["published_at"] == CUT
    assert (metrics["num_items"], metrics["num_trained_items"], metrics["content_dim"]) == (5, 2, 0)
    stages = read_ledger(out).stages
    assert stages["item table"].dropped == {"item not in it": 1}
    assert stages["items"].dropped == {"given again later": 1}
    assert stages["read items"].dropped == {"after the cut-off": 1}
    assert stages["items trained on"].dropped == {
        "no event on the training side": 2,
        "no event": 1,
    }
    one = config.override(["min_label_items=1"])
    build_sequence_rows(source, str(tmp_path / "one"), one)
    assert names_of(str(tmp_path / "one"), "tags") == ["sci fi", "rare"]


@pytest.mark.parametrize("number", [0, 7])
def test_events_that_later_ones_pushed_out_are_told(tmp_path: Path, number: int) -> None:
    source = publish(str(tmp_path / "behaviour"), USERS, num_cut=number)
    manifest = build_sequence_rows(source, str(tmp_path / "out"), BY_TIME)
    assert manifest.metrics["events_cut_before"] == number


def write_vectors(place: Path, ids: list[str], cutoff: datetime | None = None) -> str:
    vectors = [[3.0, 4.0 * n, 0.0] for n in range(len(ids))]
    if "zero" in ids:
        vectors[ids.index("zero")] = [0.0, 0.0, 0.0]
    weights = [0.0 if item == "inactive" else 1.0 for item in ids]
    columns = [ids, [0] * len(ids), weights, vectors]
    (place / "e").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_arrays(
            [pa.array(c, f.type) for c, f in zip(columns, EMBEDDINGS, strict=True)],
            schema=EMBEDDINGS,
        ),
        place / "e" / "part-00000.parquet",
    )
    told = cutoff.isoformat() if cutoff else None
    seal(str(place), "e", CONTENT, metrics={"cutoff": told})
    return str(place)


def test_content_vectors_are_of_unit_length_and_bring_items(tmp_path: Path) -> None:
    source, out = publish(str(tmp_path / "behaviour"), USERS), str(tmp_path / "out")
    content = write_vectors(tmp_path / "content", ["a", "c", "x", "zero", "inactive"], CUT)
    manifest = build_sequence_rows(source, out, BY_TIME, content_uri=content)
    assert manifest.metrics["content_dim"] == 3
    assert manifest.metrics["content_cutoff"] == CUT.isoformat()
    found = load(read_bytes(join(out, manifest.root, "content.safetensors")))
    ids = items_of(out).column("item_id").to_pylist()
    assert ids == ["a", "b", "c", "d", "x", "zero"]
    assert found["mask"].tolist() == [True, False, True, False, True, False]
    np.testing.assert_allclose(found["vectors"][2], [0.6, 0.8, 0.0], rtol=1e-6)
    assert not found["vectors"][[1, 3, 5]].any()
    told = read_ledger(out).stages["content vectors"]
    assert (told.rows_in, told.rows_out) == (5, 3)
    assert told.dropped == {"not active (weight 0)": 1, "zero or not finite": 1}
    twice = write_vectors(tmp_path / "twice", ["a", "a"])
    with pytest.raises((ShardError, ValueError), match="one vector an item"):
        build_sequence_rows(source, str(tmp_path / "b"), BY_TIME, content_uri=twice)


def test_features_newer_than_the_cut_off_are_refused(tmp_path: Path) -> None:
    source, out = publish(str(tmp_path / "behaviour"), USERS), str(tmp_path / "out")
    newer = write_vectors(tmp_path / "newer", ["a"], CUT + timedelta(microseconds=1))
    with pytest.raises(SequenceRowsError, match=r"newer: its vectors know .* but training ends"):
        build_sequence_rows(source, out, BY_TIME, content_uri=newer)
    build_sequence_rows(source, out, SequenceRowsConfig(), content_uri=newer)
    newest = write_vectors(tmp_path / "newest", ["a"], END + timedelta(days=1))
    with pytest.raises(SequenceRowsError, match="newest: its vectors know"):
        build_sequence_rows(source, out, SequenceRowsConfig(), content_uri=newest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutoff": CUT}, "needs both"),
        ({"cutoff": TEST_CUT, "test_cutoff": CUT}, "each be later than the one before"),
        ({"cutoff": CUT, "test_cutoff": END}, "each be later than the one before"),
        ({"domain": "film"}, r"no training rows \(domains there are, with events: '' 7\)"),
    ],
)
def test_settings_that_fit_no_behaviour_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = publish(str(tmp_path / "behaviour"), USERS)
    config = SequenceRowsConfig.model_validate(settings)
    with pytest.raises(SequenceRowsError, match=message):
        build_sequence_rows(source, str(tmp_path / "out"), config)


def test_order_alone_cannot_be_cut_by_time(tmp_path: Path) -> None:
    source, out = publish(str(tmp_path / "behaviour"), USERS, timed=False), str(tmp_path / "out")
    with pytest.raises(SequenceRowsError, match="the order of events and no times"):
        build_sequence_rows(source, out, BY_TIME)
    metrics = build_sequence_rows(source, out, SequenceRowsConfig()).metrics
    assert (metrics["timed"], metrics["split"], metrics["cutoff"]) == (False, "leave-one-out", None)
    assert set(rows_of(out, "test")) == {"u"}
    assert read_ledger(out).stages["test rows"].dropped == {"fewer than 3 events": 2}


def test_domains_are_kept_apart(tmp_path: Path) -> None:
    place, out = str(tmp_path / "behaviour"), str(tmp_path / "out")
    write_sequences(place, {"u": [("p", 4), ("q", 5), ("r", 6)]}, "product")
    publish(place, USERS, domain="film")
    with pytest.raises(SequenceRowsError, match=r"'film' 7, 'product' 3\), which are kept apart"):
        build_sequence_rows(place, out, SequenceRowsConfig())
    metrics = build_sequence_rows(place, out, SequenceRowsConfig(domain="product")).metrics
    assert metrics["domain"] == "product"
    assert rows_of(out, "test") == {"u": Row(["p", "q", "r"], [5.0, 6.0, 7.0], 1)}
    assert read_ledger(out).stages["sequences"].dropped == {"of another domain": 7}


def test_a_run_that_was_killed_goes_on_and_other_rows_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = publish(str(tmp_path / "behaviour"), USERS), str(tmp_path / "out")
    whole = build_sequence_rows(source, str(tmp_path / "whole"), BY_TIME)
    write = sequence_phases.write_rows
    with monkeypatch.context() as patch:

        def killed(plan: sequence_phases.Plan, index: int, num_trained: int) -> dict[str, object]:
            if index == 1:
                raise KeyboardInterrupt
            return write(plan, index, num_trained)

        patch.setattr(sequence_phases, "write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            build_sequence_rows(source, out, BY_TIME)
    with monkeypatch.context() as patch:
        patch.setattr(sequence_phases, "number_items", None)  # done already
        manifest = build_sequence_rows(source, out, BY_TIME)
    assert manifest.version == whole.version
    assert manifest.metrics == whole.metrics
    Path(out, "work-left").mkdir()  # as by a run killed between seal and tidying
    assert build_sequence_rows(source, out, BY_TIME) == manifest
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", manifest.root}
    with pytest.raises(SequenceRowsError, match=r"holds other rows .*min_item_events: 1 there, 2"):
        build_sequence_rows(source, out, BY_TIME.override(["min_item_events=2"]))
    other = build_sequence_rows(source, out, SequenceRowsConfig(), overwrite=True)
    assert other.metrics["split"] == "leave-one-out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", other.root}


def test_an_items_table_that_is_none_is_refused(tmp_path: Path) -> None:
    source, out = publish(str(tmp_path / "behaviour"), USERS), str(tmp_path / "out")
    config = SequenceRowsConfig(items=LogFiles(path=str(tmp_path / "items")))
    with pytest.raises(LogError, match="not a folder"):
        build_sequence_rows(source, out, config)
