"""The loop on Ray Train: kills, stops and continuations end with the losses of an unbroken run."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import on_ranks
from tiny_ranks import worked
from tiny_recipe import TinyRecipe, write_rows

from jobs import train as train_job
from rec import artifacts
from rec.runtime.train import train
from rec.train.engine import MODEL_FILE, TrainError
from rec.train.metrics import read_records

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
]
TIMES = ("rows_per_s", "data_wait", "memory_mb")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows"))


def recipe(**train: Any) -> TinyRecipe:
    base = TinyRecipe()
    return base.model_copy(update={"train": base.train.model_copy(update=train)})


def losses(logs: str) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_records(logs)]


def killing(recipe: TinyRecipe, place: Path) -> TinyRecipe:
    """The same recipe, whose worker kills itself when it first decodes some row."""
    row = random.randrange(90)
    return recipe.model_copy(update={"kill_file": str(place / "killed"), "kill_row": row})


def test_a_killed_rank_of_two_ends_with_the_losses_of_the_unbroken_run(
    ray_local: None, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path, misleading=True)
    chosen = recipe(steps=24, engine="deepspeed", micro_batches=2)
    chosen = chosen.model_copy(update={"weights": {"classify": 1.0, "contrast": 0.01}})
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)  # of a worker, two on a machine
    on_ranks(2, worked, chosen, rows, str(tmp_path / "whole"), threads)  # without Ray
    whole = losses(str(tmp_path / "whole" / "logs"))
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    broken = train(
        killing(chosen, tmp_path),
        rows,
        str(tmp_path / "broken"),
        num_workers=2,
        encoder=str(tmp_path / "encoder"),
    )
    assert signal.getsignal(signal.SIGINT) is on_ctrl_c  # what comes next can be interrupted too
    assert (tmp_path / "killed").exists()
    assert len(whole) == 24
    assert losses(broken.logs) == whole
    validated = [r for r in whole if "validation/total" in r]
    best = min(validated, key=lambda r: r["validation/total"])
    assert broken.metrics == {k: v for k, v in best.items() if k.startswith("validation/")}
    assert (best["step"], Path(broken.best).name) == (6, "step-00000006")
    metrics = artifacts.read_manifest(broken.encoder or "", "tiny-encoder").metrics
    assert metrics["step"] == 24  # the last one is exported, not the best
    assert metrics["validation/total"] == whole[-1]["validation/total"]


def test_a_job_told_to_stop_goes_on_and_past_a_damaged_checkpoint(
    ray_local: None, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "train" / "logs" / "metrics.jsonl"

    def job(out: Path, steps: int, *more: str) -> tuple[int, str, str]:
        command = ["--recipe", "tiny_recipe:TinyRecipe", "--rows", rows, "--out", str(out), *more]
        command += ["--set", f"train.steps={steps}", "train.schedule=constant"]
        command += ["train.checkpoint_every=4", "train.validate_every=4"]
        status = train_job.main([*command, "train.keep_checkpoints=3"])
        return status, *capsys.readouterr()

    def ask() -> None:
        while not (log.exists() and len(log.read_bytes().splitlines()) > 4):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    status, printed, _ = job(run, 100_000)
    told = re.search(r"stopped after step (\d+); run the same command again", printed)
    assert status == 0
    assert told, printed
    step = int(told[1])
    assert 4 < step < 100_000
    last = run / "train" / f"step-{step:08d}"
    file = last / MODEL_FILE
    file.write_bytes(file.read_bytes()[:100])
    status, _, error = job(run, step + 3)
    assert status == 1
    assert re.search(f"^train: {last}: this checkpoint cannot be read .* remove the", error, re.M)
    shutil.rmtree(last)
    status, printed, _ = job(run, step + 3)
    assert status == 0
    assert f"finished    {step + 3} steps" in printed
    assert job(tmp_path / "whole", step + 3, "--workers", "0")[0] == 0
    ended, whole = (losses(str(out / "train" / "logs")) for out in (run, tmp_path / "whole"))
    assert ended == whole
    assert [r["step"] for r in ended] == list(range(1, step + 4))


def test_workers_that_the_engine_is_not_for_are_refused_before_any_starts(
    rows: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="is one process, this run has 2"):
        train(recipe(), rows, str(tmp_path), num_workers=2)
    chosen = recipe(engine="ddp")
    with pytest.raises(TrainError, match="min_workers is 3, expected 1 to num_workers, 2"):
        train(chosen, rows, str(tmp_path), num_workers=2, min_workers=3)
    with pytest.raises(TrainError, match=r"batch_size 12 must be a multiple .* = 5 x 1"):
        train(chosen, rows, str(tmp_path), num_workers=6, min_workers=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("code", "told"), [(1, KeyboardInterrupt), (143, SystemExit)])
def test_ctrl_c_is_told_from_other_ends(
    code: int,
    told: type[BaseException],
    ray_local: None,
    rows: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fit(self: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fit)
    with pytest.raises(told):
        train(recipe(), rows, str(tmp_path), num_workers=1)


def test_a_full_disk_is_told_in_a_line_and_not_retried(
    ray_local: None, rows: str, tmp_path: Path
) -> None:
    full = recipe(engine="ddp").model_copy(update={"full_disk": True})
    with pytest.raises(TrainError, match=r"^\[Errno 28\] No space left on device: '.*'$"):
        train(full, rows, str(tmp_path), num_workers=2)
    # a second attempt would have begun its log again
    assert len(read_records(str(tmp_path / "train" / "logs"))) == full.train.checkpoint_every


def test_an_error_of_one_rank_ends_the_others(ray_local: None, rows: str, tmp_path: Path) -> None:
    """They would wait for it in a collective, half an hour on gloo."""
    one = recipe(engine="ddp").model_copy(update={"refused_row": 40})
    with pytest.raises(TrainError, match=r"^row 40 is refused$"):
        train(one, rows, str(tmp_path), num_workers=2)
