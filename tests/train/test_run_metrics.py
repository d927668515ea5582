"""Collapse statistics against plain loops, and a log that has one record a step."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from rec.train.metrics import BOARD, RECORDS, MetricLog, collapse_statistics, read_records


def test_collapse_statistics_equal_plain_loops() -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(9, 5, dtype=torch.float64), dim=1)
    found = collapse_statistics(x.float())
    pairs = [float(x[i] @ x[j]) for i in range(9) for j in range(9) if i != j]
    assert found["item/cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    stds = [float(x[:, d].std(correction=0)) for d in range(5)]
    assert found["item/std"] == pytest.approx(sum(stds) / 5 * math.sqrt(5), rel=1e-5)
    values = torch.linalg.svd(x - x.mean(0)).S
    share = [float(v / values.sum()) for v in values]
    entropy = -sum(s * math.log(s) for s in share)
    assert found["item/effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-4)


def test_collapsed_and_spread_vectors_are_told_apart() -> None:
    torch.manual_seed(0)
    same = collapse_statistics(torch.ones(32, 16) + 1e-6 * torch.randn(32, 16))
    spread = collapse_statistics(torch.randn(512, 16))
    assert same["item/std"] < 1e-3 < 0.9 < spread["item/std"] <= 1.0
    assert same["item/cosine"] > 0.99
    assert abs(spread["item/cosine"]) < 0.02
    assert spread["item/effective_rank"] > 15
    assert collapse_statistics(torch.ones(1, 4)) == {}


def test_a_resumed_log_has_every_step_once(tmp_path: Path) -> None:
    log = MetricLog(str(tmp_path), 0, 10)
    for step in range(1, 8):
        log.write(step, {"train/total": float(step)})
    log.close()
    with open(tmp_path / RECORDS, "a") as file:
        file.write('{"step": 8, "train/to')  # cut off by a crash
    again = MetricLog(str(tmp_path), 4, 10)
    for step in range(5, 11):
        again.write(step, {"train/total": 10.0 * step})
    again.close()
    records = read_records(str(tmp_path))
    assert [r["step"] for r in records] == list(range(1, 11))
    assert [r["train/total"] for r in records[3:6]] == [4.0, 50.0, 60.0]
    assert all(json.loads(line) for line in (tmp_path / RECORDS).read_text().splitlines())
    assert list((tmp_path / BOARD).glob("events*"))


def test_validations_done_beside_the_training_are_taken_in_once(tmp_path: Path) -> None:
    over = {4: {"validation/total": 0.5}}

    def beside(known: Collection[int]) -> list[tuple[int, dict[str, float]]]:
        return [(step, record) for step, record in over.items() if step not in known]

    log = MetricLog(str(tmp_path), 0, 10, beside)
    for step in range(1, 7):
        log.write(step, {"train/total": 1.0})
    log.flush()
    over[8] = {"validation/total": 0.25}
    log.write(7, {"train/total": 1.0})
    log.close()
    MetricLog(str(tmp_path), 10, 10, beside).close()  # by a later job, which knows them
    steps = [r["step"] for r in read_records(str(tmp_path))]
    assert steps == [1, 2, 3, 4, 5, 6, 4, 7, 8]
