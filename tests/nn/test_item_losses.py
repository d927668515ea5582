"""Losses over items against the plain formula, values and gradients, in tiles of every shape."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rec.contract import LossTerm
from rec.nn.losses import tiles
from rec.nn.losses.bce import gbce
from rec.nn.losses.softmax import candidate_softmax, cross_entropy, sampled_softmax

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return values.to(dtype).requires_grad_()


def integers(count: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed))


def compare(term: LossTerm, expected: Tensor, inputs: tuple[Tensor, ...], factor: float = 1.0):
    torch.testing.assert_close(term.total, expected, **CLOSE)
    found = torch.autograd.grad(term.total * factor, inputs)
    reference = torch.autograd.grad(expected * factor, inputs)
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.fixture(params=[(1 << 20, 32), (64, 4), (20, 20), (30, 2), (1, 1)], ids=str)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, several tiles of columns, one column or one row at a time, single elements."""
    monkeypatch.setattr(tiles, "_CPU_TILE", request.param[0])
    monkeypatch.setattr(tiles, "_CPU_ROWS", request.param[1])


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_cross_entropy_is_that_of_the_whole_matrix(scale: float):
    states, items, targets = drawn(13, 5, scale=scale), drawn(17, 5, seed=1), integers(13, 17)
    expected = F.cross_entropy(states @ items.T, targets, reduction="sum")
    term = cross_entropy(states, items, targets)
    assert term.count == 13
    assert not term.count.requires_grad
    compare(term, expected, (states, items), factor=0.3)


def test_gradient_in_float64_is_that_of_differences():
    states, items = drawn(4, 3, dtype=torch.float64), drawn(6, 3, seed=1, dtype=torch.float64)
    targets = integers(4, 6)
    assert torch.autograd.gradcheck(
        lambda s, i: cross_entropy(s, i, targets).total, (states, items), fast_mode=False
    )


def test_under_bf16_autocast_as_near_as_the_plain_one():
    states, items, targets = drawn(300, 64), drawn(500, 64, seed=1, scale=0.3), integers(300, 500)
    exact = F.cross_entropy(states @ items.T, targets, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(states, items, targets).total
        plain = F.cross_entropy((states @ items.T).float(), targets, reduction="sum")
    assert ours.dtype == torch.float32
    reference = torch.autograd.grad(exact, (states, items))

    def error(total: Tensor) -> list[float]:
        gradients = torch.autograd.grad(total, (states, items))
        pairs = zip(gradients, reference, strict=True)
        return [float((g - r).norm() / r.norm()) for g, r in pairs]

    torch.testing.assert_close(ours, exact, rtol=2e-3, atol=0)
    assert all(a <= 1.2 * b for a, b in zip(error(ours), error(plain), strict=True))


def test_scores_are_never_all_in_memory():
    states, items, targets = drawn(2000, 4), drawn(3000, 4, seed=1), integers(2000, 3000)
    seen: list[int] = []
    plain = tiles.Tiles.scores

    def watched(self: tiles.Tiles, rows: slice, columns: slice) -> Tensor:
        scores = plain(self, rows, columns)
        seen.append(scores.numel())
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles.Tiles, "scores", watched)
        cross_entropy(states, items, targets)
    assert sum(seen) == 2000 * 3000
    assert max(seen) <= 1 << 20


def test_without_gradient_nothing_is_differentiated(monkeypatch: pytest.MonkeyPatch):
    states, items, targets = drawn(5, 3), drawn(7, 3, seed=1), integers(5, 7)
    expected = cross_entropy(states, items, targets).total.detach()
    monkeypatch.setattr(tiles.Gradients, "add", lambda *_: pytest.fail("a gradient was taken"))
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(states, items, targets).total, expected)


@pytest.mark.parametrize("count", [0, 3])
def test_no_states_or_no_candidates_give_zero_and_zero_gradients(count: int):
    states, positive, candidates = drawn(count, 4), drawn(count), drawn(3 - count, 4)
    term = candidate_softmax(states, positive, candidates, torch.full((count,), -1))
    assert (term.total.item(), term.count.item()) == (0, count)
    for gradient in torch.autograd.grad(term.total, (states, positive, candidates)):
        assert not gradient.any()


