"""Work a shard at a time on Ray: big bytes stay in the task, small summaries come back.

A task reads and writes its own files, so neither the object store nor the driver grows with the
data. What a task did is known by a marker that it writes last; finished tasks are not run again.
These are Ray's plain tasks: where no rows pass between them, Ray Data would add two actors, each a
process that imports for seconds, and a start of its own to every phase.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import ray
from pyarrow import fs as pafs

from rec.artifacts import (
    FileEntry,
    file_entry,
    file_sizes,
    filesystem,
    join,
    read_bytes,
    write_atomic,
)
from rec.data.attempts import Attempt
from rec.data.budget import GB, Budget, check_room, granted

if TYPE_CHECKING:  # what only works by shards starts without it
    import ray.data

Summary = dict[str, Any]
_ERROR = "error"
_MARKER = re.compile(r"shard-\d+\.json")
# bytes that one task of a shuffle brings to their partitions. Ray's own gigabyte, with its copies
# in the task, is most of a small node's memory, and more tasks of less go as fast
_SHUFFLED_AT_ONCE = 32 << 20
_HASHED_AT_ONCE, _FILES_AT_ONCE = 256 << 20, 256  # by a task
_AHEAD, _LEAST_AHEAD = 4, 64  # tasks that wait or run: for each core, and however few there are
_LAST_S = 10  # that a task which is told to end may take
_SMALL = Budget()


class ShardError(ValueError):
    """The data of a shard is not what it should be. Says the error's type and its message."""


def num_partitions(num_shards: int) -> int:
    """Into how many parts a shuffle of the rows of so many shards goes."""
    return min(max(num_shards, 1), 200)


def num_cpus() -> int:
    """The cores of the cluster; 1 where none is connected."""
    found = ray.cluster_resources() if ray.is_initialized() else {}
    return max(1, int(found.get("CPU", 1)))


def map_shards(
    work: Callable[[int], Summary],
    indices: Sequence[int],
    budget: Budget = _SMALL,
    stage: str = "shards",
) -> Iterator[Summary]:
    """What `work` returns for every index, in the order in which they finish.

    Args:
        work: picklable; returns what JSON can hold, and little of it.
        indices: of the shards; each is a Ray task of its own.
        budget: of one task.
        stage: what messages call it.

    Raises:
        BudgetError: no node has room for a task.
        ShardError: one met an error of this package, which says what is wrong with the data.
    """
    if not indices:
        return
    budget = granted(budget)
    check_room(stage, budget)

    def run(index: int) -> str:
        return json.dumps(_told(work, index))

    # a task whose worker or node dies is begun again, for ever: see `with_markers`
    task = ray.remote(run).options(
        name=stage,
        num_cpus=budget.cpus,
        memory=int(budget.memory_gb * GB),
        max_retries=-1,
        scheduling_strategy="SPREAD",
    )
    left = iter(indices)
    begun: list[ray.ObjectRef[str]] = []
    try:
        while True:
            room = max(_LEAST_AHEAD, _AHEAD * num_cpus()) - len(begun)
            begun += [task.remote(index) for index in itertools.islice(left, room)]
            if not begun:
                return
            done, begun = ray.wait(begun)
            for text in ray.get(done):
                summary = json.loads(text)
                if _ERROR in summary:
                    raise ShardError(summary[_ERROR])
                yield summary
    finally:
        for one in begun:
            ray.cancel(one)  # without force: the workers live on
        if begun:  # what they had begun to write they remove before anybody is told of the end
            ray.wait(begun, num_returns=len(begun), timeout=_LAST_S)


def _told(work: Callable[[int], Summary], index: int) -> Summary:
    """What `work` returns, or the message of an error that needs no stack trace to be understood.

    Ray loses the type and cause of what a task raises, so such errors travel as data.
    """
    try:
        return work(index)
    except ValueError as error:
        if type(error).__module__.partition(".")[0] != "rec":
            raise
        return {_ERROR: f"{type(error).__name__}: {error}"}


