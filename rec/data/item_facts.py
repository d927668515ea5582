"""What a service filters items by, of all items that were ever delivered: of each as it was last.

An index takes it from one folder in which every item is once; deliveries of several days hold an
item again and again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pyarrow as pa

from rec import artifacts
from rec.artifacts import Manifest, join, read_manifest
from rec.data.budget import Budget
from rec.data.carried import ids_of, parts_of, row_groups, together, write_without
from rec.data.parquet import ParquetFile
from rec.data.tables import read_tables, shard_file
from rec.data.tasks import Summary, map_shards
from rec.schema import ITEMS

KIND = "item-facts"
FACTS = pa.schema([field for field in ITEMS if field.name not in ("title", "description")])
BUDGET = Budget(memory_gb=1.0)  # of a task: a row group, and the ids of a delivery


def carry_facts(tables_uri: str, out_uri: str, previous_uri: str | None) -> Manifest:
    """Publish the facts of the items in the tables at `tables_uri`, and of the facts at
    `previous_uri` those of all other items.

    Args:
        previous_uri: None: there are none, or all items are in the tables.

    Raises:
        IngestError, ArtifactError: the tables, or the facts before, are absent.
    """
    tables = read_tables(tables_uri)
    previous = None if previous_uri is None else read_manifest(previous_uri, KIND)
    new = [shard_file(tables_uri, "items", shard) for shard in range(tables.num_shards)]
    tasks: list[Callable[[str], dict[str, int]]] = [
        lambda target, place=place: _copy(place, target) for place in new
    ]
    if previous_uri is not None and previous is not None:
        for group in together(parts_of(previous_uri, previous)):
            tasks.append(lambda target, group=group: _carried(group, new, target))
    made_of = f"{tables.version} {previous.version if previous else ''}"
    root = f"f-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"

    def work(index: int) -> Summary:
        place = join(out_uri, root, f"part-{index:05d}.parquet")
        return {"index": index, **tasks[index](place)}

    total = {"delivered": 0, "carried": 0, "replaced": 0}
    for summary in map_shards(work, range(len(tasks)), BUDGET, "facts of items"):
        total = {name: number + summary.get(name, 0) for name, number in total.items()}
    return artifacts.seal(
        out_uri, root, KIND, lineage={"tables": tables.version}, metrics={**total}
    )


def _copy(place: str, target: str) -> dict[str, int]:
    with ParquetFile(target, FACTS) as file:
        for piece in row_groups(place, FACTS.names):
            file.write(piece)
    return {"delivered": file.num_rows}


def _carried(group: list[str], new: list[str], target: str) -> dict[str, int]:
    return write_without(group, "item_id", ids_of(new, "item_id"), FACTS, target)
