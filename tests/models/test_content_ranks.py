"""The parameter gradient of one process, found by several ranks that lack different modalities."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from content_cases import exact, from_ranks, gradients
from torch import Tensor

TERMS = ["infonce", "key_terms", "labels"]


@cache
def one_process(rows: str, only: str) -> dict[str, Tensor]:
    return gradients(exact(), rows, only, 1)


def assert_agrees(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    assert largest > 1e-2
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("num_parts", [2, 3])
@pytest.mark.parametrize("only", [*TERMS, "all"])
def test_micro_batches_by_gradcache_agree(content_rows: str, only: str, num_parts: int):
    assert_agrees(
        gradients(exact(), content_rows, only, num_parts), one_process(content_rows, only)
    )


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("only", TERMS)
def test_ddp_agrees(content_rows: str, tmp_path: Path, world: int, only: str):
    recipe = exact(engine="ddp")
    found = from_ranks(world, gradients, tmp_path, recipe, content_rows, only, 1)
    assert_agrees(found, one_process(content_rows, only))


@pytest.mark.slow
def test_ddp_with_micro_batches_agrees(content_rows: str, tmp_path: Path):
    recipe = exact(engine="ddp")
    found = from_ranks(3, gradients, tmp_path, recipe, content_rows, "all", 2)
    assert_agrees(found, one_process(content_rows, "all"))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("world", [2, 3])
def test_zero_agrees(content_rows: str, tmp_path: Path, zero_stage: int, world: int):
    recipe = exact(engine="deepspeed", zero_stage=zero_stage)
    found = from_ranks(world, gradients, tmp_path, recipe, content_rows, "all", 1)
    assert_agrees(found, one_process(content_rows, "all"))
