"""Random training inputs of the content model: views, hidden words, dropped modalities."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rec.batch import ContentBatch
from rec.features.augment import AugmentConfig, augment
from rec.features.masking import MaskingConfig, mask_terms
from rec.nn.losses.masked_tokens import IGNORE


def training_inputs(
    batch: ContentBatch,
    generator: torch.Generator,
    *,
    augmentation: AugmentConfig,
    masking: MaskingConfig,
    modality_dropout: float,
) -> ContentBatch:
    """The batch with two views, masked text and dropped modalities, all drawn from `generator`.

    Views are cut from two different frames where an item has two, else from the one.
    `frame_mask` then marks the frames they were cut from. An item whose pictures are dropped
    has none marked: the fusion does without, while its views still take part in InfoNCE. An
    item never loses the last modality that it has.

    Args:
        modality_dropout: probability that a modality of an item is dropped.

    Raises:
        ValueError: the batch has no word_ids or term_scores.
    """
    if batch.word_ids is None or batch.term_scores is None:
        raise ValueError("training_inputs: the batch has no word_ids or term_scores")
    frame_index, view_mask = _two_frames(batch.frame_mask, generator)
    rows = torch.arange(len(batch), device=frame_index.device)[:, None]
    pictures = batch.frames[rows, frame_index]
    views = augment(pictures.flatten(0, 1), generator, augmentation).unflatten(0, (-1, 2))

    present = torch.stack(
        [view_mask, batch.token_mask.any(dim=1), batch.audio_mask.any(dim=1)], dim=1
    )
    kept = _keep(present, modality_dropout, generator)
    chosen = torch.zeros_like(batch.frame_mask).scatter(1, frame_index, True)
    token_ids, targets = mask_terms(
        batch.token_ids, batch.word_ids, batch.term_scores, generator, masking
    )
    return replace(
        batch,
        token_ids=token_ids,
        token_mask=batch.token_mask & kept[:, 1:2],
        token_targets=targets.masked_fill(~kept[:, 1:2], IGNORE),
        views=views,
        view_mask=view_mask,
        frame_mask=chosen & kept[:, 0:1],
        audio_mask=batch.audio_mask & kept[:, 2:3],
    )


def _two_frames(frame_mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B, 2) two frames of each item in order, twice the same where there is one; (B,) has any."""
    drawn = _uniform(frame_mask.shape, generator, frame_mask.device)
    order = drawn.masked_fill(~frame_mask, -1).argsort(dim=1, descending=True)
    second = (frame_mask.sum(dim=1) > 1).long().clamp(max=frame_mask.shape[1] - 1)
    pair = torch.stack([order[:, 0], order.gather(1, second[:, None])[:, 0]], dim=1)
    return pair.sort(dim=1).values, frame_mask.any(dim=1)


def _keep(present: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """(B, M) modalities that stay: each is dropped at random, but never the last of an item."""
    drawn = _uniform(present.shape, generator, present.device).masked_fill(~present, -1)
    best = torch.zeros_like(present).scatter(1, drawn.argmax(dim=1, keepdim=True), True)
    return present & ((drawn >= dropout) | best)


def _uniform(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(device)
