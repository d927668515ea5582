from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from rec.data.logs import LogError, LogFiles, Piece, changed, check_names, is_timed, list_days, pack


def test_days_by_folder_and_by_name(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["u"]})
    for name in ("day=2026-01-03/b", "day=2026-01-02/b", "day=2026-01-02/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "day=2026-01-03/c.parquet.0123.tmp").write_text("left by a killed worker")
    days = list_days(LogFiles(path=str(tmp_path), day=r"day=(\d{4}-\d\d-\d\d)"))
    assert list(days) == ["2026-01-02", "2026-01-03"]
    assert [p.path.rsplit("/", 1)[-1] for p in days["2026-01-02"].pieces] == [
        "a.parquet",
        "b.parquet",
    ]
    assert len(days["2026-01-03"].pieces) == 1
    assert days["2026-01-03"].pieces[0].day == date(2026, 1, 3)
    three = list_days(LogFiles(path=str(tmp_path), day=r"day=(\d+)-(\d+)-(\d+)"))
    assert three == days
    assert list(list_days(LogFiles(path=str(tmp_path)))) == ["all"]
    before = days["2026-01-02"].fingerprint
    pacsv.write_csv(table, tmp_path / "day=2026-01-02" / "c.csv")
    again = list_days(LogFiles(path=str(tmp_path), day=r"day=(\d{8}|\d{4}-\d\d-\d\d)"))
    assert again["2026-01-02"].fingerprint != before


@pytest.mark.parametrize("where", ["columns", "constants"])
def test_columns_that_a_table_has_not_are_refused(where: str) -> None:
    check_names(LogFiles.model_validate({where: {"item_id": "video", "text": "x"}}), "comments")
    message = rf"logs/a: {where} name 'itm_id'.* of interactions there are: user_id, item_id, "
    wrong = {"path": "logs/a", where: {"item_id": "video", "itm_id": "x"}}
    files = LogFiles.model_validate(wrong)
    with pytest.raises(LogError, match=message):
        check_names(files, "interactions")


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="not a folder"):
        list_days(LogFiles(path=str(tmp_path / "none")))
    with pytest.raises(LogError, match="no log files"):
        list_days(LogFiles(path=str(tmp_path)))
    (tmp_path / "2026-13-01.jsonl").write_text("{}")
    with pytest.raises(LogError, match="month"):
        list_days(LogFiles(path=str(tmp_path), day=r"(\d+-\d+-\d+)"))
    with pytest.raises(LogError, match="no day in this name"):
        list_days(LogFiles(path=str(tmp_path), day=r"day=(.*)"))
    for name in ("log.log", "log.parquet.gz"):
        (tmp_path / name).write_text("x")
        with pytest.raises(LogError, match=rf"{name}: expected a name that ends in \.parquet"):
            list_days(LogFiles(path=str(tmp_path)))
        (tmp_path / name).unlink()
    with pytest.raises(ValidationError, match="one group"):
        LogFiles(day="(a)(b)")


def test_one_file_is_a_log(tmp_path: Path) -> None:
    (tmp_path / "toy.inter").write_text("user_id:token\n")
    (tmp_path / "toy.user").write_text("of no use")
    days = list_days(LogFiles(path=str(tmp_path / "toy.inter")))
    assert [piece.path for piece in days["all"].pieces] == [str(tmp_path / "toy.inter")]
    assert is_timed(days)
    with pytest.raises(LogError, match=r"toy\.user: expected a name that ends in"):
        list_days(LogFiles(path=str(tmp_path / "toy.user")))


def test_lists_without_times_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "2026-01-02.txt").write_text("u i")
    assert not is_timed(list_days(LogFiles(path=str(tmp_path))))
    with pytest.raises(LogError, match="tell no times, but `day` is"):
        list_days(LogFiles(path=str(tmp_path), day="(.{10})"))
    (tmp_path / "b.csv").write_text("user_id\nu")
    with pytest.raises(LogError, match=r"tell no times, but .*b\.csv does; move them apart"):
        list_days(LogFiles(path=str(tmp_path)))


def test_fingerprints_say_what_they_differ_in() -> None:
    assert changed("a-1", "a-1") is None
    assert changed("a", "a-1") is None  # published before times were noted
    assert "other files" in (changed("a-1", "b-2") or "")
    assert "written again" in (changed("a-1", "a-2") or "")


def _pieces(*sizes: int) -> list[Piece]:
    return [Piece(f"{n:02d}.csv", None, size << 20) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "num_cpus", "shares"),
    [
        ([21] * 20, 2, [5, 5, 5, 5]),  # not 6, 6, 6, 2
        ([21] * 5, 2, [2, 3]),  # one task would have held all
        ([8] * 16, 16, [1] * 16),
        ([1] * 8, 16, [4, 4]),  # too small for a task each
        ([300, 1], 1, [1, 1]),
        ([1], 16, [1]),
    ],
)
def test_tasks_are_given_equal_shares(sizes: list[int], num_cpus: int, shares: list[int]) -> None:
    pieces = _pieces(*sizes)
    tasks = pack(LogFiles(), pieces, 128 << 20, num_cpus)
    assert [len(task) for task in tasks] == shares
    assert [piece for task in tasks for piece in task] == pieces
