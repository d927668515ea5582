"""RankBatchNorm beside nn.BatchNorm1d, and the head that is made of it."""

from __future__ import annotations

import torch
from torch import nn

from rec.nn.batchnorm import RankBatchNorm
from rec.nn.projection import ProjectionHead


def test_equals_batchnorm1d_in_value_gradient_and_running_statistics():
    torch.manual_seed(0)
    ours, theirs = RankBatchNorm(5), nn.BatchNorm1d(5)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight.copy_(torch.linspace(0.5, 2, 5))
            module.bias.copy_(torch.linspace(-1, 1, 5))
    for _ in range(3):
        x = (torch.randn(9, 5) * 3 + 100).requires_grad_()
        y = x.detach().clone().requires_grad_()
        scale = torch.randn(9, 5)
        (ours(x) * scale).sum().backward()
        (theirs(y) * scale).sum().backward()
        torch.testing.assert_close(ours(x), theirs(y), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-4, atol=1e-5)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_no_rows_leave_running_statistics_and_give_zero_gradients():
    norm = RankBatchNorm(3)
    norm(torch.zeros(0, 3)).sum().backward()
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().sum() == 0


def test_head_has_three_layers_without_bias_but_the_norms_and_none_at_the_end():
    head = ProjectionHead(6, 4)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    linear = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    assert list(linear.values()) == [(6, 6), (6, 6), (4, 6)]
    assert sum(name.endswith("bias") for name in shapes) == 2
    out = head(torch.randn(32, 6))
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert (out < 0).any(), "no ReLU on the last layer"
