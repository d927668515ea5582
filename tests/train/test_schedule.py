"""Schedules and clipping against references."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_ranks import batch_of
from tiny_recipe import TinyRecipe

from rec.config import ConfigError
from rec.train.engine import PlainEngine, clip_gradients
from rec.train.gradient import backpropagate
from rec.train.recipe import TrainConfig
from rec.train.schedule import lr_factor


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule_equals_torch(kind: str) -> None:
    train = TrainConfig(steps=50, warmup_steps=7, schedule=kind)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    after = {
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 43),
        "linear": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 43),
        "constant": torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }[kind]
    for step in range(50):
        if step < 7:
            assert lr_factor(step, train) == (step + 1) / 7
            continue
        expected = optimizer.param_groups[0]["lr"]
        assert math.isclose(lr_factor(step, train), expected, rel_tol=1e-6, abs_tol=1e-9)
        optimizer.step()
        after.step()


def test_no_warmup_and_an_end_beyond_the_schedule() -> None:
    train = TrainConfig(steps=10, warmup_steps=0)
    assert lr_factor(0, train) == 1.0
    assert lr_factor(10, train) == pytest.approx(0.0)
    assert lr_factor(12, train) == pytest.approx(0.0)


def test_clipping_equals_a_plain_loop_and_zero_means_none() -> None:
    def gradients() -> torch.nn.Module:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        model(torch.randn(5, 4)).pow(2).sum().backward()
        return model

    model, before = gradients(), [p.grad.clone() for p in gradients().parameters()]  # type: ignore[union-attr]
    norm = math.sqrt(sum(float((g * g).sum()) for g in before))
    assert float(clip_gradients(model, 0.5)) == pytest.approx(norm)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * 0.5 / (norm + 1e-6))
    model = gradients()
    assert float(clip_gradients(model, 0.0)) == pytest.approx(norm)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_groups_keep_the_ratio_of_their_rates() -> None:
    recipe = TinyRecipe()
    engine = PlainEngine(recipe, recipe.build(""), torch.device("cpu"))
    backpropagate(engine, recipe.weights, batch_of(), 1, seed=0)
    engine.step(0.25)
    rates = [group["lr"] for group in engine._optimizer.param_groups]
    assert rates == [0.25e-2, 0.125e-2]


@pytest.mark.parametrize(
    "wrong", ["steps=0", "batch_size=-8", "micro_batches=0", "log_every=0", "checkpoint_every=0"]
)
def test_numbers_that_no_run_can_have_are_refused_by_name(wrong: str) -> None:
    with pytest.raises(ConfigError, match=rf"{wrong.split('=')[0]}: .* greater than or equal to 1"):
        TrainConfig().override([wrong])
