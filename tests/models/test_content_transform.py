"""Random training inputs: which frames become views, which modalities go, and that they repeat."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from content_cases import read_rows

from rec.batch import ContentBatch
from rec.features.augment import AugmentConfig, normalise
from rec.features.masking import MaskingConfig
from rec.models.content.transform import training_inputs
from rec.recipes.content import debug

PLAIN = AugmentConfig(min_area=1.0, flip=0, colour=0, grey=0, blur=0)


@pytest.fixture
def batch(content_rows: str) -> ContentBatch:
    return debug().collate(read_rows(content_rows))


def prepared(batch: ContentBatch, seed: int = 0, **changes: Any) -> ContentBatch:
    options = {"augmentation": PLAIN, "masking": MaskingConfig(), "modality_dropout": 0.0}
    return training_inputs(batch, torch.Generator().manual_seed(seed), **{**options, **changes})


def test_equal_generators_give_equal_batches(batch: ContentBatch):
    one, again = (
        prepared(batch, 5, augmentation=AugmentConfig(), modality_dropout=0.5) for _ in "ab"
    )
    for field in fields(one):
        assert torch.equal(getattr(one, field.name), getattr(again, field.name)), field.name
    other = prepared(batch, 6, augmentation=AugmentConfig())
    assert not torch.equal(one.views, other.views)
    assert not torch.equal(one.token_ids, other.token_ids)


def test_views_come_from_the_frames_that_frame_mask_marks(batch: ContentBatch):
    mean = torch.arange(batch.frame_mask.numel()).reshape(batch.frame_mask.shape) * 5
    flat = mean[:, :, None, None, None].expand(-1, -1, 3, 32, 32).to(torch.uint8)
    for seed in range(4):
        out = prepared(replace(batch, frames=flat), seed)
        assert torch.equal(out.view_mask, batch.frame_mask.any(1))
        for row in range(len(batch)):
            available = batch.frame_mask[row].nonzero().flatten().tolist()
            marked = out.frame_mask[row].nonzero().flatten().tolist()
            assert set(marked) <= set(available)
            assert len(marked) == min(2, len(available))
            if marked:
                expected = normalise(mean[row, [marked[0], marked[-1]]].to(torch.uint8))
                torch.testing.assert_close(
                    out.views[row].mean((1, 2, 3)), expected, atol=1e-4, rtol=0
                )


def test_modality_dropout_never_takes_the_last_and_takes_the_share_asked_for(batch: ContentBatch):
    big = batch.take(list(range(len(batch))) * 100)
    present = torch.stack([m.any(1) for m in (big.frame_mask, big.token_mask, big.audio_mask)], 1)
    out = prepared(big, modality_dropout=0.3)
    kept = torch.stack([m.any(1) for m in (out.frame_mask, out.token_mask, out.audio_mask)], 1)
    assert not (kept & ~present).any()
    assert kept.any(1).equal(present.any(1))
    alone = present.sum(1) == 1
    assert kept[alone].equal(present[alone])
    two = present.sum(1) == 2
    share = 1 - kept[two].sum() / present[two].sum()
    assert 0.21 < share < 0.3  # 0.3, less the times when both would have gone (0.09 / 2)


def test_dropped_pictures_still_take_part_in_infonce_and_dropped_text_is_not_predicted(
    batch: ContentBatch,
):
    out = prepared(batch.take([0] * 200), modality_dropout=0.5)
    assert out.view_mask.all()
    assert not out.frame_mask.any(1).all()
    without_text = ~out.token_mask.any(1)
    assert without_text.any()
    assert (out.token_targets[without_text] == -100).all()


def test_rows_without_words_are_refused_by_name(batch: ContentBatch):
    with pytest.raises(ValueError, match="no word_ids or term_scores"):
        prepared(replace(batch, word_ids=None))
