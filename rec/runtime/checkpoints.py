"""Ray Train's own list of a run's checkpoints, kept in step with the folders that are there.

Ray refuses a run that lacks a folder of the list; we tell people to remove one that is damaged.
"""

from __future__ import annotations

import json
from typing import Any

from rec import artifacts

SNAPSHOT = "checkpoint_manager_snapshot.json"


def forget_removed(run: str) -> None:
    """Take the checkpoints whose folders are gone out of the list of the run in folder `run`;
    the newest of the rest is then the one to go on from."""
    place = artifacts.join(run, SNAPSHOT)
    if not artifacts.exists(place):
        return
    try:
        listed: dict[str, Any] = json.loads(artifacts.read_bytes(place))
    except ValueError:  # Ray says what it makes of that
        return
    pairs = list(
        zip(listed["checkpoint_results"], listed["checkpoint_report_indices"], strict=True)
    )
    left = [
        (result, index)
        for result, index in pairs
        if artifacts.exists(artifacts.join(run, result["checkpoint_dir_name"]))
    ]
    if len(left) == len(pairs):
        return
    newest = max(left, key=lambda pair: pair[1], default=(None, 0))
    listed |= {
        "checkpoint_results": [result for result, _ in left],
        "checkpoint_report_indices": [index for _, index in left],
        "latest_checkpoint_result": newest[0],
    }
    artifacts.write_atomic(place, json.dumps(listed).encode())
