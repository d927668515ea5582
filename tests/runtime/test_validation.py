"""Validation beside the training: the figures of one in line, whatever becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, WorkerCrashedError
from tiny_recipe import TinyBatch, TinyRecipe, write_rows

from rec import artifacts
from rec.runtime.checkpoints import SNAPSHOT, forget_removed
from rec.runtime.train import TrainOutcome, train
from rec.runtime.validation import (
    FOLDER,
    beside,
    forget_figures,
    new_figures,
    spare_gpu,
    validate_checkpoint,
)
from rec.train.engine import TrainError
from rec.train.metrics import read_records

HELD_OUT = 95  # one of the rows that are


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows"), misleading=True)


def recipe(aside: bool = True, **more: Any) -> TinyRecipe:
    """Validated after 6 and after 12 steps; a checkpoint is due for no other reason."""
    base = TinyRecipe()
    changed = {"validate_aside": aside, "checkpoint_every": 100}
    more |= {
        "weights": {"classify": 1.0, "contrast": 0.01},
        "train": base.train.model_copy(update=changed),
    }
    return base.model_copy(update=more)


def validations(outcome: TrainOutcome) -> dict[int, dict[str, float]]:
    """The records that have figures of a validation, by step: these alone."""
    return {
        int(record["step"]): {k: v for k, v in record.items() if k.startswith("validation/")}
        for record in read_records(outcome.logs)
        if "validation/total" in record
    }


@pytest.mark.ray
@pytest.mark.slow
def test_the_figures_are_those_of_a_validation_in_line(
    ray_local: None, rows: str, s3: str, tmp_path: Path
) -> None:
    inline = train(recipe(aside=False), rows, str(tmp_path), num_workers=0)
    place = f"{s3}/encoder"
    beside = train(recipe(), rows, f"{s3}/run", num_workers=1, encoder=place)
    expected = validations(inline)
    assert list(expected) == [6, 12]
    found = validations(beside)
    assert found.keys() == expected.keys()
    for step, figures in found.items():
        assert figures == pytest.approx(expected[step], rel=1e-4)
    assert len(read_records(beside.logs)) == 12 + 2  # those of the validations came later
    # the first is the best, as the rows mislead
    assert Path(beside.best).name == Path(inline.best).name == "step-00000006"
    assert beside.metrics == found[6]
    assert Path(beside.last).name == "step-00000012"
    metrics = artifacts.read_manifest(place, "tiny-encoder").metrics
    assert metrics == {"step": 12, **found[12]}


@pytest.mark.ray
@pytest.mark.slow
def test_one_that_fails_or_dies_does_not_end_the_training_nor_is_one_lost(
    ray_local: None, rows: str, tmp_path: Path
) -> None:
    failing = recipe(refused_row=HELD_OUT)
    ended = train(failing, rows, str(tmp_path / "failing"), num_workers=1)
    assert (ended.step, ended.metrics) == (12, {})
    assert validations(ended) == {}
    # the worker of the first is killed, which is tried again
    killed = tmp_path / "killed"
    dying = recipe(kill_file=str(killed), kill_row=HELD_OUT)
    ended = train(dying, rows, str(tmp_path / "dying"), num_workers=1)
    assert killed.exists()
    whole = validations(ended)
    assert list(whole) == [6, 12]

    # as if the job had been lost before both were over: the first has its figures, the second none
    run = tmp_path / "dying" / "train"
    place = run / SNAPSHOT
    listed = json.loads(place.read_text())
    results = sorted(listed["checkpoint_results"], key=lambda one: one["checkpoint_dir_name"])
    for one in results:
        one["metrics"] = {"step": one["metrics"]["step"], "score": -1e300}
    listed["pending_training_results"] = results
    listed["pending_validation_specs"] = [True, True]
    listed["validated_checkpoint_dir_names"] = []
    place.write_text(json.dumps(listed))
    first, second = (run / FOLDER / f"step-{step:08d}.json" for step in (6, 12))
    first.write_text(json.dumps({"validation/total": 0.25}))
    second.unlink()
    log = run / "logs" / "metrics.jsonl"
    kept = [x for x in log.read_text().splitlines() if "validation/total" not in x]
    log.write_text("\n".join(kept) + "\n")
    again = train(dying, rows, str(tmp_path / "dying"), num_workers=1)
    assert validations(again) == {6: {"validation/total": 0.25}, 12: whole[12]}
    assert again.metrics == {"validation/total": 0.25}  # was read, not made again


@pytest.mark.parametrize(
    ("use_gpu", "there", "expected"),
    [(True, 0, 0), (True, 1, 0), (True, 2, 0), (True, 3, 1), (False, 3, 0), (False, 0, 0)],
)
def test_a_gpu_is_taken_where_one_is_left_now(
    monkeypatch: pytest.MonkeyPatch, use_gpu: bool, there: int, expected: int
) -> None:
    """One that is started when it is asked for may never be: every validation would wait."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": there} if there else {})
    assert spare_gpu(use_gpu, num_workers=2) == expected


