"""What the pipeline finds out of users before it makes anything of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import pipeline_users
from jobs.pipeline_users import Spread, somebody, split, spread
from rec.artifacts import publish
from rec.config import ConfigError
from rec.data.tables import Tables, shard_file
from rec.schema import INTERACTIONS, ITEMS, SEQUENCE_ITEMS, SEQUENCE_ROWS

LAST = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)


def in_a_loop(work: Callable[[int], Any], indices: Sequence[int], *_: object) -> Iterator[Any]:
    return (work(index) for index in indices)


def _write(folder: Path, shards: list[list[tuple[str, datetime]]]) -> str:
    for number, events in enumerate(shards):
        place = Path(shard_file(str(folder), "interactions", number))
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"user_id": "u", "item_id": "i", "domain": domain, "event": "watch", "event_time": time}
            for domain, time in events
        ]
        pq.write_table(pa.Table.from_pylist(rows, INTERACTIONS), place)
    told = Tables(version="1", kind="x", source={}, num_shards=len(shards), tables={},
                  num_problems=0, problems=())  # fmt: skip
    (folder / "ledger.json").write_text(told.to_json())
    return str(folder)


def test_the_domain_of_most_interactions_and_when_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_users, "map_shards", in_a_loop)
    early = LAST - timedelta(days=3)
    shards = [[("video", early), ("product", LAST)], [], [("product", early), ("video", early)]]
    shards.append([("video", early)])
    found = spread(_write(tmp_path / "some", shards))
    assert found == Spread("video", LAST + timedelta(microseconds=1))
    with pytest.raises(ConfigError, match="holds no interactions"):
        spread(_write(tmp_path / "none", [[], []]))


def test_validation_ends_half_way_to_the_last_interaction(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "rows").write_text("some")

    def rows(cutoff: datetime | None) -> str:
        told = {"cutoff": cutoff and cutoff.isoformat()}
        publish(tmp_path / "staged", tmp_path / "rows", "content-rows", metrics=told)
        return str(tmp_path / "rows")

    hour = timedelta(hours=1)
    assert split(rows(LAST), LAST + 4 * hour) == (LAST, LAST + 2 * hour)
    assert split(rows(None), LAST) == (None, None)
    for end in (LAST - hour, LAST, LAST + timedelta(microseconds=1)):
        with pytest.raises(ConfigError, match=r"give an earlier recipe\.rows\.cutoff, or") as told:
            split(rows(LAST), end)
        assert f"{LAST.isoformat()}, but interactions end {end.isoformat()}" in str(told.value)


def test_somebody_is_a_user_of_the_test_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staged = tmp_path / "staged"
    sides = {"train": {"long": [0, 1, 2, 0, 1]}, "test": {"a": [0], "b": [1, 0, 2, 3], "c": [2]}}
    for side, users in sides.items():
        (staged / side).mkdir(parents=True)
        rows = [
            {"user_id": u, "item_index": i, "weights": [], "event_times": [], "num_targets": 1}
            for u, i in users.items()
        ]
        none = pa.Table.from_pylist([], SEQUENCE_ROWS)
        pq.write_table(none, staged / side / "shard-00000.parquet")
        pq.write_table(pa.Table.from_pylist(rows, SEQUENCE_ROWS), staged / side / "shard-1.parquet")
    blank = {"num_events": 1, "tag_index": [], "category_index": [], "uploader_index": -1}
    ids = ["w", "x", "y", "z"]
    table = pa.Table.from_pylist([{"item_id": i, **blank} for i in ids], SEQUENCE_ITEMS)
    pq.write_table(table, staged / "items.parquet")
    publish(staged, tmp_path / "users" / "sequences", "sequence-rows")
    titles = [{"item_id": i, "domain": "film", "title": f"The {i}"} for i in ids[:3]]
    (tmp_path / "tables" / "items").mkdir(parents=True)
    shown = pa.Table.from_pylist(titles, ITEMS)
    pq.write_table(shown, tmp_path / "tables" / "items" / "shard-00000.parquet")
    assert somebody(str(tmp_path)) == "b"
    told = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    assert told == [["z"], ["y", "The y"], ["w", "The w"]]
