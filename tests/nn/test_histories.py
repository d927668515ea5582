"""Padding-free blocks: neighbours in the batch change nothing, nor does the future."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rec.config import Config, ConfigError
from rec.nn.attention import HistoryAttention
from rec.nn.dropout import Dropout
from rec.nn.histories import last_states, layout, positions, users
from rec.nn.permuted import PermutedBody, PermutedConfig
from rec.nn.users import CausalConfig, MaskedConfig, PooledBody, PooledConfig, build_body

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=8)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
BODIES = {
    "end": CausalConfig(dim=8, num_heads=2, max_length=64, dropout=0.0),
    "start": CausalConfig(dim=8, max_length=64, dropout=0.0, positions="start"),
    "masked": MaskedConfig(dim=8, max_length=64, dropout=0.0),
    "permuted": PermutedConfig(dim=8, max_length=64, dropout=0.0),
    "pooled": PooledConfig(dim=8, hidden_dim=8, max_length=64, dropout=0.0),
}


def cut(events: Tensor, lengths: list[int]) -> list[Tensor]:
    return list(events.split(lengths))


@settings(max_examples=30)
@given(lengths=LENGTHS)
def test_every_event_has_a_slot_and_comes_back(lengths: list[int]):
    where = layout(torch.tensor(lengths))
    events = torch.arange(sum(lengths), dtype=torch.float64)[:, None].requires_grad_()
    slots = where.to_slots(events)
    assert len(slots) == sum(where.sizes)
    torch.testing.assert_close(where.to_events(slots), events)
    weight = torch.randn(sum(lengths), 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((where.to_events(slots) * weight).sum(), events)
    torch.testing.assert_close(gradient, weight)
    real = sum(int(g.mask.sum()) if g.mask is not None else g.num_histories * g.length
               for g in where.groups)  # fmt: skip
    assert real == sum(lengths)


@settings(max_examples=30)
@given(lengths=LENGTHS)
def test_places_within_histories(lengths: list[int]):
    expected = [(b, i) for b, length in enumerate(lengths) for i in range(length)]
    sizes = torch.tensor(lengths)
    found = list(zip(users(sizes).tolist(), positions(sizes).tolist(), strict=True))
    assert found == expected
    states = torch.arange(1.0, sum(lengths) + 1)[:, None]
    ends = [sum(lengths[: b + 1]) if length else 0 for b, length in enumerate(lengths)]
    assert last_states(states, sizes).squeeze(1).tolist() == ends


@settings(max_examples=15)
@given(lengths=LENGTHS, causal=st.booleans(), seed=st.integers(0, 99))
def test_attention_is_that_of_each_history_alone(lengths: list[int], causal: bool, seed: int):
    torch.manual_seed(seed)
    module = HistoryAttention(6, 2, causal=causal)
    x = torch.randn(sum(lengths), 6, requires_grad=True)
    found = module(x, layout(torch.tensor(lengths)))
    expected = []
    for part in cut(x, lengths):
        q, k, v = module.query_key_value(part).view(len(part), 3, 2, 3).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / 3**0.5
        if causal:
            scores = scores.masked_fill(~torch.ones(len(part), len(part)).tril().bool(), -torch.inf)
        out = scores.softmax(-1) @ v
        expected.append(module.out(out.transpose(0, 1).reshape(len(part), 6)))
    joined = torch.cat(expected)
    torch.testing.assert_close(found, joined, **CLOSE)
    weight = torch.randn_like(joined)
    inputs = (x, *module.parameters())
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((joined * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=10)
@given(lengths=LENGTHS)
def test_neighbours_change_nothing(name: str, lengths: list[int]):
    torch.manual_seed(0)
    body = build_body(BODIES[name]).eval()
    items = torch.randn(sum(lengths), 8)
    together = body.users(items, torch.tensor(lengths))
    for part, length, vector in zip(cut(items, lengths), lengths, together, strict=True):
        alone = body.users(part, torch.tensor([length]))[0]
        torch.testing.assert_close(alone, vector, **CLOSE)
        assert vector.any() == (length > 0)


@pytest.mark.parametrize("name", ["end", "start", "pooled"])
@settings(max_examples=15)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_the_future_changes_nothing(name: str, lengths: list[int], seed: int):
    torch.manual_seed(0)
    body = build_body(BODIES[name])
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(lengths)
    items = torch.randn(sum(lengths), 8, generator=generator)
    # from this place on every history is another
    changed = positions(sizes) >= torch.randint(0, 40, (len(sizes),), generator=generator)[
        users(sizes)
    ]  # fmt: skip
    other = torch.where(changed[:, None], torch.randn(items.shape, generator=generator), items)
    before, after = body(items, sizes), body(other, sizes)
    torch.testing.assert_close(after[~changed], before[~changed], **CLOSE)
    if changed.any():
        assert not torch.allclose(after[changed], before[changed])


@settings(max_examples=10)
@given(keep=st.integers(1, 30))
def test_from_the_start_histories_that_go_on_change_nothing(keep: int):
    torch.manual_seed(0)
    body, items = build_body(BODIES["start"]), torch.randn(30, 8)
    whole, part = body(items, torch.tensor([30])), body(items[:keep], torch.tensor([keep]))
    torch.testing.assert_close(whole[:keep], part, **CLOSE)


def test_a_masked_body_sees_what_comes_after_and_not_what_is_hidden():
    torch.manual_seed(0)
    body, items, sizes = build_body(BODIES["masked"]), torch.randn(6, 8), torch.tensor([6])
    hidden = torch.tensor([False, False, True, False, False, False])
    first = body(items, hidden, sizes)
    changed = items.clone()
    changed[2] = 1.0
    torch.testing.assert_close(body(changed, hidden, sizes), first)
    changed[5] = 1.0
    assert not torch.allclose(body(changed, hidden, sizes)[0], first[0])


def test_a_permuted_body_sees_what_its_order_allows():
    torch.manual_seed(0)
    body = build_body(BODIES["permuted"]).eval()
    assert isinstance(body, PermutedBody)
    items, sizes = torch.randn(8, 8), torch.tensor([5, 3])
    order = torch.tensor([-1, 4, -1, 1, -1, -1, 0, -1])
    first = body(items, order, sizes)
    assert first.shape == (3, 8)

    def changes(event: int) -> list[bool]:
        other = items.clone()
        other[event] += 1.0
        return [
            not torch.allclose(a, b, atol=1e-6)
            for a, b in zip(body(other, order, sizes), first, strict=True)
        ]

    # the states are those of events 1, 3 and 6
    assert changes(0) == changes(4) == [True, True, False]
    assert changes(3) == [True, False, False], "event 1 comes later in the order than event 3"
    assert changes(1) == changes(6) == [False, False, False]
    assert changes(7) == [False, False, True]


def test_a_permuted_body_expects_nothing_where_it_sees_nothing():
    """The first in the order of a history in which all is to be predicted."""
    torch.manual_seed(0)
    body = build_body(BODIES["permuted"]).eval()
    assert isinstance(body, PermutedBody)
    items, sizes = torch.randn(6, 8), torch.tensor([3, 1, 2])
    states = body(items, torch.tensor([1, 0, 2, 0, -1, 0]), sizes)
    assert states.any(dim=1).tolist() == [True, False, True, False, True]


def test_a_pooled_body_weighs_by_recency():
    body = build_body(PooledConfig(dim=2, hidden_dim=4, half_lives=(2.0,)))
    assert isinstance(body, PooledBody)
    seen: list[Tensor] = []
    body.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 4.0]])
    body(items, torch.tensor([3]))
    weights = torch.tensor([0.5, 2**-0.5, 1.0])
    torch.testing.assert_close(seen[0][2], (weights[:, None] * items).sum(0) / weights.sum())
    torch.testing.assert_close(seen[0][0], items[0])


@pytest.mark.parametrize("code", [CausalConfig, MaskedConfig, PermutedConfig])
def test_heads_that_do_not_divide_the_width_are_refused(code: type[Config]) -> None:
    with pytest.raises(ConfigError, match="dim 64 must be a multiple of num_heads 3"):
        code().override(["num_heads=3"])


def test_dropout_drops_its_share_and_scales_the_rest():
    torch.manual_seed(0)
    module, x = Dropout(0.3), torch.ones(501, 401, requires_grad=True)
    y = module(x)
    dropped = y == 0
    assert abs(dropped.float().mean() - 0.3) < 0.004
    assert torch.allclose(y[~dropped], torch.tensor(1 / 0.7), rtol=1e-4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y.detach())
    # neighbours share a random number and must not share their fate
    both = (dropped[:, :-1] & dropped[:, 1:]).float().mean()
    assert abs(both - 0.09) < 0.004
    assert module.eval()(x) is x


def test_dropout_follows_the_seed():
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Dropout(0.5)(torch.ones(7, 3))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    with pytest.raises(ValueError, match=r"p is 1\.0"):
        Dropout(1.0)