def stream(rows: ray.data.Dataset) -> Iterator[pa.Table]:
    """The dataset's blocks that hold rows, one after the other, never all at once."""
    rows.context.shuffle_input_batch_bytes = _SHUFFLED_AT_ONCE
    # the name keeps the iterator from ending itself before what follows has
    batches = iter(rows.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=1))
    try:
        for batch in batches:
            table = cast(pa.Table, batch)  # what batch_format asks for
            if table.num_rows:
                yield table
    finally:
        # Where a reader stops early, Ray 2.60 kills the workers of the tasks that still run, and a
        # reply that comes just then aborts this process ("unexpected system state",
        # task_manager.cc): end them first, without force
        if rows._current_executor is not None:
            rows._current_executor.shutdown(force=False)


def with_markers(
    work: Callable[[int, Attempt], Summary],
    folder: str,
    indices: Sequence[int],
    budget: Budget = _SMALL,
    stage: str = "shards",
) -> Iterator[Summary]:
    """`map_shards`, but shards that have a marker in `folder` only have it read.

    Ray begins a task whose worker dies again for ever, so tries are counted here.

    Raises:
        ShardError: also where a shard ends its worker process again and again.
    """
    finished = set(_markers(folder))
    rest: list[int] = []
    for index in indices:
        place = marker(folder, index)
        if place.rsplit("/", 1)[-1] in finished:
            yield json.loads(read_bytes(place))
        else:
            rest.append(index)

    this = uuid.uuid4().hex

    def run(index: int) -> Summary:
        attempt = Attempt(folder, index, this)
        summary = work(index, attempt)
        write_atomic(marker(folder, index), json.dumps(summary).encode())
        attempt.done()
        return summary

    yield from map_shards(run, rest, budget, stage)


def hash_files(uri: str) -> dict[str, FileEntry]:
    """What `seal` says of the files below `uri`, read by tasks and not by the driver alone.

    Nothing where there is so little that one task would read all.
    """
    parts: list[list[str]] = [[]]
    held = 0
    for name, size in file_sizes(uri).items():
        if held >= _HASHED_AT_ONCE or len(parts[-1]) >= _FILES_AT_ONCE:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    if len(parts) == 1:
        return {}

    def work(index: int) -> Summary:
        return {"files": {name: file_entry(join(uri, name)).to_json() for name in parts[index]}}

    found: dict[str, FileEntry] = {}
    for summary in map_shards(work, range(len(parts)), stage="hashes"):
        found |= {name: FileEntry.from_json(text) for name, text in summary["files"].items()}
    return found


def run_phase(
    work: str,
    name: str,
    count: int,
    task: Callable[[int], Summary],
    progress: Callable[[str, int, int], None] | None,
    budget: Budget = _SMALL,
) -> list[Summary]:
    """What the `count` tasks of a phase told, in their order; those done before are not run again.

    Args:
        work: folder of the run; markers go to done/ in it.
        name: of the phase.
        task: of an index; its summary holds that as "index".
        progress: called with the phase's name, and its finished and all tasks.
        budget: of one task.
    """
    told: dict[int, Summary] = {}

    def tried(index: int, _: Attempt) -> Summary:
        return task(index)

    found = with_markers(tried, join(work, "done", name), range(count), budget, name)
    for summary in found:
        told[summary["index"]] = summary
        if progress:
            progress(name, len(told), count)
    return [told[index] for index in sorted(told)]


def finished_shards(folder: str) -> int:
    """How many shards have a marker in `folder`."""
    return len(_markers(folder))


def _markers(folder: str) -> list[str]:
    """The names of the markers in `folder`, by one listing."""
    files, path = filesystem(folder)
    found = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return [info.base_name for info in found if _MARKER.fullmatch(info.base_name)]


def marker(folder: str, index: int) -> str:
    return join(folder, f"shard-{index:05d}.json")


def tidy(out_uri: str, keep: set[str | None]) -> None:
    """Delete work folders and all versions of the artifact at `out_uri` but those to keep."""
    files, path = filesystem(out_uri)
    for info in files.get_file_info(pafs.FileSelector(path)):
        mine = info.base_name.startswith(("v-", "work-"))
        if info.type == pafs.FileType.Directory and mine and info.base_name not in keep:
            files.delete_dir(info.path)
