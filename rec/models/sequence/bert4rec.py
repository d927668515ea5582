"""BERT4Rec: a transformer that sees both ways fills in the events that are masked."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rec.batch import SequenceBatch
from rec.contract import Interests, Losses
from rec.nn.items import ItemColumns, ItemConfig, ItemVectors
from rec.nn.losses.items import ItemLoss, ItemLossConfig
from rec.nn.users import MaskedBody, MaskedConfig, encode_users

HIDDEN = -1  # in SequenceBatch.input_index: the mask


class BERT4Rec(nn.Module):
    """Sun et al. 2019. Items' vectors are inputs and outputs alike; the state at a mask is
    compared with them as it is, without the paper's projection and bias.

    Args:
        columns: what is known of the items.
        body: sizes of the transformer.
        items: what items' vectors are made of.
        loss: over which items.
    """

    def __init__(
        self, columns: ItemColumns, body: MaskedConfig, items: ItemConfig, loss: ItemLossConfig
    ) -> None:
        super().__init__()
        self.items = ItemVectors(columns, body.dim, items)
        self.body = MaskedBody(body)
        self.loss = ItemLoss(columns.num_events, loss)

    def forward(self, batch: SequenceBatch) -> Losses:
        """{"masked_item": ...} over the events that batch.target_mask marks.

        Raises:
            ValueError: `mask_events` has not prepared the batch.
        """
        if batch.input_index is None:
            raise ValueError(
                "BERT4Rec: the batch has no input_index; losses need "
                "rec.models.sequence.bert4rec.mask_events(batch, ...) first"
            )
        needed = self.loss.needed(batch.item_index)
        vectors = self.items(needed.index)
        read = vectors.index_select(0, needed.place(batch.item_index))
        states = self.body(read, batch.input_index == HIDDEN, batch.lengths)
        wanted = batch.target_mask.nonzero().squeeze(1)
        targets = batch.item_index[wanted]
        term = self.loss(states.index_select(0, wanted), targets, vectors, needed)
        return {"masked_item": term}

    def encode_user(self, batch: SequenceBatch) -> Interests:
        """(B, 1, D) at a mask after the events that are not targets; weight 0 without any."""
        return encode_users(self.body, self.items, batch)

    def item_vectors(self) -> Tensor:
        """(N, D)."""
        return self.items()

    def input_vectors(self) -> Tensor:
        """(N, D) as histories are read."""
        return self.items()

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) of every item as the next."""
        return self.encode_user(batch).vectors[:, 0] @ self.item_vectors().T


def mask_events(
    batch: SequenceBatch, generator: torch.Generator, *, share: float, last: float
) -> SequenceBatch:
    """Choose the events to predict and hide them: target_mask and input_index.

    In training, where every event but a history's first is a target, each event is hidden with
    probability `share`, and a history in which none was drawn hides its last. With probability
    `last` a history hides its last event alone, as inference does. Where other events are
    targets, as in held-out rows, those are hidden.

    Args:
        generator: source of all randomness, on the batch's device.
    """
    place, owner = batch.positions(), batch.users()
    device = batch.item_index.device
    drawn = torch.rand(len(place), generator=generator, device=device) < share
    alone = torch.rand(len(batch), generator=generator, device=device) < last
    if bool((batch.target_mask == (place > 0)).all()):
        hidden = torch.zeros(len(batch), dtype=torch.long, device=device)
        alone |= hidden.index_add(0, owner, drawn.long()) == 0
        is_last = place == batch.lengths[owner] - 1
        hidden = torch.where(alone[owner], is_last, drawn)
    else:
        hidden = batch.target_mask
    return replace(
        batch, target_mask=hidden, input_index=batch.item_index.masked_fill(hidden, HIDDEN)
    )
