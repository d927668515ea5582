"""What a run writes about itself: one JSON record a logged step, TensorBoard, a progress line."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch
from pyarrow import fs as pafs
from torch import Tensor
from tqdm import tqdm

from rec import artifacts

RECORDS = "metrics.jsonl"
BOARD = "tensorboard"


def collapse_statistics(vectors: Tensor) -> dict[str, float]:
    """How far item vectors (B, D) are from having collapsed.

    `std`: mean over dimensions of the standard deviation over the batch, times sqrt(D): near 1
    for unit vectors spread over the sphere, 0 where all are equal. `cosine`: mean cosine of
    different items. `effective_rank`: exp of the entropy of the normalised singular values of
    the centred batch (Roy & Vetterli 2007), between 1 and min(B - 1, D).
    """
    x = torch.nn.functional.normalize(vectors.detach().float(), dim=1)
    num, dim = x.shape
    if num < 2:
        return {}
    centred = x - x.mean(0)
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    total = x.sum(0)
    return {
        "item/std": float(centred.pow(2).mean(0).sqrt().mean() * dim**0.5),
        "item/cosine": float((total @ total - num) / (num * (num - 1))),
        "item/effective_rank": float(entropy.exp()),
    }


def memory_mb(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


Record = dict[str, float]
Beside = Callable[[Collection[int]], Iterable[tuple[int, Record]]]


class MetricLog:
    """Rank 0's log below `uri`: RECORDS, BOARD and a progress line on stderr.

    A resumed run continues it: records after `start_step` belong to steps that are run again
    and are cut off, so that every step has one record. On S3 the log is kept in a temporary
    folder and copied at every `flush`, which the loop calls with each checkpoint.

    Args:
        beside: given steps whose validation is in the log, those of others that are over, which
            were done beside the training; asked at every `flush`, so a step may have a second
            record long after its own.
    """

    def __init__(
        self, uri: str, start_step: int, num_steps: int, beside: Beside | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds, and rank 0 alone needs it

        self._files, self._target = artifacts.filesystem(uri)
        self._files.create_dir(self._target, recursive=True)
        self._remote = not isinstance(self._files, pafs.LocalFileSystem)
        self._aside = tempfile.TemporaryDirectory() if self._remote else None
        self.folder = Path(self._aside.name if self._aside else self._target)
        records = _until(uri, start_step)
        artifacts.write_atomic(self.folder / RECORDS, records.encode())
        parsed: list[Record] = [json.loads(line) for line in records.splitlines()]
        self._validated = {int(r["step"]) for r in parsed if "validation/total" in r}
        self._beside = beside
        self._records = open(self.folder / RECORDS, "a", buffering=1)  # noqa: SIM115
        self._board = SummaryWriter(str(self.folder / BOARD), purge_step=start_step + 1)
        self._num_steps = num_steps
        self._bar = tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            disable=not sys.stderr.isatty() or start_step == num_steps,
        )
        self._start_step, self._started, self._shown = start_step, time.monotonic(), 0.0

    def write(self, step: int, record: Record) -> None:
        """One record of a finished step: every value by name."""
        self._note(step, record)
        self._show(step, record)

    def _note(self, step: int, record: Record) -> None:
        self._records.write(json.dumps({"step": step, **record}) + "\n")
        for name, value in record.items():
            self._board.add_scalar(name, value, step)

    def _take(self) -> None:
        if self._beside is not None:
            for step, record in self._beside(self._validated):
                self._validated.add(step)
                self._note(step, record)

    def _show(self, step: int, record: dict[str, float]) -> None:
        short = {k.replace("train/", ""): f"{v:.4g}" for k, v in record.items() if k in _SHOWN}
        self._bar.set_postfix(short, refresh=False)
        self._bar.update(step - self._bar.n)
        now = time.monotonic()
        if not self._bar.disable or (now - self._shown < _LINE_S and step < self._num_steps):
            return
        self._shown = now
        left = (now - self._started) / (step - self._start_step) * (self._num_steps - step)
        values = " ".join(f"{name} {value}" for name, value in short.items())
        ending = tqdm.format_interval(left)
        # not by print, which Ray Train's workers do twice
        tqdm.write(f"step {step}/{self._num_steps} {values} left {ending}", file=sys.stderr)

    def flush(self) -> None:
        self._take()
        self._board.flush()
        self._copy()

    def _copy(self) -> None:
        if self._remote:
            pafs.copy_files(str(self.folder), self._target, destination_filesystem=self._files)

    def close(self) -> None:
        self._take()
        self._records.close()
        self._board.close()
        self._bar.close()
        self._copy()
        if self._aside is not None:
            self._aside.cleanup()


_SHOWN = ("train/total", "validation/total", "lr", "grad_norm", "rows_per_s", "data_wait")
_LINE_S = 5.0  # without a terminal, at most one line in this many seconds


def _until(uri: str, step: int) -> str:
    """Records of earlier attempts up to `step`; a last line cut off by a crash is dropped."""
    place = artifacts.join(uri, RECORDS)
    if not step or not artifacts.exists(place):
        return ""
    kept = []
    for line in artifacts.read_bytes(place).decode().splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    return "".join(kept)


def read_records(uri: str) -> list[dict[str, float]]:
    """All records of the run at `uri`."""
    text = artifacts.read_bytes(artifacts.join(uri, RECORDS)).decode()
    return [json.loads(line) for line in text.splitlines()]
