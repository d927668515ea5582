"""A trial trains as jobs.train does, is judged on validation rows, and goes on where it was cut."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sequence_cases import NUM_ITEMS, read_side

from rec.features.sequences import histories
from rec.recipes import matching, sequence
from rec.runtime.stop import STOP
from rec.train.engine import MODEL_FILE, load_weights
from tune import trial
from tune.trial import Task, run_trial, train_trial
from tune.trials import TrialRecord, Trials

SETTINGS = ["train.steps=12", "train.validate_every=4", "train.checkpoint_every=4"]
Figures = list[tuple[int, float]]


def figures(recipe: Any, rows: str, out: Path, values: dict[str, Any], cut: int = 0) -> Figures:
    """What a trial reports; at step `cut` it is ended as Tune ends it."""
    trials, found = Trials(str(out)), Figures()
    if not trials.all():
        trials.write(TrialRecord(number=7, values=values))

    def report(step: int, figure: float) -> None:
        found.append((step, figure))
        if step == cut:
            raise SystemExit

    if cut:
        with pytest.raises(SystemExit):
            train_trial(Task(recipe, rows, str(out)), trials, 7, report)
    else:
        assert train_trial(Task(recipe, rows, str(out)), trials, 7, report).error is None
    return found


def naive_ndcg(model: Any, rows: str) -> float:
    """NDCG@10 one row and one target at a time, seen items left out."""
    values = []
    table = read_side(rows, "heldout")
    for row in range(table.num_rows):
        batch, targets = histories(table.slice(row, 1))
        with torch.no_grad():
            scores = model.score(batch)[0]
        seen, wanted = set(batch.item_index.tolist()), set(targets.item_index.tolist())
        candidates = [item for item in range(NUM_ITEMS) if item not in seen]
        gain = 0.0
        for target in wanted & set(candidates):
            above = [i for i in candidates if i not in wanted and scores[i] >= scores[target]]
            better = [i for i in wanted & set(candidates) if scores[i] > scores[target]]
            rank = 1 + len(above) + len(better)
            gain += 1 / math.log2(1 + rank) if rank <= 10 else 0.0
        if len({float(scores[i]) for i in candidates}) == 1:
            gain = 0.0  # knows nothing
        values.append(gain / sum(1 / math.log2(1 + n) for n in range(1, min(len(wanted), 10) + 1)))
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        (sequence.debug(), {"model.dim": 8, "train.learning_rate": 0.01}),
        (matching.debug(), {"model.temperature": 0.1}),
    ],
    ids=["sasrec", "dssm"],
)
def test_a_cut_trial_goes_on_to_the_figures_of_the_whole_one(
    recipe: Any, values: dict[str, Any], sequence_rows: str, tmp_path: Path
) -> None:
    recipe = recipe.override(SETTINGS)
    whole = figures(recipe, sequence_rows, tmp_path / "whole", values)
    assert [step for step, _ in whole] == [4, 8, 12]
    assert figures(recipe, sequence_rows, tmp_path / "cut", values, cut=8) == whole[:2]
    # the checkpoint that it goes on from is told of again
    assert figures(recipe, sequence_rows, tmp_path / "cut", values) == whole[1:]
    for name in ("whole", "cut"):
        trials = Trials(str(tmp_path / name))
        assert trials.read(7).figures == tuple(whole)
    changed = recipe.override([f"{path}={value}" for path, value in values.items()])
    model = changed.build(sequence_rows)
    last = tmp_path / "whole" / "trials" / "007" / "checkpoints" / "step-00000012"
    load_weights(model, last / MODEL_FILE)
    model.eval()
    assert whole[-1][1] == pytest.approx(naive_ndcg(model, sequence_rows), abs=1e-6)


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("too wide"), "failed"), (OSError("the store does not answer"), "running")],
)
def test_what_says_nothing_about_the_trial_does_not_end_it(
    error: Exception, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(trial, "train_trial", broken)
    trials = Trials(str(tmp_path))
    trials.write(TrialRecord(number=3, values={}))
    with pytest.raises(OSError, match="not answer") if state == "running" else nullcontext():
        run_trial({"number": 3}, task=Task(sequence.debug(), "rows", str(tmp_path)))
    assert trials.read(3).state == state
    assert trials.read(3).error == ("ValueError: too wide" if state == "failed" else "")


def test_a_trial_that_was_asked_to_stop_is_not_finished(
    sequence_rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, steps = Trials(str(tmp_path)), list[int]()
    trials.write(TrialRecord(number=3, values={}))

    def report(figures: dict[str, Any]) -> None:
        steps.append(figures["step"])
        if steps == [4]:
            (trials.folder(3) / STOP).touch()
            time.sleep(2)  # it is looked for every second

    monkeypatch.setattr("ray.tune.report", report)
    task = Task(sequence.debug().override(SETTINGS), sequence_rows, str(tmp_path))
    run_trial({"number": 3}, task=task)
    assert (trials.read(3).state, trials.read(3).step, steps) == ("running", 4, [4])
    run_trial({"number": 3}, task=task)
    assert (trials.read(3).state, trials.read(3).step, steps) == ("finished", 12, [4, 8, 12])
