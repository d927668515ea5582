"""What a new version has to show before and after it is served."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import nightly_canary
from jobs.nightly_canary import CanaryConfig, CanaryError, check_index, sample, swap
from rec import artifacts
from rec.client import Client, Found, Neighbours, RequestError
from rec.retrieval.build import build_index
from rec.schema import EMBEDDINGS

NEW = ("m2", "i2")


def publish(
    folder: Path, vectors: np.ndarray, first: int = 0, parts: int = 3, **counts: int
) -> str:
    place = folder / "t"
    place.mkdir(parents=True)
    ids = [f"i{n}" for n in range(first, first + len(vectors))]
    for number, rows in enumerate(np.array_split(np.arange(len(ids)), parts)):
        columns = [
            pa.array([ids[row] for row in rows], pa.string()),
            pa.array(np.zeros(len(rows), np.int32)),
            pa.array(np.ones(len(rows), np.float32)),
            pa.array(vectors[rows].tolist(), pa.list_(pa.float32())),
        ]
        table = pa.Table.from_arrays(columns, schema=EMBEDDINGS)
        pq.write_table(table, place / f"part-{number:05d}.parquet")
    metrics = {"num_rows": len(ids), **counts}
    artifacts.seal(folder, "t", "embedding-table", lineage={"encoder": "e"}, metrics=metrics)
    return str(folder)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def places(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """An index, the table it is made of, and the fresh part of that."""
    folder = tmp_path_factory.mktemp("canary")
    table = publish(folder / "table", vectors)
    fresh = publish(folder / "fresh", vectors[40:], first=40, parts=2)
    build_index(table, str(folder / "index"))
    return str(folder / "index"), table, fresh


def test_a_good_version_is_measured(places: tuple[str, str, str]) -> None:
    before = artifacts.read_manifest(places[0])
    found = check_index(*places, before, CanaryConfig())
    assert found == {"found of fresh": 1.0, "found of all": 1.0, "recall@10": 1.0}


def test_a_sample_is_of_all_files_and_no_more_than_there_is(places: tuple[str, str, str]) -> None:
    ids, found = sample(places[1], 9)
    assert len(ids) == len(found) == len(set(ids)) == 9
    assert {int(one[1:]) // 20 for one in ids} == {0, 1, 2}
    assert len(sample(places[2], 1000)[0]) == 20


def test_a_night_on_which_items_only_left_has_no_fresh_ones(
    places: tuple[str, str, str], vectors: np.ndarray, tmp_path: Path
) -> None:
    none = publish(tmp_path, vectors[:0], parts=1)
    assert sample(none, 9)[0] == []
    assert check_index(places[0], places[1], none, None, CanaryConfig()).keys() == {
        "found of all", "recall@10",
    }  # fmt: skip


def test_versions_that_lost_something_are_refused(
    places: tuple[str, str, str], vectors: np.ndarray, tmp_path: Path
) -> None:
    index, table, fresh = places
    more = publish(tmp_path / "more", np.concatenate([vectors, vectors]))
    with pytest.raises(CanaryError, match=r"60 vectors, .* holds 120"):
        check_index(index, more, fresh, None, CanaryConfig())
    last = publish(tmp_path / "last", np.concatenate([vectors, vectors[:16]]))
    with pytest.raises(CanaryError, match=r"16 of the 76 items .* left; max_left is 0\.2"):
        check_index(index, table, fresh, None, CanaryConfig(), last)
    assert check_index(index, table, fresh, None, CanaryConfig(max_left=0.25), last)
    other = publish(tmp_path / "other", -vectors[40:], first=40)
    with pytest.raises(CanaryError, match=r"of 20 items of .* nearest to their own"):
        check_index(index, table, other, None, CanaryConfig())
    manifest = artifacts.read_manifest(index)
    better = manifest.model_copy(update={"metrics": {"recall@10": 1.2}})
    with pytest.raises(CanaryError, match=r"recall@10 is 1\.0000, that of version"):
        check_index(index, table, fresh, better, CanaryConfig())


def test_items_that_left_are_not_made_up_for_by_new_ones(
    places: tuple[str, str, str], vectors: np.ndarray, tmp_path: Path
) -> None:
    index, table, fresh = places
    # as many as there were, none of them the same; on a night on which the encoder was trained
    others = publish(tmp_path / "others", vectors, first=60)
    with pytest.raises(CanaryError, match=r"60 of the 60 items .* left; max_left is 0\.2"):
        check_index(index, table, fresh, None, CanaryConfig(), others)
    most = publish(tmp_path / "most", vectors, first=12)
    assert check_index(index, table, fresh, None, CanaryConfig(), most)
    # on other nights the table itself tells
    told = publish(tmp_path / "told", vectors, left=13)
    with pytest.raises(CanaryError, match=r"13 of the 60 items .* left"):
        check_index(index, told, fresh, None, CanaryConfig(), table)
    for count in ({"left": 0}, {"carried": 60}):
        told = publish(tmp_path / "-".join(count), vectors, **count)
        assert check_index(index, told, fresh, None, CanaryConfig(), others)


def test_copies_of_one_item_are_all_found(vectors: np.ndarray, tmp_path: Path) -> None:
    table = publish(tmp_path / "table", np.repeat(vectors[:2], 30, axis=0))
    build_index(table, str(tmp_path / "index"))
    found = check_index(str(tmp_path / "index"), table, table, None, CanaryConfig())
    assert found["found of all"] == 1.0


class Service:
    """Answers as a service whose swap takes two looks."""

    def __init__(self, *, refuses: bool = False, loses: str = "", fails: str = "") -> None:
        self.refuses, self.loses, self.fails = refuses, loses, fails
        self.asked: list[str] = []
        self.looks = 0

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        self.asked.append(path)
        if path == self.fails:
            raise RequestError(503, "busy", "not now", "r")
        if path.endswith("rollback"):
            return {}
        self.looks += 1
        done = self.looks > 4 and not self.refuses
        model, index = NEW if done else ("m1", "i1")
        ended = {"done": False, "message": "no room"} if self.refuses and self.looks > 3 else None
        preparing = None if done or ended else {"model_version": "m2"}
        current = {"model_version": model, "index_version": index}
        return {"dim": 8, "current": current, "preparing": preparing, "last": ended}

    def knn(self, vectors: np.ndarray, k: int) -> None:
        assert vectors.shape == (1, 8)

    def knn_items(self, ids: list[str], **how: Any) -> Found:
        assert (how["model"], how["index"]) == NEW
        found = ["other"] if ids[0] == self.loses else ids
        return Found([Neighbours(found, np.array([0.5], np.float32))], *NEW)


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    read = artifacts.read_manifest

    def manifest(uri: str, kind: str | None = None) -> Any:
        if uri in ("encoder", "index"):
            return cast(Any, SimpleNamespace(version=NEW[uri == "index"]))
        return read(uri, kind)

    monkeypatch.setattr(nightly_canary, "read_manifest", manifest)
    monkeypatch.setattr(nightly_canary, "_STEP_S", 0.001)


def swapped(service: Service, config: CanaryConfig | None = None) -> dict[str, Any]:
    fresh = ["a", "b"]
    return swap(cast(Client, service), "encoder", "index", fresh, config or CanaryConfig())


def test_a_swap_is_waited_for() -> None:
    told = swapped(service := Service())
    assert told["current"]["index_version"] == "i2"
    assert "/v1/admin/rollback" not in service.asked


def test_a_service_that_does_not_swap_is_told_of() -> None:
    with pytest.raises(CanaryError, match="did not swap: no room"):
        swapped(Service(refuses=True))
    with pytest.raises(CanaryError, match="did not swap: 503 busy"):
        swapped(Service(fails="/healthz"))
    with pytest.raises(CanaryError, match=r"not swapped within 0\.001 s"):
        swapped(service := Service(), CanaryConfig(swap_s=0.001))
    assert "/v1/admin/rollback" not in service.asked


def test_a_service_that_lost_fresh_items_is_led_back() -> None:
    with pytest.raises(CanaryError, match="does not find b; it was led back"):
        swapped(service := Service(loses="b"))
    assert service.asked[-1] == "/v1/admin/rollback"
    with pytest.raises(CanaryError, match="could not be led back: 503"):
        swapped(Service(loses="b", fails="/v1/admin/rollback"))
