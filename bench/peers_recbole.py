"""RecBole's SASRec for bench.sequence_training; it imports nothing of this project.

    PYTHON bench/peers_recbole.py LOG FOLDER BATCHES CORES

LOG is an .npy file of int64 rows: user, item, place (order of time). After BATCHES batches, and a
tenth as many to warm up, it prints a JSON line: seconds of them, events predicted. RecBole makes
an example of every event with all before it, padded, and predicts one event an example.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

LENGTH = 200


def run(log: str, folder: Path, num_batches: int) -> None:
    import torch
    from recbole.config import Config  # pyright: ignore[reportMissingImports]
    from recbole.data import (  # pyright: ignore[reportMissingImports]
        create_dataset,
        data_preparation,
    )
    from recbole.model.sequential_recommender import (  # pyright: ignore[reportMissingImports]
        SASRec,
    )

    (folder / "log").mkdir(parents=True)
    rows = np.load(log)
    head = "user_id:token\titem_id:token\ttimestamp:float"
    np.savetxt(folder / "log" / "log.inter", rows, "%d", "\t", header=head, comments="")
    settings = {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "n_layers": 2,
        "n_heads": 1,
        "hidden_size": 64,
        "inner_size": 256,
        "hidden_dropout_prob": 0.2,
        "attn_dropout_prob": 0.2,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": 128,
        "use_gpu": False,
        "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "mode": "full"},
        "state": "ERROR",
    }
    sys.argv = sys.argv[:1]  # which RecBole reads too
    config = Config(model="SASRec", dataset="log", config_dict=settings)
    dataset = create_dataset(config)
    batches, _, _ = data_preparation(config, dataset)
    model = SASRec(config, batches.dataset)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    warm, events, started = max(1, num_batches // 10), 0, 0.0
    for number, batch in enumerate(itertools.islice(batches, warm + num_batches)):
        if number == warm:
            started = time.perf_counter()
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        events += len(batch) * (number >= warm)
    line = {"seconds": time.perf_counter() - started, "events": events}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    log, folder, batches, cores = sys.argv[1:]
    os.environ["OMP_NUM_THREADS"] = cores
    warnings.filterwarnings("ignore")
    run(log, Path(folder), int(batches))
