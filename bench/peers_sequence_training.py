"""RecTools' SASRec for bench.sequence_training; it imports nothing of this project.

    PYTHON bench/peers_sequence_training.py LOG OUT EPOCHS EVERY CORES

LOG is an .npy file of int64 rows: user, item, place (order of time). After every EVERY epochs it
writes OUT/top-EPOCH.npy, (users, 10) items that were not seen, best first, users ascending, and
prints a JSON line: epoch, seconds and processor seconds of training so far without preparation and
evaluation, events predicted.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

LENGTH, TOP = 200, 10


def clocks() -> np.ndarray:
    """Seconds of the clock and of all cores."""
    return np.array([time.perf_counter(), time.process_time()])


def prepared(model: Any) -> list[np.ndarray]:
    """What the model spends preparing the dataset, filled while it does."""
    spent: list[np.ndarray] = []
    plain = model.data_preparator.process_dataset_train

    def timed(dataset: Any) -> Any:
        started = clocks()
        result = plain(dataset)
        spent.append(clocks() - started)
        return result

    model.data_preparator.process_dataset_train = timed
    return spent


def run(log: str, out: Path, epochs: int, every: int) -> None:
    import pandas as pd
    from rectools import Columns  # pyright: ignore[reportMissingImports]
    from rectools.dataset import Dataset  # pyright: ignore[reportMissingImports]
    from rectools.models import SASRecModel  # pyright: ignore[reportMissingImports]

    frame = pd.DataFrame(np.load(log), columns=[Columns.User, Columns.Item, "place"])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(frame.pop("place"), unit="s")
    dataset = Dataset.construct(frame)
    users, sizes = np.unique(frame[Columns.User].to_numpy(), return_counts=True)
    events = int(np.minimum(sizes - 1, LENGTH).sum())  # what one epoch predicts
    model = SASRecModel(
        n_blocks=2,
        n_heads=1,
        n_factors=64,
        dropout_rate=0.2,
        session_max_len=LENGTH,
        batch_size=128,
        loss="softmax",
        lr=1e-3,
        epochs=every,
    )
    spent, training = prepared(model), np.zeros(2)
    for epoch in range(every, epochs + 1, every):
        before, started = sum(spent), clocks()
        model.fit_partial(dataset, min_epochs=every, max_epochs=every)
        training += clocks() - started - (sum(spent) - before)
        found = model.recommend(users, dataset, k=TOP, filter_viewed=True)
        best = np.full((len(users), TOP), -1)
        row = np.searchsorted(users, found[Columns.User].to_numpy())
        best[row, found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
        np.save(out / f"top-{epoch}.npy", best)
        seconds, processor = training.tolist()
        line = {"epoch": epoch, "seconds": seconds, "processor": processor}
        line["events"] = events * epoch
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    log, out, epochs, every, cores = sys.argv[1:]
    os.environ["OMP_NUM_THREADS"] = cores
    warnings.filterwarnings("ignore")
    run(log, Path(out), int(epochs), int(every))
