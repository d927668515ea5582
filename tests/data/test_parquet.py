"""Parquet files appear when they are whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from rec.data.parquet import ParquetFile, write_table


def test_a_file_being_written_is_in_no_table(tmp_path: Path) -> None:
    rows = pa.table({"item_id": ["a", "b"]})
    write_table(f"{tmp_path}/items/shard-00000.parquet", rows)
    half = ParquetFile(f"{tmp_path}/items/shard-00001.parquet", rows.schema)
    half.write(rows)  # a killed worker gets no further
    assert len(list((tmp_path / "items").iterdir())) == 2
    assert pads.dataset(tmp_path / "items", format="parquet").count_rows() == 2
    half.__exit__(None, None, None)
    assert pads.dataset(tmp_path / "items", format="parquet").count_rows() == 4
