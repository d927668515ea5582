"""Work by shards: an error of one ends the rest in order."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from rec import artifacts
from rec.artifacts import describe, write_atomic
from rec.data import tasks
from rec.data.attempts import MAX_TRIES, Attempt
from rec.data.tasks import ShardError, hash_files, map_shards, with_markers
from rec.schema import SchemaError

pytestmark = pytest.mark.ray


def test_an_error_of_a_shard_kills_no_worker_of_the_others(ray_local: None, tmp_path: Path) -> None:
    def work(index: int) -> dict[str, int]:
        if index:
            (tmp_path / f"{os.getpid()}").touch()
            time.sleep(2)  # so that it runs when the error arrives
            return {"index": index}
        while not list(tmp_path.iterdir()):
            time.sleep(0.01)
        raise SchemaError("wrong")

    with pytest.raises(ShardError, match="SchemaError: wrong"):
        list(map_shards(work, range(3)))
    busy = [int(path.name) for path in tmp_path.iterdir()]
    time.sleep(3)
    assert busy
    assert all(Path(f"/proc/{pid}").exists() for pid in busy)


def test_a_worker_that_dies_once_is_replaced(ray_local: None, tmp_path: Path) -> None:
    def work(index: int, _: Attempt) -> dict[str, int]:
        died = tmp_path / "died"
        if index == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"index": index}

    done = tmp_path / "done"
    found = with_markers(work, str(done), range(2))
    assert sorted(summary["index"] for summary in found) == [0, 1]
    assert sorted(path.name for path in done.iterdir()) == ["shard-00000.json", "shard-00001.json"]


def test_a_shard_that_always_ends_its_worker_ends_the_job_by_name(
    ray_local: None, tmp_path: Path
) -> None:
    def work(index: int, _: Attempt) -> dict[str, int]:
        if index == 1:
            with (tmp_path / "tries").open("a") as file:
                file.write(".")
            os.kill(os.getpid(), signal.SIGKILL)
        return {"index": index}

    with pytest.raises(ShardError, match=r"done: shard 1 ended its worker process"):
        list(with_markers(work, str(tmp_path / "done"), range(2)))
    assert len((tmp_path / "tries").read_text()) == MAX_TRIES


def test_tasks_hash_what_the_driver_would(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "deep/b", "deep/c", "left.tmp"):
        write_atomic(f"{tmp_path}/v/{name}", name.encode() * 9)
    plain = describe(tmp_path, "v", "tables")
    assert hash_files(f"{tmp_path}/v") == {}  # so little that the driver does it
    monkeypatch.setattr(tasks, "_HASHED_AT_ONCE", 10)
    found = hash_files(f"{tmp_path}/v")
    assert found == plain.files
    assert set(found) == {"a", "deep/b", "deep/c"}
    monkeypatch.setattr(artifacts, "file_entry", None)  # nothing is left for it to read
    assert describe(tmp_path, "v", "tables", hashed=found).version == plain.version
