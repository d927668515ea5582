"""Parquet files appear when they are whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from damage import damage
from pyarrow import fs as pafs

from rec.data.log_read import read_batches
from rec.data.logs import LogError, Piece
from rec.data.parquet import ParquetError, ParquetFile, read_table, write_table


def test_a_file_being_written_is_in_no_table(tmp_path: Path) -> None:
    rows = pa.table({"item_id": ["a", "b"]})
    write_table(f"{tmp_path}/items/shard-00000.parquet", rows)
    half = ParquetFile(f"{tmp_path}/items/shard-00001.parquet", rows.schema)
    half.write(rows)  # a killed worker gets no further
    assert len(list((tmp_path / "items").iterdir())) == 2
    assert pads.dataset(tmp_path / "items", format="parquet").count_rows() == 2
    half.__exit__(None, None, None)
    assert pads.dataset(tmp_path / "items", format="parquet").count_rows() == 4


def test_a_damaged_page_is_named_by_file_row_group_and_column(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.parquet"
    rows = pa.table({"item_id": [f"i{n}" for n in range(90)], "title": ["wolf"] * 90})
    pq.write_table(rows, path, row_group_size=30)
    damage(path, row_group=1, column="title")
    part = rf"{path}, row group 1, column 'title': cannot be read \(.+\); "
    with pytest.raises(ParquetError, match=f"{part}make the file again, or take it away"):
        read_table(str(path))
    assert read_table(str(path), ["item_id"]).num_rows == 90
    log = read_batches(pafs.LocalFileSystem(), Piece(str(path), None, 1), {"title": pa.string()})
    with pytest.raises(LogError, match=f"{part}replace the file, or remove it from the log"):
        list(log)
    path.write_bytes(b"cut short")
    with pytest.raises(ParquetError, match=rf"{path}: cannot be read \(.+\); make"):
        read_table(str(path))
    with pytest.raises(FileNotFoundError):
        read_table(str(tmp_path / "none.parquet"))
