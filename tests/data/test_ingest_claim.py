"""Who may write tables to a folder: one source and config, once something is finished there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rec.data import ingest
from rec.data.tables import IngestError, changes, read_tables
from rec.data.tasks import marker
from rec.sources import FolderSource


def test_changes_names_the_fields_that_differ_with_both_values() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "e": 5}
    new = {"a": 1, "b": {"c": 4, "d": 3}, "f": 6}
    assert changes(old, new) == ("b.c: 2 there, 4 now; e: 5 there, None now; f: None there, 6 now")
    assert changes(old, old) == ""


def test_a_ledger_that_is_cut_short_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text('{"version": "a", "kind"')
    with pytest.raises(
        IngestError, match=r"ledger\.json: not the ledger of tables \(Invalid"
    ) as told:
        read_tables(str(tmp_path))
    assert "\n" not in str(told.value)


def test_a_folder_is_claimed_by_finished_shards_not_by_a_failed_start(tmp_path: Path) -> None:
    uri = str(tmp_path)
    ingest._claim(uri, "one", {"path": "nope"}, False)
    ingest._claim(uri, "two", {"path": "right"}, False)  # the first found nothing to read
    Path(marker(f"{uri}/state", 0)).write_text("{}")
    ingest._claim(uri, "two", {"path": "right"}, False)
    with pytest.raises(IngestError, match=r"path: 'right' there, 'other' now.*--overwrite"):
        ingest._claim(uri, "three", {"path": "other"}, False)
    ingest._claim(uri, "three", {"path": "other"}, True)
    assert not Path(marker(f"{uri}/state", 0)).exists()


@pytest.mark.parametrize(("path", "out"), [("a", "a/run/tables"), ("a/", "a"), ("a/b/..", "a/c")])
def test_tables_are_kept_out_of_the_folder_they_are_made_from(
    tmp_path: Path, path: str, out: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(IngestError, match=r"lies in the source's folder .*choose one outside"):
        ingest.write_tables(FolderSource(path=f"{tmp_path}/{path}"), f"{tmp_path}/{out}")
    assert not (tmp_path / "a" / "run").exists()


@pytest.mark.parametrize(("path", "out"), [("a", "ab/tables"), ("a", "tables")])
def test_tables_beside_the_folder_are_welcome(path: str, out: str) -> None:
    ingest._keep_apart(out, path)
