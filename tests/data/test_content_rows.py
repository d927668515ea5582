from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.artifacts import MANIFEST, open_artifact
from rec.config import Config
from rec.data.content_stages import CONTENT_ROWS
from rec.data.ingest import write_tables
from rec.data.labels import LabelConfig
from rec.data.ledger import Ledger
from rec.data.rows import RowsConfig, RowsError, build_rows
from rec.data.tables import IngestError, Tables, read_tables
from rec.data.tasks import ShardError
from rec.data.texts import TextConfig
from rec.features.content import ContentCollator, ContentInputs
from rec.features.text import TextTokenizer
from rec.schema import ITEMS, MEDIA, SEARCHES, check
from rec.sources.base import Shard, problem_table

pytestmark = pytest.mark.ray

START = datetime(2024, 1, 1, tzinfo=UTC)
NUM_ITEMS = 60
CONFIG = RowsConfig(
    text=TextConfig(vocab_size=200, max_tokens=16),
    labels=LabelConfig(min_items=2),
    heldout_fraction=0.2,
)


class TinySource(Config):
    """Item n is published on day n, tagged by n % 3; every tenth is empty; all is in code."""

    tables: ClassVar[tuple[str, ...]] = ("items", "media", "searches")
    gives_files: ClassVar[bool] = False
    kind: str = "tiny"
    num_shards: int = 3
    late_tag: str = "later"  # given to held-out items only
    fail_in: int | None = None

    def contents(self) -> str:
        return ""

    def shards(self) -> list[Shard]:
        return [Shard(i, self.num_shards) for i in range(self.num_shards)]

    def read(self, shard: Shard) -> Iterator[tuple[str, pa.Table]]:
        if shard.index == self.fail_in:
            items = pa.table({"item_id": ["a", None], "domain": ["film", "film"]})
            yield "items", check(items, "items", place="films.csv", first_row=1)
        numbers = range(*shard.bounds(NUM_ITEMS))
        yield "items", pa.Table.from_pylist([self._item(n) for n in numbers], schema=ITEMS)
        frames = [
            {
                "item_id": f"i{n}",
                "media_index": 0,
                "kind": "frame",
                "uri": f"{n}.png",
                "data": cv2.imencode(".png", np.full((8, 8, 3), n, np.uint8))[1].tobytes(),
            }
            for n in numbers
            if n % 10
        ]
        yield "media", pa.Table.from_pylist(frames, schema=MEDIA)
        yield "problems", problem_table([(f"{n}.png", None, "no such file") for n in numbers][:2])
        clicks = [
            {
                "user_id": "u",
                "query": "shared query",
                "item_id": f"i{(7 * n) % NUM_ITEMS}",
                "clicked": True,
                "dwell_ms": 60_000,
                "event_time": START + timedelta(days=n),
            }
            for n in numbers
            for _ in range(2)
        ]
        yield "searches", pa.Table.from_pylist(clicks, schema=SEARCHES)

    def _item(self, n: int) -> dict[str, Any]:
        empty = n % 10 == 0
        late = n >= 48
        return {
            "item_id": f"i{n}",
            "domain": "film",
            "title": None if empty else f"{['wolf', 'dragon', 'castle'][n % 3]} story",
            "description": None if empty else f"space opera {'unseen' if late else 'common'}",
            "tags": [f"#Topic-{n % 3}", self.late_tag if late else "early"],
            "published_at": START + timedelta(days=n),
        }


