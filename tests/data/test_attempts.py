"""Files that kill the process which reads them are listed and left out, whatever it costs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from rec.data import media
from rec.data.attempts import MAX_TRIES, Attempt, AttemptError
from rec.data.ingest import write_shard
from rec.data.media import FATAL, MediaConfig, decode_file
from rec.data.parquet import read_table
from rec.data.tables import shard_file
from rec.data.tasks import with_markers
from rec.sources import FolderSource


@pytest.mark.ray
def test_files_that_kill_their_worker_are_listed_and_all_others_read(
    ray_local: None, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    good = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
    for n in range(8):
        (folder / f"{n}.jpg").write_bytes(b"deadly" if n in (2, 5) else good)
    lines = [f"i{n},story,{n}.jpg" for n in range(8)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,files", *lines]))
    source = FolderSource(path=str(folder), num_shards=1)

    def deadly(data: bytes, config: MediaConfig) -> media.Decoded:
        if data == b"deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_file(data, config)

    def work(index: int, attempt: Attempt) -> dict[str, object]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(media, "decode_file", deadly)
            return write_shard(source, source.shards()[index], out, MediaConfig(), attempt)

    (summary,) = with_markers(work, str(tmp_path / "state"), range(1))
    problems = read_table(shard_file(out, "problems", 0)).to_pylist()
    assert [(Path(row["place"]).name, row["reason"]) for row in problems] == [
        ("2.jpg", FATAL),
        ("5.jpg", FATAL),
    ]
    rows = read_table(shard_file(out, "media", 0), ["item_id"])
    assert rows.column("item_id").to_pylist() == ["i0", "i1", "i3", "i4", "i6", "i7"]
    assert summary["sizes"]["items"][0] == 8


def test_only_deaths_of_one_run_are_blamed_on_what_was_worked_on(tmp_path: Path) -> None:
    state = str(tmp_path)
    Attempt(state, 0, "first").at("a")  # the first try keeps no notes
    Attempt(state, 0, "first").at("b")
    assert Attempt(state, 0, "second").fatal == []  # the job was ended, not its worker
    Attempt(state, 0, "second").at("c")
    attempt = Attempt(state, 0, "second")
    assert attempt.fatal == ["c"]
    assert Attempt(state, 0, "third").fatal == ["c"]  # what is known stays known
    attempt.done()
    assert Attempt(state, 0, "second").fatal == []
    for _ in range(MAX_TRIES - 1):
        Attempt(state, 0, "second")
    with pytest.raises(AttemptError, match="shard 0 ended its worker process"):
        Attempt(state, 0, "second")
