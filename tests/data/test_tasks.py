"""Work by shards: an error of one ends the rest in order."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rec.data.tasks import ShardError, map_shards
from rec.schema import SchemaError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


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
