"""XLNet's body beside transformers' own, a history at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import XLNetConfig, XLNetModel

from rec.nn import relative
from rec.nn.dropout import Dropout
from rec.nn.histories import beside, layout, users
from rec.nn.permuted import PermutedBody, PermutedConfig

DIM = 8


def pair(num_layers: int, num_heads: int) -> tuple[PermutedBody, XLNetModel]:
    """The same weights in both."""
    torch.manual_seed(0)
    sizes = {"n_layer": num_layers, "n_head": num_heads, "d_model": DIM, "d_inner": 4 * DIM}
    none = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "mem_len"])
    net = XLNetModel(XLNetConfig(vocab_size=1, use_mems_eval=False, **sizes, **none)).eval()
    body = PermutedBody(PermutedConfig(dim=DIM, num_layers=num_layers, num_heads=num_heads)).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    own = {"mask": net.mask_emb.view(-1)}
    for i, layer in enumerate(net.layer):
        their, at = layer.rel_attn, f"blocks.{i}"
        for name, one in {"query": "q", "key": "k", "value": "v", "position": "r"}.items():
            own[f"{at}.attention.{name}.weight"] = getattr(their, one).reshape(DIM, DIM).T
        own[f"{at}.attention.out.weight"] = their.o.reshape(DIM, DIM)
        own[f"{at}.attention.content_bias"] = their.r_w_bias
        own[f"{at}.attention.position_bias"] = their.r_r_bias
        parts = {"norm": their.layer_norm, "last_norm": layer.ff.layer_norm}
        parts |= {"feed_forward.0": layer.ff.layer_1, "feed_forward.3": layer.ff.layer_2}
        for name, part in parts.items():
            own |= {f"{at}.{name}.{k}": v for k, v in part.state_dict().items()}
    body.load_state_dict(own)  # that is all of them
    return body, net


def theirs(net: XLNetModel, items: Tensor, order: Tensor) -> Tensor:
    """(T, D), (T,) of one history -> (P, D); zeros where a target sees nothing."""
    wanted = order >= 0
    if not wanted.any():
        return items[:0]
    hidden = wanted & (order[:, None] <= order)
    found = net(
        inputs_embeds=items[None],
        perm_mask=hidden[None].float(),
        target_mapping=torch.eye(len(items))[wanted][None],
    ).last_hidden_state[0]
    return found * (~hidden[wanted]).any(dim=1, keepdim=True)


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (2, 2), (3, 4)])
@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    scores=st.sampled_from([1, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_states_and_gradients_are_those_of_transformers(
    num_layers: int, num_heads: int, lengths: list[int], share: float, scores: int, seed: int
):
    body, net = pair(num_layers, num_heads)
    torch.manual_seed(seed)
    items = torch.randn(sum(lengths), DIM, requires_grad=True)
    order = torch.randperm(len(items)).masked_fill(torch.rand(len(items)) >= share, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative, "_SCORES", scores)  # a history at a time, and all at once
        found = body(items, order, torch.tensor(lengths))
    parts = zip(items.split(lengths), order.split(lengths), strict=True)
    expected = torch.cat([theirs(net, *part) for part in parts if len(part[0])] or [items[:0]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    one, other = (
        torch.autograd.grad((states * weight).sum(), items, materialize_grads=True)[0]
        for states in (found, expected)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_every_weight_gets_a_gradient_where_nothing_is_predicted():
    body = PermutedBody(PermutedConfig(dim=DIM, max_length=8))
    found = body(torch.randn(3, DIM), torch.full((3,), -1), torch.tensor([2, 1]))
    assert found.shape == (0, DIM)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in body.parameters())


def test_positions_are_dropped_out_as_often_and_scaled():
    """One pair's score, over many draws: mean and variance are XLNet's."""
    torch.manual_seed(0)
    waves, asked = torch.randn(DIM), torch.randn(DIM)
    scores = Dropout(0.3)(asked.expand(100_000, DIM)) @ waves
    torch.testing.assert_close(scores.mean(), asked @ waves, rtol=0.02, atol=0.02)
    expected = ((asked * waves) ** 2).sum() * 0.3 / 0.7
    torch.testing.assert_close(scores.var(), expected, rtol=0.03, atol=0.02)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_other_rows_stand_in_the_groups_of_their_histories(
    lengths: list[int], share: float, seed: int
):
    torch.manual_seed(seed)
    sizes = torch.tensor(lengths)
    owner = users(sizes)
    owner = torch.cat([owner, owner[torch.rand(len(owner)) < share]])
    where = layout(sizes)
    found = beside(where, owner)
    rows = torch.arange(len(owner), dtype=torch.float64)[:, None].requires_grad_()
    slots = found.to_slots(rows)
    torch.testing.assert_close(found.to_events(slots), rows)
    for part, group, its in zip(slots.split(found.sizes), found.groups, where.groups, strict=True):
        assert (group.histories == its.histories).all()
        for row, history in zip(part.view(-1, group.length), group.histories, strict=True):
            mine = (owner == history).nonzero().squeeze(1)
            assert row[: len(mine)].tolist() == mine.tolist()
    (gradient,) = torch.autograd.grad(found.to_events(slots).sum(), rows)
    assert (gradient == 1).all()
