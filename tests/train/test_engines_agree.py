"""Every engine, on any number of ranks and micro-batches, steps to the same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file
from tiny_ranks import WEIGHTS, steps, worked
from tiny_recipe import TinyRecipe, write_rows
from torch import Tensor

from rec.train.engine import TrainError

STEPS = 3


def recipe(**train: Any) -> TinyRecipe:
    base = TinyRecipe(dropout=0.0)
    return base.model_copy(update={"train": base.train.model_copy(update=train)})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("reference")
    steps(recipe(), str(folder), STEPS, None)
    return load_file(folder / WEIGHTS)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def moved(reference: dict[str, Tensor]) -> bool:
    torch.manual_seed(0)
    start = dict(TinyRecipe(dropout=0.0).build("").named_parameters())
    return all(bool((reference[name] != value).any()) for name, value in start.items())


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_ddp_agrees(
    world: int, micro_batches: int, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    assert moved(reference)
    chosen = recipe(engine="ddp", micro_batches=micro_batches)
    on_ranks(world, steps, chosen, str(tmp_path), STEPS, 2 if world == 2 else None)
    assert_close(load_file(tmp_path / WEIGHTS), reference, 2e-5)


ZERO_RUNS = [
    (0, 2, 2),
    (1, 1, 1),
    (1, 2, 2),
    (1, 3, 1),
    (2, 2, 1),
    (2, 3, 2),
    (3, 2, 1),
    (3, 3, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "world", "micro_batches"), ZERO_RUNS)
def test_zero_agrees_and_resumes(
    stage: int, world: int, micro_batches: int, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    chosen = recipe(engine="deepspeed", zero_stage=stage, micro_batches=micro_batches)
    on_ranks(world, steps, chosen, str(tmp_path), STEPS, 2 if world == 2 else None)
    assert_close(load_file(tmp_path / WEIGHTS), reference, 2e-5)


@pytest.mark.slow
def test_zero_3_accumulates_losses_that_do_not_couple_rows(tmp_path: Path) -> None:
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    alone.mkdir()
    sharded.mkdir()
    local = recipe().model_copy(update={"coupled": False})
    steps(local, str(alone), STEPS, None)
    cut = recipe(engine="deepspeed", zero_stage=3, micro_batches=3)
    on_ranks(2, steps, cut.model_copy(update={"coupled": False}), str(sharded), STEPS, None)
    assert_close(load_file(sharded / WEIGHTS), load_file(alone / WEIGHTS), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_in_bf16_stays_near_fp32(
    stage: int, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    parts = 1 if stage == 3 else 2
    chosen = recipe(engine="deepspeed", zero_stage=stage, precision="bf16", micro_batches=parts)
    on_ranks(2, steps, chosen, str(tmp_path), STEPS, None)
    found = load_file(tmp_path / WEIGHTS)
    torch.testing.assert_close(found.pop("norms"), reference["norms"], rtol=2e-2, atol=0)
    # single weights whose gradient is near 0 may step the other way (Adam), so: all together
    error = sum(float((found[n] - reference[n]).square().sum()) for n in found) ** 0.5
    torch.manual_seed(0)
    start = dict(TinyRecipe(dropout=0.0).build("").named_parameters())
    path = sum(float((reference[n] - start[n].detach()).square().sum()) for n in found) ** 0.5
    assert error < 0.1 * path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"zero_stage": 3, "micro_batches": 2}, "ZeRO 3 with train.micro_batches > 1"),
        ({"zero_stage": 0, "precision": "bf16"}, "keeps no fp32 copy"),
    ],
)
def test_what_deepspeed_does_wrongly_is_refused(
    chosen: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=reason):
        on_ranks(1, steps, recipe(engine="deepspeed", **chosen), str(tmp_path), STEPS, None)


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_engines_of_ranks_are_refused_without_any(engine: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=f"'{engine}' needs a process group.*--workers 1 or more"):
        steps(recipe(engine=engine), str(tmp_path), STEPS, None)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_damaged_part_of_one_rank_is_named_by_all(left: float, tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    on_ranks(2, worked, recipe(engine="deepspeed", steps=2), rows, str(tmp_path))
    file = next((tmp_path / "checkpoint" / "deepspeed").rglob("*zero_pp_rank_1_*"))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * left)])
    on_ranks(2, worked, recipe(engine="deepspeed", steps=4), rows, str(tmp_path))
    for rank in range(2):
        ended = (tmp_path / f"ended-{rank}").read_text()
        assert f"{tmp_path / 'checkpoint'}: this checkpoint cannot be read (" in ended