class Tasks:
    """In place of Ray's: how each is asked for; each ends as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: list[Exception | dict[str, float]] = []
        self.options: list[dict[str, Any]] = []
        import ray.train  # noqa: F401  (which has tasks of its own)

        monkeypatch.setattr("ray.remote", self._remote)
        monkeypatch.setattr("ray.get", lambda _: self._end())

    def _remote(self, **options: Any) -> Any:
        return lambda _: SimpleNamespace(remote=lambda *_: self.options.append(options))

    def _end(self) -> dict[str, float]:
        ended = self.ends.pop(0)
        if isinstance(ended, Exception):
            raise ended
        return ended


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    return Tasks(monkeypatch)


def validated(num_gpus: int = 0) -> dict[str, Any]:
    """By what Ray Train is told to do with a checkpoint."""
    from ray.train import Checkpoint

    config = beside(recipe(), "rows", "run", num_gpus, num_workers=1)
    return config.fn(Checkpoint("/run/step-00000006"))


def test_without_a_gpu_of_its_own_it_sees_none(tasks: Tasks) -> None:
    """Ray hides them no longer, and the training's would be taken."""
    tasks.ends = [{"validation/total": 0.5}] * 2
    assert validated() == {"score": -0.5, "validation/total": 0.5}
    (alone,) = tasks.options
    assert (alone["num_cpus"], alone["num_gpus"]) == (1, 0)
    assert alone["runtime_env"] == {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    validated(num_gpus=1)
    assert tasks.options[1]["num_gpus"] == 1
    assert not tasks.options[1].get("runtime_env")


def test_one_whose_worker_is_lost_is_tried_once_more_and_does_not_last_for_ever(
    tasks: Tasks,
) -> None:
    """Ray itself would begin a task that its memory monitor ended again without limit."""
    tasks.ends = [OutOfMemoryError("no memory"), {"validation/total": 0.5}]
    assert validated()["score"] == -0.5
    assert [one["max_retries"] for one in tasks.options] == [0, 0]
    tasks.ends = [OutOfMemoryError("no memory"), WorkerCrashedError(), {"validation/total": 0.5}]
    with pytest.raises(WorkerCrashedError):
        validated()
    tasks.ends = [TrainError("not finite"), {"validation/total": 0.5}]
    with pytest.raises(TrainError):  # this would come again
        validated()
    assert beside(recipe(), "rows", "run", 0, num_workers=1).task_config.timeout_s == 12 * 3600


@pytest.mark.parametrize("coupled", [True, False])
def test_it_takes_no_more_rows_at_once_than_a_rank_did(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coupled: bool
) -> None:
    inline = train(recipe(aside=False, coupled=coupled), rows, str(tmp_path), num_workers=0)
    sizes: list[int] = []
    rows_of = TinyBatch.rows

    def cut(batch: TinyBatch, start: int, stop: int) -> TinyBatch:
        sizes.append(stop - start)
        return rows_of(batch, start, stop)

    monkeypatch.setattr(TinyBatch, "rows", cut)
    found = validate_checkpoint(recipe(coupled=coupled), rows, inline.last, num_workers=3)
    assert found == pytest.approx(validations(inline)[12], rel=1e-4)
    assert len(sizes) == 2 * 3
    assert max(sizes) <= 12 // 3


def test_figures_of_steps_to_come_are_forgotten(tmp_path: Path) -> None:
    assert list(new_figures(str(tmp_path), ())) == []
    (tmp_path / FOLDER).mkdir()
    for step in (4, 8, 12):
        (tmp_path / FOLDER / f"step-{step:08d}.json").write_text(json.dumps({"a": step}))
    assert list(new_figures(str(tmp_path), {4})) == [(8, {"a": 8}), (12, {"a": 12})]
    forget_figures(str(tmp_path), 8)
    assert list(new_figures(str(tmp_path), {4})) == [(8, {"a": 8})]


def snapshot(place: Path) -> dict[str, Any]:
    """Ray's list of two checkpoints that wait for their validation, written there."""
    results = [{"version": 0, "checkpoint_dir_name": n, "metrics": {}} for n in ("one", "two")]
    listed = {
        "checkpoint_results": results,
        "checkpoint_report_indices": [0, 1],
        "latest_checkpoint_result": results[1],
        "pending_training_results": results,
        "pending_validation_specs": [True, True],
    }
    place.write_text(json.dumps(listed))
    return listed


def test_a_removed_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    results = snapshot(tmp_path / SNAPSHOT)["checkpoint_results"]
    (tmp_path / "one").mkdir()
    forget_removed(str(tmp_path))
    left = json.loads((tmp_path / SNAPSHOT).read_text())
    assert left["pending_training_results"] == results[:1]
    assert left["pending_validation_specs"] == [True]


def test_without_validation_aside_none_is_waited_for(tmp_path: Path) -> None:
    """Ray would keep these checkpoints for a validation that nobody makes."""
    place = tmp_path / SNAPSHOT
    listed = snapshot(place)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    forget_removed(str(tmp_path))
    assert json.loads(place.read_text()) == listed
    forget_removed(str(tmp_path), aside=False)
    none = {"pending_training_results": [], "pending_validation_specs": []}
    assert json.loads(place.read_text()) == listed | none
    forget_removed(str(tmp_path), aside=False)

    # a list of a Ray that did not know any
    (tmp_path / "one").rmdir()
    place.write_text(json.dumps({k: v for k, v in listed.items() if k not in none}))
    forget_removed(str(tmp_path))
    assert json.loads(place.read_text())["checkpoint_results"] == listed["checkpoint_results"][1:]


def test_without_workers_there_is_nothing_beside_the_training(rows: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"validate_aside.*--workers 1 or more"):
        train(recipe(), rows, str(tmp_path), num_workers=0)
