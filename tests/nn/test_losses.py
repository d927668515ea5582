"""Every loss against a plain loop, values and gradients, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rec.nn.losses.infonce import infonce
from rec.nn.losses.masked_tokens import masked_tokens
from rec.nn.losses.multilabel import multilabel


def _infonce_loop(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=z_a.dtype)
    for own, other in ((z_a, z_b), (z_b, z_a)):
        for i in range(len(own)):
            anchor = own[i] / own[i].norm()

            def similarity(vector: Tensor, anchor: Tensor = anchor) -> Tensor:
                return (anchor @ vector / vector.norm() / temperature).exp()

            below = sum(similarity(v) for v in other)
            below = below + sum(similarity(own[j]) for j in range(len(own)) if j != i)
            total = total - (similarity(other[i]) / below).log()
    return total


def test_infonce_equals_the_loop_in_value_and_gradient():
    torch.manual_seed(0)
    z_a, z_b = (torch.randn(7, 5, requires_grad=True) for _ in range(2))
    term = infonce(z_a, z_b, 0.2)
    expected = _infonce_loop(z_a, z_b, 0.2)
    torch.testing.assert_close(term.total, expected)
    assert term.count == 14
    found = torch.autograd.grad(term.total, (z_a, z_b))
    for gradient, reference in zip(found, torch.autograd.grad(expected, (z_a, z_b)), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_infonce_of_one_pair_is_zero_and_of_none_keeps_its_gradient():
    one = torch.randn(1, 4, requires_grad=True)
    assert infonce(one, one, 0.1).total == 0
    none = torch.randn(0, 4, requires_grad=True)
    term = infonce(none, none, 0.1)
    assert term.total == 0
    assert term.count == 0
    assert torch.autograd.grad(term.total, none)[0].shape == (0, 4)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 6), padding=st.integers(0, 4), seed=st.integers(0, 1000))
def test_infonce_padding_changes_nothing(rows: int, padding: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, rows + padding, 3, generator=generator)
    mask = torch.zeros(rows + padding, dtype=torch.bool)
    mask[torch.randperm(rows + padding, generator=generator)[:rows]] = True
    padded, plain = infonce(z[0], z[1], 0.5, mask), infonce(z[0][mask], z[1][mask], 0.5)
    torch.testing.assert_close(padded, plain)


def test_infonce_under_bf16_autocast_computes_in_fp32():
    z = torch.randn(2, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = infonce(z[0], z[1], 0.1).total
    torch.testing.assert_close(inside, infonce(z[0], z[1], 0.1).total)


def test_masked_tokens_equals_the_loop_and_projects_only_masked_positions():
    torch.manual_seed(0)
    states = torch.randn(3, 4, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    targets = torch.full((3, 4), -100)
    targets[0, 1], targets[2, 0], targets[2, 3] = 7, 0, 10
    seen: list[int] = []

    def project(chosen: Tensor) -> Tensor:
        seen.append(len(chosen))
        return chosen @ weight.T

    term = masked_tokens(states, targets, project)
    expected = torch.zeros(())
    for row, column in ((0, 1), (2, 0), (2, 3)):
        scores = weight @ states[row, column]
        expected = expected - scores[targets[row, column]] + scores.exp().sum().log()
    torch.testing.assert_close(term.total, expected)
    assert term.count == 3
    assert seen == [3]
    found = torch.autograd.grad(term.total, (states, weight))
    reference = torch.autograd.grad(expected, (states, weight))
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)


def test_masked_tokens_without_any_is_zero_with_zero_gradients():
    states, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    term = masked_tokens(states, torch.full((2, 3), -100), lambda chosen: chosen @ weight.T)
    assert (term.total.item(), term.count.item()) == (0, 0)
    gradients = torch.autograd.grad(term.total, (states, weight))
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


def _multilabel_loop(
    logits: Tensor, ids: Tensor, weights: Tensor, negatives: float, focusing: float
) -> tuple[Tensor, float]:
    total, count = torch.zeros((), dtype=logits.dtype), 0.0
    for row in range(len(logits)):
        positive = {int(i): float(w) for i, w in zip(ids[row], weights[row], strict=True) if w > 0}
        if not positive:
            continue
        for label in range(logits.shape[1]):
            score = logits[row, label]
            if label in positive:
                total = total + positive[label] * (1 + (-score).exp()).log()
                count += positive[label]
            else:
                focus = (1 / (1 + (-score).exp())) ** focusing
                total = total + negatives * focus * (1 + score.exp()).log()
    return total, count


@pytest.mark.parametrize(("negatives", "focusing"), [(1.0, 0.0), (0.3, 0.0), (0.5, 2.0)])
def test_multilabel_equals_the_loop_in_value_and_gradient(negatives: float, focusing: float):
    torch.manual_seed(0)
    logits = torch.randn(4, 6, requires_grad=True)
    ids = torch.tensor([[0, 3, 0], [5, 0, 0], [0, 0, 0], [2, 1, 4]])
    weights = torch.tensor([[0.5, 2.0, 0.0], [1.5, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.1, 0.7]])
    term = multilabel(logits, ids, weights, negatives=negatives, focusing=focusing)
    expected, count = _multilabel_loop(logits, ids, weights, negatives, focusing)
    torch.testing.assert_close(term.total, expected)
    assert term.count.item() == pytest.approx(count)
    (found,) = torch.autograd.grad(term.total, logits)
    (reference,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)
    assert found[2].abs().sum() == 0, "a row without labels must contribute nothing"


@settings(max_examples=20, deadline=None)
@given(padding=st.integers(0, 3), filler=st.integers(0, 5), seed=st.integers(0, 1000))
def test_multilabel_padding_changes_nothing(padding: int, filler: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, generator=generator)
    ids = torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(3)])
    weights = torch.rand(3, 2, generator=generator) + 0.1
    more = torch.cat([ids, torch.full((3, padding), filler)], dim=1)
    none = torch.cat([weights, torch.zeros(3, padding)], dim=1)
    torch.testing.assert_close(multilabel(logits, more, none), multilabel(logits, ids, weights))


def test_multilabel_weight_moves_the_optimum_as_it_should():
    """A label of weight w beside one negative row of the same label: best s = log(w)."""
    weights = torch.tensor([[3.0], [1.0]])
    ids = torch.tensor([[0], [1]])  # row 0 has the label, row 1 has another one
    best = torch.tensor([math.log(3.0)])
    logits = torch.zeros(2, 2)
    column = torch.tensor([1.0, 0.0])
    score = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        multilabel(logits + score * column, ids, weights).total, score
    )
    assert gradient.abs() < 1e-6
