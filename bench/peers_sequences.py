"""The query of bench.sequences in polars, DuckDB or PySpark; it imports nothing of this project.

    PYTHON bench/peers_sequences.py {polars,duckdb,pyspark} LOGS OUT CORES

Clicks and watches with a dwell of 3 s or more, a row a user, the latest 512 in order of time:
user_id, item_ids, event_times, weights.
"""

from __future__ import annotations

import sys

EVENTS = ("click", "watch")
MIN_DWELL_MS = 3000
MAX_LENGTH = 512


def polars(logs: str, out: str, cores: int) -> None:  # noqa: ARG001
    """Threads come from POLARS_MAX_THREADS."""
    import polars as pl  # pyright: ignore[reportMissingImports]

    latest = {"item_id": "item_ids", "event_time": "event_times", "value": "weights"}
    (
        pl.scan_parquet(f"{logs}/*.parquet")
        .filter(pl.col("event").is_in(EVENTS) & (pl.col("dwell_ms") >= MIN_DWELL_MS))
        .select("user_id", *latest)
        .group_by("user_id")
        .agg(pl.col(c).sort_by("event_time").tail(MAX_LENGTH).alias(n) for c, n in latest.items())
        .sink_parquet(f"{out}/part-0.parquet", compression="snappy", mkdir=True, engine="streaming")
    )


def duckdb(logs: str, out: str, cores: int) -> None:
    """Grouped lists, sorted and cut."""
    import os

    import duckdb as db  # pyright: ignore[reportMissingImports]

    os.makedirs(out)
    columns = {"item_id": "item_ids", "event_time": "event_times", "value": "weights"}
    lists = ", ".join(
        f"list({column} ORDER BY event_time)[-{MAX_LENGTH}:] AS {name}"
        for column, name in columns.items()
    )
    connection = db.connect()
    connection.execute(f"SET threads = {cores}; SET TimeZone = 'UTC'")
    connection.execute(
        f"COPY (SELECT user_id, {lists} FROM read_parquet('{logs}/*.parquet') "
        f"WHERE event IN {EVENTS} AND dwell_ms >= {MIN_DWELL_MS} GROUP BY user_id) "
        f"TO '{out}/part-0.parquet' (FORMAT parquet, COMPRESSION snappy)"
    )


def pyspark(logs: str, out: str, cores: int) -> None:
    """Structs collected, sorted and cut."""
    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]
    from pyspark.sql import functions as sf  # pyright: ignore[reportMissingImports]

    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.driver.memory", "8g")
        .config("spark.sql.shuffle.partitions", str(8 * cores))
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    rows = spark.read.parquet(logs)
    rows = rows.where(sf.col("event").isin(*EVENTS) & (sf.col("dwell_ms") >= MIN_DWELL_MS))
    every = sf.array_sort(sf.collect_list(sf.struct("event_time", "item_id", "value")))
    start = sf.greatest(sf.size("s") - MAX_LENGTH + 1, sf.lit(1))
    (
        rows.groupBy("user_id")
        .agg(every.alias("s"))
        .withColumn("s", sf.slice("s", start, MAX_LENGTH))
        .select(
            "user_id",
            sf.col("s.item_id").alias("item_ids"),
            sf.col("s.event_time").alias("event_times"),
            sf.col("s.value").alias("weights"),
        )
        .write.parquet(out, compression="snappy")
    )
    spark.stop()


if __name__ == "__main__":
    engine, logs, out, cores = sys.argv[1:]
    {"polars": polars, "duckdb": duckdb, "pyspark": pyspark}[engine](logs, out, int(cores))
