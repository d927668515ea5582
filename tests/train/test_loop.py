"""The loop on one process: learning, resuming to the bit, and how it stops."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import TinyRecipe, write_rows

from jobs.steps import last_step
from rec.artifacts import ArtifactError, read_manifest
from rec.runtime.train import Job, TrainOutcome, train, work
from rec.train import checkpoint
from rec.train.engine import MODEL_FILE, TrainError
from rec.train.metrics import read_records

TIMES = ("rows_per_s", "data_wait", "memory_mb")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows"))


def recipe(**train: Any) -> TinyRecipe:
    base = TinyRecipe()
    return base.model_copy(update={"train": base.train.model_copy(update=train)})


def here(recipe: TinyRecipe, rows: str, place: Path, **options: Any) -> TrainOutcome:
    return train(recipe, rows, str(place), num_workers=0, **options)


def losses(outcome: TrainOutcome) -> list[dict[str, float]]:
    records = read_records(outcome.logs)
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def test_it_learns_validates_and_keeps_the_best(rows: str, tmp_path: Path) -> None:
    outcome = here(recipe(steps=60), rows, tmp_path)
    records = losses(outcome)
    assert [r["step"] for r in records] == list(range(1, 61))
    assert records[-1]["train/total"] < 0.7 * records[0]["train/total"]
    scores = {int(r["step"]): r["validation/total"] for r in records if "validation/total" in r}
    assert list(scores) == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    best = min(scores, key=lambda step: scores[step])
    assert outcome.best.endswith(f"step-{best:08d}")
    assert outcome.last.endswith("step-00000060")
    assert outcome.metrics["validation/total"] == scores[best]
    kept = sorted(os.listdir(tmp_path / "train" / "checkpoints"))
    assert kept == sorted({f"step-{best:08d}", "step-00000056", "step-00000060"})


def test_the_last_checkpoint_is_exported_and_not_the_best(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, misleading=True)
    judged = recipe(steps=18).model_copy(update={"weights": {"classify": 1.0, "contrast": 0.01}})
    outcome = here(judged, rows, tmp_path, encoder=str(tmp_path / "encoder"))
    assert Path(outcome.best).name == "step-00000006"
    assert Path(outcome.last).name == "step-00000018"
    manifest = read_manifest(tmp_path / "encoder", "tiny-encoder")
    assert manifest.metrics["step"] == 18
    assert manifest.metrics["validation/total"] > outcome.metrics["validation/total"]
    exported = load_file(tmp_path / "encoder" / manifest.root / "model.safetensors")
    last, best = (load_file(Path(p) / MODEL_FILE) for p in (outcome.last, outcome.best))
    assert all(torch.equal(exported[name], last[name]) for name in last)
    assert not all(torch.equal(last[name], best[name]) for name in last)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_resuming_equals_the_unbroken_run_to_the_bit(
    micro_batches: int, rows: str, tmp_path: Path
) -> None:
    whole = here(recipe(micro_batches=micro_batches), rows, tmp_path / "whole")
    cut = recipe(micro_batches=micro_batches)
    place = tmp_path / "cut" / "train"
    stop_at(9, place, lambda: here(cut, rows, tmp_path / "cut"))
    assert checkpoint.read_state(place / "checkpoints" / "step-00000008").step == 8
    resumed = here(cut, rows, tmp_path / "cut")
    assert losses(resumed) == losses(whole)
    a, b = load_file(Path(whole.last) / MODEL_FILE), load_file(Path(resumed.last) / MODEL_FILE)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def stop_at(step: int, place: Path, start: Any) -> None:
    """Run start() and break it with an error when step `step` is logged."""
    from rec.train.metrics import MetricLog

    class Broken(Exception):
        pass

    write = MetricLog.write

    def breaking(self: MetricLog, now: int, record: dict[str, float]) -> None:
        write(self, now, record)
        if now == step:
            raise Broken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricLog, "write", breaking)
        with pytest.raises(Broken):
            start()


def test_a_longer_run_continues_and_another_recipe_is_refused(rows: str, tmp_path: Path) -> None:
    here(recipe(steps=4), rows, tmp_path)
    assert here(recipe(steps=6), rows, tmp_path).step == 6
    changed = recipe(steps=8, learning_rate=1e-3).model_copy(update={"hidden": 32})
    with pytest.raises(TrainError, match=r"differing fields: hidden, train.learning_rate\. Give"):
        here(changed, rows, tmp_path)
    with pytest.raises(TrainError, match="there is a run already"):
        here(recipe(), rows, tmp_path, resume=False)


@pytest.mark.parametrize("coupled", [True, False])
def test_validation_does_not_hang_on_micro_batches(
    coupled: bool, rows: str, tmp_path: Path
) -> None:
    found = {}
    for parts in (1, 3, 12):  # the last with fewer rows than parts in a batch of the 17
        chosen = recipe(steps=6, micro_batches=parts)
        chosen = chosen.model_copy(update={"dropout": 0.0, "coupled": coupled})
        found[parts] = losses(here(chosen, rows, tmp_path / f"{parts}"))[-1]
    for parts in (3, 12):
        for name in ("validation/contrast", "validation/classify", "validation/total"):
            assert found[parts][name] == pytest.approx(found[1][name], rel=1e-3)


def test_a_run_does_not_begin_again_with_other_workers(rows: str, tmp_path: Path) -> None:
    logged = losses(here(recipe(steps=4), rows, tmp_path))
    assert last_step(str(tmp_path / "train")) == 4
    with pytest.raises(TrainError, match=r"4 steps were .* without .*; go on with --workers 0"):
        train(recipe(steps=6), rows, str(tmp_path), num_workers=1)
    of_ray = tmp_path / "ray" / "train"
    (of_ray / "step-00000004").mkdir(parents=True)
    assert last_step(str(of_ray)) == 4
    with pytest.raises(
        TrainError, match=r"4 steps were .* with .*; go on with --workers 1 or more"
    ):
        here(recipe(steps=6), rows, tmp_path / "ray")
    assert len(logged) == len(read_records(str(tmp_path / "train" / "logs"))) == 4


def test_other_rows_are_refused(rows: str, tmp_path: Path) -> None:
    here(recipe(steps=4), rows, tmp_path)
    (tmp_path / "more").mkdir()
    with pytest.raises(TrainError, match=r"other rows \(differs: fingerprint, rows\)"):
        here(recipe(steps=6), write_rows(tmp_path / "more", num_train=99), tmp_path)


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(rows: str, tmp_path: Path) -> None:
    broken = recipe(checkpoint_every=1).model_copy(update={"poison_step": 3})
    with pytest.raises(TrainError, match=r"step \d+: train/c\w+ is nan. .* in another --out"):
        here(broken, rows, tmp_path)
    logged = read_records(str(tmp_path / "train" / "logs"))
    saved = sorted((tmp_path / "train" / "checkpoints").glob("step-*"))
    last = checkpoint.read_state(saved[-1]).step if saved else 0
    assert last == len(logged)


def test_a_validation_that_is_not_finite_leaves_the_checkpoints_readable(
    rows: str, tmp_path: Path
) -> None:
    held_out = recipe(checkpoint_every=4).model_copy(update={"poison_step": 90})
    with pytest.raises(TrainError, match=r"step 6: validation/c\w+ is nan. Nothing of this step"):
        here(held_out, rows, tmp_path)
    saved = sorted((tmp_path / "train" / "checkpoints").glob("step-*"))
    assert [checkpoint.read_state(folder).step for folder in saved] == [4]
    assert len(read_records(str(tmp_path / "train" / "logs"))) == 5


def test_batches_that_cannot_be_cut_are_refused(rows: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="must be a multiple of workers"):
        here(recipe(micro_batches=5), rows, tmp_path)


def test_losses_that_all_weigh_nothing_are_refused(rows: str, tmp_path: Path) -> None:
    one = recipe().model_copy(update={"weights": {"classify": 0.0, "contrast": 0.01}})
    assert here(one, rows, tmp_path / "one").step
    none = recipe().model_copy(update={"weights": {"classify": 0.0, "contrast": 0.0}})
    with pytest.raises(TrainError, match=r"raise one of weights\.classify, weights\.contrast"):
        here(none, rows, tmp_path / "none")


_TRAIN = """
import sys
sys.path.insert(0, {support!r})
from tiny_recipe import TinyRecipe
from rec.runtime.train import train
recipe = TinyRecipe()
recipe = recipe.model_copy(update={{"train": recipe.train.model_copy(update={{"steps": 1000000}})}})
outcome = train(recipe, {rows!r}, {place!r}, num_workers=0)
print("stopped", outcome.stopped, outcome.step)
"""


@pytest.mark.slow
def test_sigterm_finishes_the_step_and_saves(rows: str, tmp_path: Path) -> None:
    support = str(Path(__file__).parent / "support")
    code = _TRAIN.format(support=support, rows=rows, place=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    records = tmp_path / "train" / "logs" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (records.exists() and records.stat().st_size):
        time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    step = int(printed.split()[-1])
    assert f"stopped True {step}" in printed
    last = max((tmp_path / "train" / "checkpoints").glob("step-*"))
    assert checkpoint.read_state(last).step == step
    assert read_records(str(records.parent))[-1]["step"] == step


def test_sigterm_in_the_last_step_is_told_and_the_same_call_exports(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, encoder = checkpoint.LocalStore.save, str(tmp_path / "encoder")

    def asked_to_stop(self: checkpoint.LocalStore, step: int, *given: Any) -> None:
        save(self, step, *given)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.LocalStore, "save", asked_to_stop)
        outcome = here(recipe(steps=6), rows, tmp_path, encoder=encoder)
    assert (outcome.step, outcome.stopped, outcome.encoder) == (6, True, None)
    again = here(recipe(steps=6), rows, tmp_path, encoder=encoder)
    assert (again.step, again.stopped, again.encoder) == (6, False, encoder)


def test_rows_that_were_altered_are_refused(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    shard = sorted(Path(rows).rglob("*.parquet"))[0]
    whole = bytearray(shard.read_bytes())
    whole[6] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(ArtifactError, match=f"{shard.name}: .*publish again"):
        here(recipe(steps=4), rows, tmp_path)
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("name", ["state.json", MODEL_FILE, "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    name: str, rows: str, tmp_path: Path
) -> None:
    here(recipe(steps=4, checkpoint_every=2, keep_checkpoints=3), rows, tmp_path)
    saved = sorted((tmp_path / "train" / "checkpoints").glob("step-*"))
    file = saved[-1] / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    longer = recipe(steps=6, checkpoint_every=2, keep_checkpoints=3)
    with pytest.raises(TrainError, match=f"{saved[-1]}: this checkpoint cannot be read .*remove"):
        here(longer, rows, tmp_path)
    shutil.rmtree(saved[-1])
    (saved[0].parent / ".left-by-a-kill").mkdir()
    assert here(longer, rows, tmp_path).step == 6
    assert not list(saved[0].parent.glob(".*"))


def test_a_notice_saves_where_no_checkpoint_is_due(rows: str, tmp_path: Path) -> None:
    job = Job(recipe(checkpoint_every=100, validate_every=100, steps=9), rows, str(tmp_path))
    store = checkpoint.LocalStore(tmp_path / "checkpoints", 9)
    asked = iter([False, False, False, False, True, *[False] * 9])
    ended = work(job, store, None, 1, notice=lambda: next(asked))
    assert (ended.step, ended.error) == (9, None)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000009"]
