"""Another number of ranks goes on where the last one was, under ZeRO as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks import on_ranks
from tiny_ranks import worked
from tiny_recipe import TinyRecipe, write_rows

from rec.train.checkpoint import read_state
from rec.train.metrics import read_records

WORLDS = (2, 1, 2)
STEPS = (4, 8, 12)


def resized(recipe: TinyRecipe, rows: str, folder: Path) -> list[dict[str, Any]]:
    """The records of a run on each of WORLDS in turn, to each of STEPS."""
    for world, steps in zip(WORLDS, STEPS, strict=True):
        train = recipe.train.model_copy(update={"steps": steps, "schedule": "constant"})
        on_ranks(world, worked, recipe.model_copy(update={"train": train}), rows, str(folder))
        for rank in range(world):
            assert (folder / f"ended-{rank}").read_text() == f"{steps} None"
        state = read_state(folder / "checkpoint")
        assert (state.step, state.world) == (steps, world)
    return read_records(str(folder / "logs"))


def chosen(**train: Any) -> TinyRecipe:
    base = TinyRecipe(dropout=0.0)
    return base.model_copy(update={"train": base.train.model_copy(update=train)})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def reference(rows: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Without anything that is cut by ranks."""
    return resized(chosen(engine="ddp"), rows, tmp_path_factory.mktemp("ddp"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_continue_on_two_then_one_then_two_ranks(
    stage: int, rows: str, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = resized(chosen(engine="deepspeed", zero_stage=stage), rows, tmp_path)
    assert [one["step"] for one in found] == list(range(1, STEPS[-1] + 1))
    for ours, theirs in zip(found, reference, strict=True):
        for name in ("train/total", "train/classify", "train/contrast", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4), (ours["step"], name)
    # learned, so that a state which was lost would show
    assert found[-1]["train/total"] < 0.9 * found[0]["train/total"]
