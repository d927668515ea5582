"""A search as a user runs it: killed half-way, run again, its best settings trained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed import kill_driver

from jobs import train
from rec.artifacts import join, read_manifest
from tune import recall
from tune.recall import BEST
from tune.trials import TrialRecord, Trials, best

ROOT = Path(__file__).parents[2]
RECIPE = ["--recipe", "rec.recipes.sequence:debug"]
STEPS = 45
SETTINGS = [f"train.steps={STEPS}", "train.validate_every=5", "train.checkpoint_every=5"]
TRIALS = 8


def flags(rows: str, out: Path) -> list[str]:
    places = [*RECIPE, "--rows", rows, "--out", str(out)]
    return [*places, "--trials", f"{TRIALS}", "--concurrency", "2", "--set", *SETTINGS]


def search(rows: str, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tune.recall", *flags(rows, out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(records: list[TrialRecord]) -> list[TrialRecord]:
    return [one for one in records if one.state != "running"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_killed_half_way_goes_on_and_finds_better_than_the_recipe(
    ray_local: None, sequence_rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "search"
    trials = Trials(str(out))
    # one that an earlier process proposed and did not run; its heads do not divide its width
    trials.write(TrialRecord(number=1, values={"model.num_heads": 3, "model.dim": 32}))

    first = search(sequence_rows, out)
    try:
        while len(ended(trials.all())) < 4 or not any(
            one.state == "running" and one.figures for one in trials.all()
        ):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
    finally:
        kill_driver(first)
    first.communicate()
    before = trials.all()
    done = ended(before)
    assert len(done) < TRIALS

    assert recall.main(flags(sequence_rows, out)) == 0
    printed = capsys.readouterr().out
    after = {one.number: one for one in trials.all()}
    assert len(after) == TRIALS
    assert [after[one.number] for one in done] == done  # not run again
    for one in done:
        assert not re.search(rf"trial {one.number}: (step|on from)", printed)
    for one in before:
        if one.state == "running" and one.figures:
            resumed = re.search(rf"trial {one.number}: on from step (\d+): ", printed)
            assert resumed, printed
            assert int(resumed[1]) >= one.step  # its process may outlive the driver by a report
    assert {one.state for one in after.values()} == {"finished", "stopped", "failed"}
    for one in after.values():
        steps = [step for step, _ in one.figures]
        assert steps == list(range(5, one.step + 1, 5))
        assert (one.state == "finished") == (one.step == STEPS)

    assert after[1].state == "failed"
    assert "must be a multiple of num_heads 3" in after[1].error
    assert re.search(r" 1  failed .*model.num_heads=3.*multiple of num_heads 3", printed)
    found = best(list(after.values()))
    assert found is not None
    assert after[0].state == "finished"
    assert (found.figure or 0) > (after[0].figure or 0) > 0

    given = [*RECIPE, "--rows", sequence_rows, "--out", str(tmp_path / "run"), "--workers", "0"]
    assert train.main([*given, "--set", f"@{out / BEST}"]) == 0
    about = read_manifest(join(str(tmp_path / "run"), "encoder"), "sequence-encoder")
    assert about.config["body"]["dim"] == found.values["model.dim"]
    assert about.metrics["step"] == STEPS
