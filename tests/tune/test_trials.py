"""Records, the order of trials and which of them go on, without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rec.artifacts import ArtifactError
from rec.config import ConfigError
from rec.recipes import sequence
from rec.train.engine import TrainError
from tune.halving import Halving, Proposals
from tune.recall import tune_recall
from tune.space import Space, space_of
from tune.trial import FIGURE, STEP
from tune.trials import TrialRecord, Trials, best

SPACE: Space = space_of(sequence.sasrec())


def record(number: int, *figures: tuple[int, float], **fields: Any) -> TrialRecord:
    return TrialRecord(number=number, values=fields.pop("values", {}), figures=figures, **fields)


def report(halving: Halving, number: int, step: int, figure: float) -> str:
    trial = SimpleNamespace(config={"number": number}, trial_id=f"ray-{number}")
    return halving.on_trial_result(None, trial, {STEP: step, FIGURE: figure})


def started(steps: int, trials: Trials, numbers: range) -> Halving:
    halving = Halving(steps, trials)
    for number in numbers:
        halving.on_trial_add(None, SimpleNamespace(config={"number": number}))
    return halving


def test_the_best_ran_all_steps_and_of_equals_the_first_counts() -> None:
    records = [
        record(0, (90, 0.2), state="finished"),
        record(1, (10, 0.9), state="stopped"),
        record(2, (90, 0.3), state="finished"),
        record(3, (90, 0.3), state="finished"),
        record(4, state="failed"),
    ]
    found = best(records)
    assert found is not None
    assert found.number == 2
    assert best(records[3:4] + records[1:2]) == records[3]
    assert best([]) is None


def test_records_come_back_in_order(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path))
    assert trials.all() == []
    for number in (11, 2, 100):
        trials.write(record(number, (5, 0.1), values={"model.dim": 64}))
    (tmp_path / "trials" / "003").mkdir()  # killed before its record was written
    assert [one.number for one in trials.all()] == [2, 11, 100]
    assert trials.update(2, state="stopped") == trials.read(2)
    assert trials.read(2).values == {"model.dim": 64}


def test_unfinished_trials_come_first_then_the_recipe_then_proposals(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path))
    trials.write(record(1, (10, 0.2), state="stopped", values={}))
    trials.write(record(2, (10, 0.2), values={"model.dim": 64}))
    proposals = Proposals(SPACE, trials)
    assert [proposals.suggest(f"{i}") for i in range(4)] == [{"number": n} for n in (2, 0, 3, 4)]
    records = trials.all()
    assert [one.number for one in records] == [0, 1, 2, 3, 4]
    assert records[0].values == {}
    assert records[3].values.keys() == records[4].values.keys() == SPACE.keys()
    assert records[3].values != records[4].values


def test_the_worst_stop_at_a_rung_but_never_trial_0_nor_at_the_end(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path))
    for number in range(6):
        trials.write(record(number))
    halving = started(90, trials, range(6))
    assert report(halving, 1, 10, 0.5) == "CONTINUE"
    assert report(halving, 2, 10, 0.4) == "STOP"
    assert report(halving, 0, 10, 0.1) == "CONTINUE"
    assert report(halving, 3, 5, 0.0) == "CONTINUE"  # before the first rung
    assert report(halving, 3, 10, 0.6) == "CONTINUE"
    assert report(halving, 1, 20, 0.0) == "CONTINUE"  # between rungs
    assert report(halving, 1, 90, 0.5) == "CONTINUE"
    assert report(halving, 3, 90, 0.4) == "CONTINUE"  # it has run all its steps
    assert [one.state for one in trials.all()].count("stopped") == 1
    assert trials.read(2).state == "stopped"


def test_a_new_process_knows_what_was_reported_to_the_one_before(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path))
    reports = [(number, 10, 0.1 * number) for number in (5, 1, 4, 2, 3)]
    for number in range(8):
        trials.write(record(number))
    whole = started(90, trials, range(1, 8))
    decisions = [report(whole, *one) for one in [*reports, (6, 10, 0.35), (7, 10, 0.45)]]
    for number, step, figure in reports:
        trials.update(number, figures=((step, figure),))
    later = started(90, trials, range(1, 8))
    assert [report(later, *one) for one in [(6, 10, 0.35), (7, 10, 0.45)]] == decisions[-2:]
    assert decisions[-2:] == ["STOP", "CONTINUE"]
    # a trial that goes on tells of its last checkpoint again: that decides nothing
    assert report(later, 1, 10, 0.1) == "CONTINUE"


def test_what_cannot_be_tuned_is_refused_before_anything_starts(
    sequence_rows: str, tmp_path: Path
) -> None:
    recipe = sequence.debug()
    with pytest.raises(ConfigError, match="set it to plain"):
        tune_recall(recipe.override(["train.engine=ddp"]), sequence_rows, str(tmp_path), 1)
    with pytest.raises(TrainError, match=r"must be a multiple of .* = 1 x 3"):
        tune_recall(recipe.override(["train.micro_batches=3"]), sequence_rows, str(tmp_path), 1)
    with pytest.raises(ConfigError, match="local or shared folder"):
        tune_recall(recipe, sequence_rows, "s3://bucket/tune", 1)
    out = str(tmp_path / "out")
    tune_recall(recipe, sequence_rows, out, 0)
    with pytest.raises(ConfigError, match=r"differs: recipe.model.dim\)"):
        tune_recall(recipe.override(["model.dim=32"]), sequence_rows, out, 0)
    Trials(out).write(record(0))
    trial = Trials(out).folder(0) / "trial.json"
    trial.write_text(trial.read_text().replace('"error"', '"mistake"'))
    with pytest.raises(ConfigError, match=r"000/trial\.json: not a record of a trial"):
        tune_recall(recipe, sequence_rows, out, 0)
    (tmp_path / "out" / "search.json").write_text("{")
    with pytest.raises(ConfigError, match=r"search\.json: not of a search"):
        tune_recall(recipe, sequence_rows, out, 0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_rows_that_are_not_as_published_are_refused(sequence_rows: str, tmp_path: Path) -> None:
    rows = Path(shutil.copytree(sequence_rows, tmp_path / "rows"))
    shard = next(rows.glob("v-*/test/*.parquet"))  # that no trial reads
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"{shard}: .* publish again"):
        tune_recall(sequence.debug(), str(rows), str(tmp_path / "out"), 1)
    assert Trials(str(tmp_path / "out")).all() == []