def _sampled_loop(
    states: Tensor, positives: Tensor, targets: Tensor, items: Tensor, sample: Tensor, log: Tensor
) -> Tensor:
    total = torch.zeros(())
    for row in range(len(states)):
        own = states[row] @ positives[row]
        below = own.exp()
        for place, item in enumerate(sample.tolist()):
            if item != int(targets[row]):
                below = below + (states[row] @ items[item] - log[place]).exp()
        total = total + below.log() - own
    return total


@pytest.mark.usefixtures("tile")
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 9))
def test_sampled_softmax_equals_the_loop(seed: int, size: int):
    states, positives, items = (drawn(n, 3, seed=seed + i) for i, n in enumerate((6, 6, 5)))
    targets, sample = integers(6, 5, seed), integers(size, 5, seed + 1)
    by_item = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    log = by_item[sample]
    term = sampled_softmax(states, positives, targets, items[sample], sample, log)
    expected = _sampled_loop(states, positives, targets, items, sample, log)
    inputs = (states, positives, items) if size else (states, positives)
    compare(term, expected, inputs, factor=2.0)


def test_a_sample_of_everything_is_the_full_softmax():
    states, items, targets = drawn(9, 4), drawn(7, 4, seed=1), integers(9, 7)
    every = torch.arange(7)
    term = sampled_softmax(states, items[targets], targets, items, every, torch.zeros(7))
    compare(term, cross_entropy(states, items, targets).total, (states, items))


def test_log_q_makes_the_sampled_sum_unbiased():
    """E over samples of sum exp(s - log E[count]) = sum over all items but the target."""
    generator = torch.Generator().manual_seed(0)
    state, items = torch.randn(1, 3, generator=generator), torch.randn(6, 3, generator=generator)
    share = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    size, sums = 4, []
    for _ in range(4000):
        sample = torch.multinomial(share, size, replacement=True, generator=generator)
        log = (size * share[sample]).log()
        term = sampled_softmax(state, items[:1], torch.tensor([0]), items[sample], sample, log)
        # loss = log(1 + others / exp(s_0)), solved for others
        sums.append((term.total.exp() - 1) * (state @ items[0]).exp())
    found, exact = torch.stack(sums), (state @ items[1:].T).exp().sum()
    error = found.std() / len(sums) ** 0.5
    assert abs(found.mean() - exact) < 4 * error
    assert error < exact / 20


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("calibration", [0.0, 0.5, 1.0])
def test_gbce_equals_the_loop(calibration: float):
    states, items, num_items = drawn(6, 3), drawn(5, 3, seed=1), 5
    targets, sample = integers(6, 5), integers(3, 5, seed=3)
    assert any(int(t) in sample.tolist() for t in targets), "an accidental hit is to be tested"
    term = gbce(
        states, items[targets], targets, items[sample], sample,
        num_items=num_items, calibration=calibration,
    )  # fmt: skip
    rate = 3 / 4
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    expected = torch.zeros(())
    for row, target in enumerate(targets.tolist()):
        expected = expected - beta * torch.sigmoid(states[row] @ items[target]).log()
        for item in sample.tolist():
            if item != target:
                expected = expected - (1 - torch.sigmoid(states[row] @ items[item])).log()
    assert term.count == 6 * 4
    compare(term, expected, (states, items))


def test_gbce_without_calibration_is_binary_cross_entropy():
    states, items, targets = drawn(4, 3), drawn(9, 3, seed=1), torch.tensor([0, 1, 2, 3])
    sample = torch.tensor([5, 6, 8])
    term = gbce(
        states, items[targets], targets, items[sample], sample, num_items=9, calibration=0.0
    )
    scores = torch.cat(
        [(states * items[targets]).sum(1, keepdim=True), states @ items[sample].T], 1
    )
    labels = torch.zeros(4, 4)
    labels[:, 0] = 1
    expected = F.binary_cross_entropy_with_logits(scores, labels, reduction="mean")
    torch.testing.assert_close(term.total / term.count, expected)