@pytest.fixture(scope="module")
def built(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ingest")
    write_tables(TinySource(), str(place / "tables"))  # type: ignore[arg-type]
    build_rows(str(place / "tables"), str(place / "rows"), CONFIG)
    return place


def read_side(root: Path, side: str) -> list[dict[str, Any]]:
    return [
        row for file in sorted((root / side).iterdir()) for row in pq.read_table(file).to_pylist()
    ]


def test_tables_hold_what_the_source_gave(built: Path) -> None:
    tables = read_tables(str(built / "tables"))
    assert {name: size.num_rows for name, size in tables.tables.items()} == {
        "items": 60,
        "media": 54,
        "media_index": 54,
        "searches": 120,
    }
    assert tables.num_problems == 6
    assert tables.problems[0] == "0.png: no such file"
    problems = pq.read_table(built / "tables" / "problems")
    assert problems.num_rows == 6
    for index in range(3):
        items, media = (
            pq.read_table(built / "tables" / name / f"shard-{index:05d}.parquet")["item_id"]
            for name in ("items", "media")
        )
        assert set(media.to_pylist()) <= set(items.to_pylist())


def test_every_item_is_a_row_or_dropped_with_a_reason(built: Path) -> None:
    manifest, root = open_artifact(str(built / "rows"), "content-rows")
    train, heldout = read_side(root, "train"), read_side(root, "heldout")
    ids = {row["item_id"] for row in train} | {row["item_id"] for row in heldout}
    assert ids == {f"i{n}" for n in range(NUM_ITEMS) if n % 10}
    assert len(train) + len(heldout) == 54
    ledger = Ledger.from_json((root / "ledger.json").read_text())
    assert ledger.stages["items to rows"].dropped == {"no text, frame or sound": 6}
    empty = [f"i{n}" for n in range(0, NUM_ITEMS, 10)]
    assert ledger.stages["drop empty"].dropped_ids == {"no text, frame or sound": tuple(empty)}
    listed = [
        row
        for file in sorted((root / "left_out").iterdir())
        for row in pq.read_table(file).to_pylist()
    ]
    assert listed == [{"item_id": x, "reason": "no text, frame or sound"} for x in empty]
    assert manifest.metrics["train"]["with_frames"] == len(train)
    schema = pq.read_schema(next((root / "train").iterdir()))
    assert schema.equals(CONTENT_ROWS)
    assert not list((built / "rows").glob("work-*"))


def test_what_one_stage_gives_out_the_next_takes_in(built: Path) -> None:
    _, root = open_artifact(str(built / "rows"), "content-rows")
    stages = Ledger.from_json((root / "ledger.json").read_text()).stages
    read = sum(stages[name].rows_out for name in ("read tags", "read searches"))
    assert read == stages["label events"].rows_in > stages["label events"].rows_out
    for one, two in (("label events", "label pairs"), ("label pairs", "item labels")):
        assert stages[one].rows_out == stages[two].rows_in
    rows = ["drop duplicates", "tokenise", "score terms", "add frames", "add sound"]
    rows += ["drop empty", "add labels"]
    for one, two in itertools.pairwise(rows):
        assert stages[one].rows_out == stages[two].rows_in


def test_the_split_is_by_time_and_shards_are_mixed(built: Path) -> None:
    manifest, root = open_artifact(str(built / "rows"), "content-rows")
    cutoff = datetime.fromisoformat(manifest.metrics["cutoff"])
    train, heldout = read_side(root, "train"), read_side(root, "heldout")
    assert max(row["published_at"] for row in train) <= cutoff
    assert min(row["published_at"] for row in heldout) > cutoff
    assert {row["item_id"] for row in heldout} == {f"i{n}" for n in range(48, 60) if n % 10}
    order = [
        int(r["item_id"][1:])
        for r in pq.read_table(root / "train" / "shard-00000.parquet").to_pylist()
    ]
    assert order != sorted(order)


def test_nothing_is_fitted_on_what_is_held_out(built: Path) -> None:
    _, root = open_artifact(str(built / "rows"), "content-rows")
    labels = pq.read_table(root / "labels.parquet").to_pylist()
    assert "later" not in {row["label"] for row in labels}
    assert {row["label"]: row["num_items"] for row in labels}["early"] == 48
    terms = {
        row["term"]: row["num_items"] for row in pq.read_table(root / "terms.parquet").to_pylist()
    }
    assert "unseen" not in terms
    assert terms["common"] == 43
    vocabulary = json.loads((root / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "common" in vocabulary
    assert "unseen" not in vocabulary


def test_labels_reach_their_items_on_both_sides(built: Path) -> None:
    _, root = open_artifact(str(built / "rows"), "content-rows")
    names = {
        row["label_id"]: row["label"] for row in pq.read_table(root / "labels.parquet").to_pylist()
    }
    for side, common in (("train", {"early"}), ("heldout", set())):
        for row in read_side(root, side):
            found = {names[i] for i in row["label_ids"]}
            expected = {f"topic {int(row['item_id'][1:]) % 3}", *common}
            assert found - {"shared query"} == expected
            assert len(row["label_weights"]) == len(row["label_ids"])
    weights = [w for row in read_side(root, "train") for w in row["label_weights"]]
    assert 0.5 < float(np.mean(weights)) < 1.5


def test_key_terms_score_over_filler(built: Path) -> None:
    _, root = open_artifact(str(built / "rows"), "content-rows")
    tokenizer = TextTokenizer(root / "tokenizer", 16)
    for row in read_side(root, "train"):
        tokens = [tokenizer.backend.id_to_token(i) for i in row["token_ids"]]
        scores = dict(zip(tokens, row["term_scores"], strict=True))
        key = max(scores, key=lambda token: scores[token])
        assert key in {"wolf", "dragon", "castle"}
        assert scores["[CLS]"] == scores["[SEP]"] == -np.inf


def test_rows_become_batches(built: Path) -> None:
    _, root = open_artifact(str(built / "rows"), "content-rows")
    table = pq.read_table(root / "train" / "shard-00001.parquet")
    batch = ContentCollator(ContentInputs(max_tokens=16, height=8, width=8))(table)
    assert len(batch) == table.num_rows
    first = int(table["item_id"][0].as_py()[1:])
    assert batch.frames[0, 0, 0, 0, 0] == first
    assert batch.frame_mask.all()


def test_a_second_run_keeps_what_is_there(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(built, place)
    before = (place / "rows" / MANIFEST).read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in place.rglob("shard-*.parquet")}
    write_tables(TinySource(), str(place / "tables"))  # type: ignore[arg-type]
    build_rows(str(place / "tables"), str(place / "rows"), CONFIG)
    assert (place / "rows" / MANIFEST).read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in place.rglob("shard-*.parquet")} == stamps


def test_an_unfinished_run_goes_on(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "tables"
    shutil.copytree(built / "tables", place)
    (place / "state" / "shard-00001.json").unlink()
    (place / "items" / "shard-00001.parquet").unlink()
    (place / "ledger.json").unlink()
    kept = (place / "items" / "shard-00000.parquet").stat().st_mtime_ns
    tables = write_tables(TinySource(), str(place))  # type: ignore[arg-type]
    assert tables.tables == read_tables(str(built / "tables")).tables
    assert (place / "items" / "shard-00000.parquet").stat().st_mtime_ns == kept


def test_another_config_is_refused_unless_told_to_overwrite(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(built, place)
    other: Any = TinySource(late_tag="other")
    with pytest.raises(IngestError, match=r"late_tag: 'later' there, 'other' now.*overwrite"):
        write_tables(other, str(place / "tables"))
    changed: Tables = write_tables(other, str(place / "tables"), overwrite=True)
    assert changed.version != read_tables(str(built / "tables")).version
    with pytest.raises(RowsError, match=r"rows of other tables or another config.*overwrite"):
        build_rows(str(place / "tables"), str(place / "rows"), CONFIG)
    with pytest.raises(IngestError, match=r"ledger\.json: not found; run jobs\.ingest"):
        build_rows(str(place / "nowhere"), str(place / "rows"), CONFIG)


def test_a_bad_shard_says_what_is_wrong_with_its_data(ray_local: None, tmp_path: Path) -> None:
    source: Any = TinySource(fail_in=1)
    expected = r"SchemaError: films\.csv, column 'item_id', row 2: empty, expected string"
    with pytest.raises(ShardError, match=expected):
        write_tables(source, str(tmp_path))
    assert not (tmp_path / "ledger.json").exists()
    # of the shards that it interrupts something may be left, which no reader takes for a table
    assert not list(tmp_path.rglob(".shard-00001*.tmp"))
