"""Cross-attention against a loop; what fusion must and must not see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from rec.nn.attention import CrossAttention
from rec.nn.fusion import NUM_SCALES, Modality, PooledFusion, ScaleFusion

DIMS = [6, 4]


def _modalities(seed: int, length: int = 3) -> list[Modality]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for width in DIMS:
        scales = tuple(torch.randn(2, length, width, generator=generator) for _ in range(4))
        mask = torch.ones(2, length, dtype=torch.bool)
        pooled = torch.randn(2, width, generator=generator)
        made.append(Modality(scales, mask, pooled, torch.arange(length).expand(2, -1)))
    return made


def _fusion(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind in ("early", "late", "hybrid"):
        return PooledFusion(DIMS, dim=8, dropout=0.0, kind=kind)  # type: ignore[arg-type]
    return ScaleFusion(
        DIMS, [5, 0], dim=8, num_heads=2, num_queries=3, dropout=0.0, top_only=kind == "top_layer"
    )


KINDS = ["multi_scale", "top_layer", "early", "late", "hybrid"]


def test_cross_attention_equals_the_loop():
    torch.manual_seed(0)
    attention = CrossAttention(8, 6, 2)
    queries, keys = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
    found = attention(queries, keys, mask)
    q, (k, v) = attention.query(queries), attention.key_value(keys).chunk(2, dim=-1)
    for row in range(2):
        seen = mask[row].nonzero().flatten().tolist()
        for i in range(3):
            heads = []
            for part in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([q[row, i, part] @ k[row, j, part] for j in seen])
                share = (scores / math.sqrt(4)).softmax(0)
                heads.append(sum(s * v[row, j, part] for s, j in zip(share, seen, strict=True)))
            torch.testing.assert_close(found[row, i], attention.out(torch.cat(heads)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_modality_is_not_read_and_its_stand_in_is(kind: str):
    fusion, one, other = _fusion(kind), _modalities(1), _modalities(2)
    gone = torch.zeros(2, 3, dtype=torch.bool)
    without = [fusion([m[0], m[1]._replace(mask=gone)]) for m in (one, [one[0], other[1]])]
    torch.testing.assert_close(without[0], without[1])
    assert not torch.allclose(without[0], fusion(one))
    nothing = fusion([m._replace(mask=gone) for m in one])
    assert nothing.isfinite().all()
    without[0].square().sum().backward()
    stand_ins = [p for name, p in fusion.named_parameters() if "missing" in name]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in stand_ins)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_whatever_is_present(kind: str):
    gone = torch.zeros(2, 3, dtype=torch.bool)
    for absent in (set(), {0}, {1}, {0, 1}):
        fusion = _fusion(kind)
        given = [m._replace(mask=gone) if i in absent else m for i, m in enumerate(_modalities(3))]
        fusion(given).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


def test_masked_states_change_nothing():
    fusion, given = _fusion("multi_scale"), _modalities(4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    masked = [m._replace(mask=mask) for m in given]
    noisy = [
        m._replace(scales=tuple(torch.where(mask[..., None], s, s + 9) for s in m.scales))
        for m in masked
    ]
    torch.testing.assert_close(fusion(masked), fusion(noisy))


def test_which_depths_and_modalities_each_kind_reads():
    given = _modalities(5)

    def reads(kind: str, scale: int) -> bool:
        changed = list(given[0].scales)
        changed[scale] = changed[scale] + torch.randn(2, 3, DIMS[0])
        fusion = _fusion(kind)
        return not torch.allclose(
            fusion(given), fusion([given[0]._replace(scales=tuple(changed)), given[1]])
        )

    assert [reads("multi_scale", s) for s in range(NUM_SCALES)] == [True] * 4
    assert [reads("top_layer", s) for s in range(NUM_SCALES)] == [False, False, False, True]
    sizes = [sum(p.numel() for p in _fusion(k).parameters()) for k in KINDS[:2]]
    assert sizes[0] == sizes[1], "the control must not be smaller"


def test_late_fusion_keeps_modalities_apart_and_early_does_not():
    def crosses(kind: str) -> bool:
        """Does what one modality adds depend on the other?"""
        fusion, one, other = _fusion(kind), _modalities(6), _modalities(7)
        added = [fusion([one[0], x]) - fusion([other[0], x]) for x in (one[1], other[1])]
        return not torch.allclose(added[0], added[1], atol=1e-5)

    assert {kind: crosses(kind) for kind in ("early", "late", "hybrid")} == {
        "early": True,
        "late": False,
        "hybrid": True,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_fusion_begins_at_the_angles_of_the_pretrained_modality(kind: str):
    torch.manual_seed(0)
    given = _modalities(8)
    given = [m._replace(pooled=torch.randn(2, 40)) for m in given]
    states = tuple(torch.randn(2, 3, 40) for _ in range(4))
    given = [m._replace(scales=states) for m in given]
    sizes: dict[str, Any] = {"dim": 64, "dropout": 0.0, "pretrained": [False, True]}
    if kind in ("early", "late", "hybrid"):
        fusion: nn.Module = PooledFusion([40, 40], kind=kind, **sizes)  # type: ignore[arg-type]
    else:
        top = kind == "top_layer"
        fusion = ScaleFusion([40, 40], [5, 0], num_heads=2, num_queries=3, top_only=top, **sizes)
    cosine = nn.functional.cosine_similarity
    other = [given[0]._replace(pooled=torch.randn(2, 40)), given[1]]
    changed = [given[0], given[1]._replace(pooled=torch.randn(2, 40))]
    one, same, differs = (fusion(x).flatten(1) for x in (given, other, changed))
    if kind in ("multi_scale", "top_layer"):
        assert cosine(one, same).min() > 0.95
    assert (cosine(one, differs) < cosine(one, same)).all()
