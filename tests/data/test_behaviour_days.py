from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from rec.artifacts import join, read_manifest, verify
from rec.data import behaviour
from rec.data.behaviour import KIND, BehaviourError, build_behaviour, read_ledger
from rec.data.behaviour_config import BehaviourConfig
from rec.data.edges import KINDS, EdgeConfig
from rec.data.logs import LogFiles
from rec.data.sequences import SequenceConfig
from rec.data.tasks import ShardError

pytestmark = pytest.mark.ray
START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 3
LATE = START + timedelta(days=30)
TABLES = ("sequences", "counts", "edges", "nodes")


def write_day(logs: Path, day: int, rows: int = 300) -> None:
    """Two files of one day, in two formats, with ties, duplicates and one bad row."""
    random = np.random.default_rng(day)
    times = [START + timedelta(days=day, minutes=int(m)) for m in random.integers(0, 1440, rows)]
    table = pa.table(
        {
            "user_id": [f"u{n}" for n in random.integers(0, 12, rows)],
            "item_id": [f"i{n}" for n in random.integers(0, 30, rows)],
            "event": [["click", "impression"][n] for n in random.integers(0, 2, rows)],
            "dwell_ms": pa.array([int(n) for n in random.integers(0, 9000, rows)]),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    folder = logs / "interactions" / f"day={(START + timedelta(days=day)).date()}"
    folder.mkdir(parents=True)
    pq.write_table(pa.concat_tables([table, table.slice(0, 20)]), folder / "a.parquet")
    lines = "".join(f"u{n},i{n},click,{times[n].isoformat()}\n" for n in range(20))
    (folder / "b.csv").write_text(f"user_id,item_id,event,event_time\n{lines}u1,,click,then\n")
    searches = logs / "searches" / folder.name
    searches.mkdir(parents=True)
    rows = [
        {"user": f"u{n % 5}", "query": f"Word {n % 4}", "item_id": f"i{n}", "clicked": n % 3 > 0}
        | {"event_time": times[n].timestamp()}
        for n in range(30)
    ]
    (searches / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comments = logs / "comments"
    comments.mkdir(exist_ok=True)
    lines = "".join(f"c{n},i{n},u{n},{times[n].isoformat()}\n" for n in range(10))
    name = f"{(START + timedelta(days=day)).date()}.csv"
    (comments / name).write_text(f"comment_id,item_id,user_id,event_time\n{lines}")
    items = pa.table(
        {"item_id": [f"i{n}" for n in range(30)], "tags": [["All", f"t{n % 7}"] for n in range(30)]}
    )
    (logs / "items").mkdir(exist_ok=True)
    pq.write_table(items, logs / "items" / "a.parquet")


def config(logs: Path) -> BehaviourConfig:
    day = r"day=(.{10})"
    columns = {"user_id": "user"}
    return BehaviourConfig(
        interactions=LogFiles(path=str(logs / "interactions"), day=day),
        searches=LogFiles(path=str(logs / "searches"), day=day, columns=columns, time_unit="s"),
        comments=LogFiles(path=str(logs / "comments"), day=r"(\d+)-(\d+)-(\d+)"),
        items=LogFiles(path=str(logs / "items")),
        sequences=SequenceConfig(max_length=15),
        edges=EdgeConfig(max_degree=20),
        num_buckets=3,
    )


def contents(out: str) -> dict[str, list[dict] | str]:
    """Every row of every table, by file, and the hashes of the graph's shards."""
    manifest = read_manifest(out, KIND)
    verify(out, manifest)
    return {
        name: pq.read_table(join(out, manifest.root, name)).to_pylist()
        if name.endswith(".parquet")
        else manifest.files[name].sha256
        for name in manifest.files
        if name.startswith((*TABLES, "graph"))
    }


def check_graph(out: str) -> None:
    """The shards hold the edges, node for node."""
    place = join(out, read_manifest(out, KIND).root)
    types = json.loads(Path(place, "graph.json").read_text())["types"]
    ids: dict[str, list[str]] = {name: [] for name in types}
    for shard in sorted(Path(place, "nodes").iterdir()):
        for row in pq.read_table(shard).to_pylist():
            ids[types[row["type"]]].append(row["id"])
    expected: dict[tuple[str, str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    for row in pq.read_table(join(place, "edges")).to_pylist():
        kind = row["source_type"], row["relation"], row["target_type"]
        expected[kind][row["source_id"], row["target_id"]] = row["weight"]
    assert set(expected) == set(KINDS)
    assert max(map(len, expected.values())) > 100
    for kind in KINDS:
        shards = sorted(Path(place, "graph", "-".join(kind)).iterdir())
        sources, targets = ids[kind.source_type], ids[kind.target_type]
        found, node = {}, 0
        for data in map(load_file, shards):
            assert data["first"].tolist() == [node]
            for begin, end in pairwise(data["indptr"].tolist()):
                for at in range(begin, end):
                    edge = sources[node], targets[data["indices"][at]]
                    found[edge] = data["weights"][at]
                node += 1
        assert node == len(sources) == len(set(sources))
        assert found == expected[kind]


def test_day_by_day_equals_all_at_once(ray_local: None, tmp_path: Path) -> None:
    logs, daily, whole = tmp_path / "logs", str(tmp_path / "daily"), str(tmp_path / "whole")
    for day in range(DAYS):
        write_day(logs, day)
        cutoff = START + timedelta(days=day + 1)
        built = build_behaviour(daily, config(logs), cutoff)
        again = build_behaviour(daily, config(logs), cutoff)
        assert again == built  # nothing new: nothing done
    build_behaviour(whole, config(logs), cutoff)
    assert contents(daily) == contents(whole)
    assert read_ledger(daily).stages == read_ledger(whole).stages
    assert len(contents(whole)) == 3 * len(TABLES) + 1 + 3 * len(KINDS)
    check_graph(whole)
    counts = read_ledger(whole).stages["read interactions"]
    assert counts.rows_in == DAYS * 341
    assert counts.dropped["item_id: empty"] == DAYS
    roots = [p for p in Path(daily).iterdir() if p.is_dir()]
    assert len(roots) == 2  # this version and the one before it


def test_what_cannot_be_extended_is_refused(ray_local: None, tmp_path: Path) -> None:
    logs, out = tmp_path / "logs", str(tmp_path / "out")
    write_day(logs, 1, rows=30)
    build_behaviour(out, config(logs), START + timedelta(days=1, hours=12))
    with pytest.raises(BehaviourError, match="later than the cut-off asked for"):
        build_behaviour(out, config(logs), START)
    with pytest.raises(BehaviourError, match="rows of days that were read were later"):
        build_behaviour(out, config(logs), LATE)
    other = config(logs).override(["sequences.max_length=3"])
    with pytest.raises(BehaviourError, match="max_length: 15 there, 3 now"):
        build_behaviour(out, other, LATE)
    build_behaviour(out, config(logs), LATE, overwrite=True)
    write_day(logs, 0, rows=30)
    with pytest.raises(BehaviourError, match="new day 2026-01-01, earlier than 2026-01-02"):
        build_behaviour(out, config(logs), LATE)
    (logs / "interactions" / "day=2026-01-02" / "c.jsonl").write_text("{}\n")
    (logs / "interactions" / "day=2026-01-01").rename(tmp_path / "away")
    with pytest.raises(BehaviourError, match="log of 2026-01-02 has other files"):
        build_behaviour(out, config(logs), LATE)


def test_a_killed_run_goes_on_and_no_row_is_there_twice(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, out, whole = tmp_path / "logs", str(tmp_path / "out"), str(tmp_path / "whole")
    for day in range(DAYS):
        write_day(logs, day)
    monkeypatch.setattr(behaviour, "TASK_BYTES", 1)  # a task a file
    build_behaviour(whole, config(logs), LATE)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(behaviour, "seal", stop)
        with pytest.raises(KeyboardInterrupt):
            build_behaviour(out, config(logs), LATE)
    (work,) = Path(out).glob("work-*/done/sequences")
    (work / "shard-00001.json").unlink()  # as if killed after a bucket's file, before its marker
    build_behaviour(out, config(logs), LATE)
    assert contents(out) == contents(whole)
    assert read_ledger(out).stages == read_ledger(whole).stages


def test_an_absent_column_stops_the_run_by_name(ray_local: None, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write_day(logs, 0, rows=30)
    bad = logs / "interactions" / "day=2026-01-01" / "z.parquet"
    pq.write_table(pa.table({"user_id": ["u1"]}), bad)
    with pytest.raises(ShardError, match=r"z\.parquet: column 'item_id' is missing"):
        build_behaviour(str(tmp_path / "out"), config(logs), LATE)
