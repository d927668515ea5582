"""Where the checkpoints of workers on Ray go: through ray.train.report, to the run's storage."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from rec.train import checkpoint

SCORE = "score"  # Ray keeps the checkpoint with the highest


def _score(metrics: dict[str, float]) -> float:
    """Higher is better; below all for a checkpoint that was not validated. Ray keeps the highest
    and the last; with order "min" it would take a missing score for the best."""
    return -metrics[checkpoint.SCORE] if checkpoint.SCORE in metrics else -sys.float_info.max


def figures(validated: dict[str, float]) -> dict[str, float]:
    """What Ray is to note of a validated checkpoint."""
    return {SCORE: _score(validated), **validated}


class RayStore:
    """Checkpoints through ray.train.report, which is a barrier of all ranks.

    To storage that is not a folder they are uploaded while training goes on, one at a time.

    Args:
        validates: true for the steps whose checkpoints Ray Train is to have validated.
    """

    def __init__(self, run: str, validates: Callable[[int], bool] = lambda _: False) -> None:
        self._aside: str | None = None  # of the one before
        self._far = "://" in run
        self._validates = validates

    def save(self, step: int, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        from ray import train as ray_train
        from ray.train import CheckpointUploadMode

        while self._aside is not None and os.path.exists(self._aside):
            time.sleep(0.05)  # or a slow upload would fill this node's disk with those that wait
        self._aside = tempfile.mkdtemp(prefix="raycall-checkpoint-")
        try:
            write(Path(self._aside))
        except BaseException:
            shutil.rmtree(self._aside, ignore_errors=True)
            raise
        if dist.is_initialized():
            dist.barrier()
        found = (
            ray_train.Checkpoint.from_directory(self._aside) if os.listdir(self._aside) else None
        )
        if found is None:
            os.rmdir(self._aside)
        ray_train.report(
            {"step": step, **figures(metrics)},
            checkpoint=found,
            checkpoint_dir_name=f"step-{step:08d}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC
            if self._far
            else CheckpointUploadMode.SYNC,
            delete_local_checkpoint_after_upload=True,
            validation=found is not None and self._validates(step),
        )
