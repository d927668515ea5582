"""The parameter gradient of one process, found by several ranks that lack different modalities."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from content_cases import exact, from_ranks, gradients
from torch import Tensor

from rec.recipes.content import ContentRecipe

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


def each(recipe: ContentRecipe, rows: str, terms: list[str]) -> dict[str, dict[str, Tensor]]:
    return {only: gradients(recipe, rows, only, 1) for only in terms}


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "engine",
    [
        {"engine": "ddp"},
        *({"engine": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)),
    ],
    ids=["ddp", "zero1", "zero2", "zero3"],
)
def test_every_term_agrees(content_rows: str, tmp_path: Path, world: int, engine: dict[str, Any]):
    # ZeRO gathers every parameter by itself, for seconds a term: of three ranks the sum has to do
    terms = ["all"] if world == 3 and "zero_stage" in engine else [*TERMS, "all"]
    found = from_ranks(world, each, tmp_path, exact(**engine), content_rows, terms)
    for only, values in found.items():
        assert_agrees(values, one_process(content_rows, only))
    assert list(found) == terms


@pytest.mark.slow
def test_ddp_with_micro_batches_agrees(content_rows: str, tmp_path: Path):
    recipe = exact(engine="ddp")
    found = from_ranks(3, gradients, tmp_path, recipe, content_rows, "all", 2)
    assert_agrees(found, one_process(content_rows, "all"))
