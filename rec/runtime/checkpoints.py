"""Where a run's checkpoints are, and Ray Train's own list of them, kept in step with the folders.

    <run>/step-*                 of workers on Ray
    <run>/checkpoints/step-*     of a run in one process, without Ray

Ray refuses a run that lacks a folder of its list; we tell people to remove one that is damaged.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs
from torch import nn

from rec import artifacts
from rec.train.engine import MODEL_FILE, TrainError, load_weights

ALONE = "checkpoints"
SNAPSHOT = "checkpoint_manager_snapshot.json"
_DUE, _SPECS = "pending_training_results", "pending_validation_specs"


def last_saved(folder: str) -> int:
    """Optimiser steps of the newest checkpoint in `folder`; 0 where there is none."""
    files, path = artifacts.filesystem(folder)
    infos = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    names = (info.base_name for info in infos)
    return max((int(n.partition("-")[2]) for n in names if re.fullmatch(r"step-\d+", n)), default=0)


def read_weights(folder: str, model: nn.Module) -> None:
    """Copy the weights of the checkpoint in `folder`, local or s3://, into the model.

    Raises:
        TrainError: they are of another model.
    """
    files, path = artifacts.filesystem(artifacts.join(folder, MODEL_FILE))
    with tempfile.TemporaryDirectory() as aside:
        local = Path(aside) / MODEL_FILE
        with files.open_input_stream(path) as source, local.open("wb") as target:
            while chunk := source.read(1 << 22):
                target.write(chunk)
        load_weights(model, local)


def refuse_other_kind(run: str, num_workers: int) -> None:
    """TrainError where the run has checkpoints of the kind that this call would not go on from."""
    step = last_saved(artifacts.join(run, ALONE) if num_workers else run)
    if step:
        before, now = ("without", "--workers 0") if num_workers else ("with", "--workers 1 or more")
        raise TrainError(
            f"{run}: {step} steps were trained {before} Ray's workers; go on with {now}, or give "
            "another --out"
        )


def forget_removed(run: str, *, aside: bool = True) -> None:
    """Take the checkpoints whose folders are gone out of the list of the run in folder `run`;
    the newest of the rest is then the one to go on from.

    Args:
        aside: checkpoints are validated beside the training; else none is due to be.
    """
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
    there = {result["checkpoint_dir_name"] for result, _ in left} if aside else set[str]()
    results, specs = listed.get(_DUE, []), listed.get(_SPECS, [])
    due = zip(results, specs, strict=True)
    due = [pair for pair in due if pair[0]["checkpoint_dir_name"] in there]
    if len(left) == len(pairs) and len(due) == len(results):
        return
    newest = max(left, key=lambda pair: pair[1], default=(None, 0))
    listed |= {
        "checkpoint_results": [result for result, _ in left],
        "checkpoint_report_indices": [index for _, index in left],
        "latest_checkpoint_result": newest[0],
        _DUE: [result for result, _ in due],
        _SPECS: [spec for _, spec in due],
    }
    artifacts.write_atomic(place, json.dumps(listed).encode())
