"""Micro-batches leave the gradient of the whole batch, and losses are normalised by counts."""

from __future__ import annotations

import pytest
import torch
from tiny_ranks import batch_of
from tiny_recipe import TinyBatch, TinyModel, TinyRecipe
from torch import Tensor

from rec.train.engine import PlainEngine, TrainError
from rec.train.gradient import Sums, backpropagate, derive


def gradients(recipe: TinyRecipe, parts: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    torch.manual_seed(0)
    model = recipe.build("")
    model.train()
    engine = PlainEngine(recipe, model, torch.device("cpu"))
    sums = backpropagate(engine, recipe.weights, batch_of(), parts, seed=7)
    return {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }, sums.means()


def in_one_graph(recipe: TinyRecipe, parts: int) -> tuple[dict[str, Tensor], float]:
    """The reference: all parts with their own dropout, joined in a single graph."""
    torch.manual_seed(0)
    model = recipe.build("")
    model.train()
    batch: TinyBatch = batch_of()
    size = len(batch) // parts
    found = []
    for i in range(parts):
        torch.manual_seed(derive(7, i))
        found.append(model.encode(batch.rows(i * size, (i + 1) * size)))
    joined = {k: torch.cat([r[k] for r, _ in found]) for k in found[0][0]}
    coupled = model.couple(joined)["contrast"]
    total = sum(losses["classify"].total for _, losses in found)
    count = sum(losses["classify"].count for _, losses in found)
    loss = 0.5 * total / count + coupled.total / coupled.count
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return gradients, float(loss.detach())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_cached_gradient_equals_one_graph(dropout: float, parts: int) -> None:
    recipe = TinyRecipe(dropout=dropout)
    found, means = gradients(recipe, parts)
    expected, loss = in_one_graph(recipe, parts)
    assert found.keys() == expected.keys() == dict(TinyModel(0.0).named_parameters()).keys()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert means["total"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_equal_the_whole_batch(coupled: bool, parts: int) -> None:
    recipe = TinyRecipe(dropout=0.0, coupled=coupled)
    found, found_means = gradients(recipe, parts)
    expected, means = gradients(recipe, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found_means == pytest.approx(means, rel=1e-5)


def test_a_term_that_nothing_counted_adds_nothing() -> None:
    recipe = TinyRecipe(dropout=0.0)
    model = recipe.build("")
    engine = PlainEngine(recipe, model, torch.device("cpu"))
    batch = batch_of().rows(6, 12)  # no labels there
    sums = backpropagate(engine, recipe.weights, batch, 1, seed=0)
    assert sums.means()["classify"] == 0.0
    assert model.classifier.weight.grad is not None
    assert float(model.classifier.weight.grad.abs().sum()) == 0.0


def test_terms_and_weights_must_have_the_same_names() -> None:
    recipe = TinyRecipe(weights={"classify": 1.0, "contras": 1.0})
    engine = PlainEngine(recipe, recipe.build(""), torch.device("cpu"))
    with pytest.raises(TrainError, match=r"\['classify', 'contrast'\].*'contras'\]"):
        Sums(engine.call("forward", batch_of()), engine, recipe.weights)
