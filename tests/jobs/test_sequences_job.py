"""From a public file to batches, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import behaviour, sequences
from rec.artifacts import join, read_manifest
from rec.data.sequence_rows import KIND
from rec.data.stream import RowPass, open_rows
from rec.features.sequences import collate_sequences


@pytest.mark.ray
def test_a_file_of_ratings_becomes_batches(ray_local: None, tmp_path: Path) -> None:
    log, items = tmp_path / "toy.inter", tmp_path / "toy.item"
    events = [f"u{n % 5}\ti{n * 7 % 11}\t{n % 5 + 1}\t{86_400 * n}" for n in range(60)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    log.write_text("\n".join([header, *events]) + "\n")
    kinds = [f"i{n}\tdrama long{n % 2}" for n in range(12)]
    items.write_text("\n".join(["item_id:token\tgenre:token_seq", *kinds]) + "\n")
    out, rows = str(tmp_path / "behaviour"), str(tmp_path / "rows")
    flags = ["--logs", str(log), "--out", out, "--cutoff", "1970-03-01", "--set"]
    columns = 'interactions.columns={"event_time": "timestamp", "value": "rating"}'
    event = 'interactions.constants={"event": "rating"}'
    assert behaviour.main([*flags, columns, event, "interactions.time_unit=s"]) == 0
    flags = ["--behaviour", out, "--out", rows, "--items", str(items), "--cutoff", "1970-02-01"]
    settings = ['items.columns={"categories": "genre"}', "items.list_separator= "]
    flags += ["--set", *settings]
    assert sequences.main([*flags, "--test-cutoff", "1970-02-15"]) == 0
    metrics = read_manifest(rows, KIND).metrics
    assert metrics["train"] == {"rows": 5, "events": 32}  # at midnight of the cut-off still
    assert metrics["heldout"]["events"] == metrics["test"]["events"] == 14
    assert (metrics["num_items"], metrics["num_categories"], metrics["num_tags"]) == (12, 3, 0)
    held = RowPass(
        open_rows(rows, KIND, "heldout"), lambda t: collate_sequences(t, 3), batch_size=2
    )
    batches = list(held)
    assert sum(int(batch.target_mask.sum()) for batch in batches) == 14
    assert max(int(batch.item_index.max()) for batch in batches) < 12


def test_a_split_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--behaviour", str(tmp_path), "--out", join(str(tmp_path), "out")]
    with pytest.raises(SystemExit):
        sequences.main(flags)
    assert "one of the arguments --cutoff --leave-one-out is required" in capsys.readouterr().err
