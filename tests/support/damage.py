"""Files as a bad disk or a broken copy leaves them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def damage(path: Path, *, row_group: int, column: str) -> None:
    """Overwrite the pages of one column of a Parquet file; its footer stays whole."""
    group = pq.read_metadata(path).row_group(row_group)
    chunks = [group.column(i) for i in range(group.num_columns)]
    (chunk,) = (one for one in chunks if one.path_in_schema.split(".")[0] == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
