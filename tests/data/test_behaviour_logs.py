"""Whole runs on small logs, without Ray: what a task does is the same in a loop."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs

from rec.artifacts import filesystem, join, read_manifest, verify, write_atomic
from rec.data import behaviour
from rec.data.behaviour import KIND, BehaviourError, build_behaviour, read_ledger, read_state
from rec.data.behaviour_config import BehaviourConfig
from rec.data.edges import EdgeConfig
from rec.data.log_rows import Filters, day_of, day_start, micros
from rec.data.logs import LogError, LogFiles
from rec.data.parquet import read_table
from rec.data.sequences import SequenceConfig

START = datetime(2026, 1, 1, tzinfo=UTC)
LATE = START + timedelta(days=99)
Event = tuple[int, int, str, str, int | None]  # day, minute, user, item, dwell


def in_a_loop(
    work: Callable[[int], dict[str, object]], indices: Sequence[int], *_: object
) -> Iterator[dict[str, object]]:
    return (work(index) for index in indices)


@pytest.fixture(autouse=True)
def no_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rec.data.tasks.map_shards", in_a_loop)
        yield


def write_log(folder: str, table: str, day: int, rows: list[dict[str, object]]) -> None:
    name = f"{(START + timedelta(days=day)).date()}.jsonl"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(join(folder, table, name), lines.encode())


def interactions(found: list[Event], day: int) -> list[dict[str, object]]:
    return [
        {
            "user_id": user,
            "item_id": item,
            "event": "click",
            "dwell_ms": dwell,
            "event_time": (START + timedelta(days=d, minutes=minute)).isoformat(),
        }
        for d, minute, user, item, dwell in found
        if d == day
    ]


def config(logs: str, **more: object) -> BehaviourConfig:
    day = r"(\d+)-(\d+)-(\d+)"
    settings = {
        "interactions": LogFiles(path=join(logs, "interactions"), day=day),
        "filters": Filters(max_events_a_day=6),
        "sequences": SequenceConfig(max_length=4),
        "edges": EdgeConfig(max_degree=2, window=2),
        "num_buckets": 2,
    }
    return BehaviourConfig.model_validate({**settings, **more})


def contents(out: str) -> dict[str, object]:
    manifest = read_manifest(out, KIND)
    verify(out, manifest)
    names = [name for name in manifest.files if "problems/" not in name and name != "ledger.json"]
    return {
        name: read_table(join(out, manifest.root, name)).to_pylist()
        if name.endswith(".parquet")
        else manifest.files[name].sha256
        for name in names
    }


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 1450),  # the last ten minutes are of another day than their file
            st.sampled_from(["u", "v", "w", ""]),
            st.sampled_from("abcd"),
            st.sampled_from([100, 9000, None]),
        ),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=12, deadline=None)
@example([(0, 1439, "u", "a", None), (1, 0, "u", "b", 9000)])  # no return: midnight is between
def test_day_by_day_equals_all_at_once(found: list[Event]) -> None:
    filters = Filters(max_events_a_day=6, min_gap_ms=3_600_000)
    with tempfile.TemporaryDirectory() as folder:
        logs, daily, whole = (join(folder, name) for name in ("logs", "daily", "whole"))
        for day in range(3):
            rows = interactions(found, day)
            if rows:
                write_log(logs, "interactions", day, rows)
                build_behaviour(daily, config(logs, filters=filters), LATE)
        build_behaviour(whole, config(logs, filters=filters), LATE)
        assert contents(daily) == contents(whole)
        assert problems(daily) == problems(whole)
        assert len(problems(whole)) == sum(user == "" for _, _, user, _, _ in found)
        ledger = read_ledger(whole)
        assert read_ledger(daily).stages == ledger.stages
        assert ledger.stages["read interactions"].rows_in == len(found)
        through = ["read interactions", "filter interactions", "sequences"]
        counts = [ledger.stages[name] for name in through if name in ledger.stages]
        held = sum(len(r["item_ids"]) for r in sequences(whole))
        lost = sum(sum(stage.dropped.values()) for stage in counts)
        assert len(found) == held + lost


def rows_of(out: str, table: str) -> list[dict]:
    manifest = read_manifest(out, KIND)
    names = [name for name in manifest.files if name.startswith(f"{table}/")]
    return [r for name in names for r in read_table(join(out, manifest.root, name)).to_pylist()]


def sequences(out: str) -> list[dict]:
    return rows_of(out, "sequences")


def edges(out: str) -> list[dict]:
    return rows_of(out, "edges")


def problems(out: str) -> list[tuple[str, int, str]]:
    return sorted(tuple(row.values()) for row in rows_of(out, "problems"))


def test_a_duplicated_day_changes_nothing_but_the_ledger(tmp_path: Path) -> None:
    rows = interactions([(0, 10 * n, "u", f"i{n}", 9000) for n in range(5)], 0)
    logs, out, clean = (str(tmp_path / name) for name in ("logs", "out", "clean"))
    write_log(logs, "interactions", 0, rows)
    settings = config(logs)  # twice five rows are more than its limit of six a day
    build_behaviour(clean, settings, LATE)
    write_log(logs, "interactions", 1, rows)  # delivered again as another day
    write_log(logs, "interactions/again", 0, rows)  # and within the day
    build_behaviour(out, settings, LATE)
    assert sequences(out) == sequences(clean)
    assert edges(out) == edges(clean) != []
    stages = read_ledger(out).stages
    assert stages["read interactions"].dropped == {"of another day than its file": 5}
    assert stages["filter interactions"].dropped == {"duplicate": 5}


def test_what_a_killed_worker_left_aside_is_not_in_the_next_day_s_list(tmp_path: Path) -> None:
    logs, out = str(tmp_path / "logs"), str(tmp_path / "out")
    for day in range(2):
        write_log(logs, "interactions", day, interactions([(day, 0, "", "a", 9000)], day))
        root = build_behaviour(out, config(logs), LATE).root
        aside = Path(out, root, "problems", "shard-00001.parquet.0123.tmp")
        aside.write_bytes(b"PAR1")
    assert len(problems(out)) == 2


def test_nothing_after_the_cut_off_gets_in(tmp_path: Path) -> None:
    logs, out = str(tmp_path / "logs"), str(tmp_path / "out")
    found = [(0, 60 * n, "u", f"i{n}", 9000) for n in range(5)]
    write_log(logs, "interactions", 0, interactions(found, 0))
    build_behaviour(out, config(logs), START + timedelta(hours=2))
    (row,) = sequences(out)
    assert row["item_ids"] == ["i0", "i1", "i2"]
    assert read_ledger(out).stages["read interactions"].dropped == {"after the cut-off": 2}
    assert {r["target_id"] for r in edges(out)} <= {"i0", "i1", "i2"}


def test_a_tag_on_a_third_of_items_and_a_popular_item_are_cut_and_counted(tmp_path: Path) -> None:
    logs, out = str(tmp_path / "logs"), str(tmp_path / "out")
    found = [(0, n, f"u{n}", "hit", 9000) for n in range(60)]
    found += [(0, n, f"u{n}", f"i{n}", 9000) for n in range(60)]
    write_log(logs, "interactions", 0, interactions(found, 0))
    ids = ["hit", *(f"i{n}" for n in range(60))]
    tags = [["all"] if n % 3 == 0 else [f"t{n}", "all"] for n in range(61)]
    (tmp_path / "logs" / "items").mkdir()
    twice = pa.table({"item_id": ["hit", *ids], "tags": [["old"], *tags]})
    pq.write_table(twice, tmp_path / "logs/items/a.parquet")
    items = LogFiles(path=join(logs, "items"))
    build_behaviour(out, config(logs, items=items, edges=EdgeConfig(max_degree=5)), LATE)
    written = edges(out)
    by_source: dict[tuple[str, str], int] = {}
    for row in written:
        key = row["source_id"], row["relation"]
        by_source[key] = by_source.get(key, 0) + 1
    assert max(by_source.values()) == 5
    assert by_source["hit", "co_watched"] == 5
    stages = read_ledger(out).stages
    assert stages["edges"].rows_out == len(written)
    cut = [stages[name].dropped["beyond the node's strongest"] for name in ("count edges", "edges")]
    assert stages["count edges"].rows_in == len(written) + sum(cut)
    assert stages["read items"].rows_out == stages["items"].rows_in == 62
    assert stages["items"].dropped == {"given again later": 1}
    assert stages["item tags"].rows_in == sum(map(len, tags))
    likes = {r["source_id"] for r in written if r["relation"] == "prefers"}
    assert likes == {f"u{n}" for n in range(60)}


def test_the_cut_off_walks_over_days_that_are_there_already(tmp_path: Path) -> None:
    logs, walked, whole = (str(tmp_path / name) for name in ("logs", "walked", "whole"))
    found = [(day, 60 * n, f"u{n}", f"i{n}", 9000) for day in range(3) for n in range(4)]
    for day in range(3):
        write_log(logs, "interactions", day, interactions(found, day))
    with pytest.raises(BehaviourError, match="no day of interactions begins before 2026-01-01"):
        build_behaviour(walked, config(logs), START)
    for day in range(3):
        manifest = build_behaviour(walked, config(logs), START + timedelta(days=day + 1))
        assert len(manifest.metrics["state"]["days"]["interactions"]) == day + 1
    build_behaviour(whole, config(logs), START + timedelta(days=3))
    assert contents(walked) == contents(whole)
    assert read_ledger(walked).stages == read_ledger(whole).stages
    (tmp_path / "walked" / "work-left").mkdir()  # as by a run killed between seal and tidying
    roots = {manifest.root, manifest.metrics["extends"], "manifest.json"}
    assert build_behaviour(walked, config(logs), START + timedelta(days=3)) == manifest
    assert {path.name for path in (tmp_path / "walked").iterdir()} == roots
    # a later cut-off brings no row, and is the one that is published from now on
    later = build_behaviour(walked, config(logs), START + timedelta(days=5))
    assert (later.version, later.root) == (manifest.version, manifest.root)
    assert read_state(read_manifest(walked)).cutoff == START + timedelta(days=5)
    with pytest.raises(BehaviourError, match="later than the cut-off asked for"):
        build_behaviour(walked, config(logs), START + timedelta(days=4))


def test_a_day_that_is_replaced_by_one_of_its_size_is_noticed(tmp_path: Path) -> None:
    logs, out = str(tmp_path / "logs"), str(tmp_path / "out")
    write_log(logs, "interactions", 0, interactions([(0, 5, "u", "a", 9000)], 0))
    build_behaviour(out, config(logs), LATE)
    write_log(logs, "interactions", 0, interactions([(0, 5, "u", "b", 9000)], 0))
    with pytest.raises(BehaviourError, match="2026-01-01 has files that were written again since"):
        build_behaviour(out, config(logs), LATE)
    build_behaviour(out, config(logs), LATE, overwrite=True)
    assert [row["item_ids"] for row in sequences(out)] == [["b"]]


def test_days_begin_by_the_log_s_clock() -> None:
    day = date(2026, 1, 2)
    assert day_start(day, LogFiles()) == micros(START + timedelta(days=1))
    west = LogFiles(utc_offset_hours=-2)
    assert day_start(day, west) == micros(START + timedelta(days=1, hours=2))
    times = np.array([day_start(day, west) - 1, day_start(day, west)])
    assert np.diff(day_of(times, west)).tolist() == [1]


def test_items_published_after_the_cut_off_have_no_tags_yet(tmp_path: Path) -> None:
    logs, out = str(tmp_path / "logs"), str(tmp_path / "out")
    write_log(logs, "interactions", 0, interactions([(0, 5, "u", "i0", 9000)], 0))
    published = [None, START + timedelta(hours=1), START + timedelta(days=2)]
    table = pa.table({"item_id": ["i0", "i1", "i2"], "tags": [["a"], ["b"], ["c"]]})
    (tmp_path / "logs" / "items").mkdir()
    times = pa.array(published, pa.timestamp("us", "UTC"))
    pq.write_table(table.append_column("published_at", times), tmp_path / "logs/items/a.parquet")
    settings = config(logs, items=LogFiles(path=join(logs, "items")))
    build_behaviour(out, settings, START + timedelta(days=1))
    assert {r["target_id"] for r in edges(out) if r["relation"] == "tagged"} == {"a", "b"}
    assert read_ledger(out).stages["read items"].dropped == {"after the cut-off": 1}
    build_behaviour(out, settings, LATE)  # no new day, but an item that is out by now
    assert {r["target_id"] for r in edges(out) if r["relation"] == "tagged"} == {"a", "b", "c"}
    assert read_ledger(out).stages["read items"].dropped == {}


def test_logs_that_outgrow_their_buckets_have_them_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behaviour, "_BUCKET_BYTES_EDGES", 1500)
    logs, daily, whole = (str(tmp_path / name) for name in ("logs", "daily", "whole"))
    settings = config(logs, num_buckets=None, filters=Filters())
    grown = []
    for day, rows in enumerate((8, 8, 40)):
        found = [(day, 7 * n, f"u{n % 5}", f"i{n % 6}", 9000) for n in range(rows)]
        write_log(logs, "interactions", day, interactions(found, day))
        manifest = build_behaviour(daily, settings, LATE)
        grown.append(manifest.metrics["state"]["num_buckets"])
    assert grown == [1, 2, 8]
    build_behaviour(whole, settings, LATE)
    by_user = sorted(sequences(daily), key=lambda row: row["user_id"])
    assert by_user == sorted(sequences(whole), key=lambda row: row["user_id"])
    assert len({row["user_id"] for row in by_user}) == len(by_user) == 5
    assert sorted(map(str, edges(daily))) == sorted(map(str, edges(whole))) != []
    assert read_ledger(daily).stages["sequences"] == read_ledger(whole).stages["sequences"]


def test_on_s3_as_on_a_disk(tmp_path: Path, s3: str) -> None:
    found = [(n % 2, 9 * n, f"u{n % 3}", f"i{n % 7}", 9000) for n in range(30)]
    outs = []
    for base in (str(tmp_path), s3):
        logs, out = join(base, "logs"), join(base, "out")
        for day in range(2):
            write_log(logs, "interactions", day, interactions(found, day))
            build_behaviour(out, config(logs), LATE)
        outs.append(contents(out))
    assert outs[0] == outs[1]
    assert any(outs[0].values())
    files, path = filesystem(f"{s3}/out")
    left = sorted(info.base_name[:2] for info in files.get_file_info(pafs.FileSelector(path)))
    assert left == ["ma", "v-", "v-"]  # the manifest, this version and the one before it


def test_domains_are_sequences_of_their_own_day_by_day(tmp_path: Path) -> None:
    logs, out = str(tmp_path / "logs"), str(tmp_path / "out")
    domains = ["video", "product", "video", None]
    for day in range(2):
        found = [(day, 60 * n, "u", f"i{day}{n}", 9000) for n in range(4)]
        rows = interactions(found, day)
        write_log(
            logs,
            "interactions",
            day,
            [{**r, "domain": d} for r, d in zip(rows, domains, strict=True)],
        )
        build_behaviour(out, config(logs), LATE)
    assert [(row["user_id"], row["domain"], row["item_ids"]) for row in sequences(out)] == [
        ("u", "", ["i03", "i13"]),
        ("u", "product", ["i01", "i11"]),
        ("u", "video", ["i00", "i02", "i10", "i12"]),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.inter"])
def test_a_header_alone_is_no_log(tmp_path: Path, name: str) -> None:
    log, out = tmp_path / name, tmp_path / "out"
    header = ["user_id", "item_id", "event", "event_time"]
    log.write_text(("," if name.endswith("csv") else "\t").join(header) + "\n")
    settings = BehaviourConfig(interactions=LogFiles(path=str(log)))
    with pytest.raises(BehaviourError, match=f"{name}: no rows in its files so far"):
        build_behaviour(str(out), settings, LATE)
    assert not (out / "manifest.json").exists()
    with log.open("a") as stream:
        stream.write(("," if name.endswith("csv") else "\t").join(["u", "i", "click", "1"]) + "\n")
    build_behaviour(str(out), settings, LATE)
    assert [row["item_ids"] for row in sequences(str(out))] == [["i"]]


def test_lists_of_items_keep_their_order_and_tell_that_they_have_no_times(tmp_path: Path) -> None:
    path, out = tmp_path / "sequences.txt", str(tmp_path / "out")
    path.write_text("u c a b\nv a a\n")
    settings = BehaviourConfig(interactions=LogFiles(path=str(path)))
    manifest = build_behaviour(out, settings, LATE)
    assert not behaviour.read_state(manifest).timed
    found = {row["user_id"]: row["item_ids"] for row in sequences(out)}
    assert found == {"u": ["c", "a", "b"], "v": ["a", "a"]}
    path.write_text("u c a b\nu d\n")
    with pytest.raises(LogError, match="user 'u' is on two lines"):
        build_behaviour(str(tmp_path / "other"), settings, LATE)
