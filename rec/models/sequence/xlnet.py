"""XLNet: events of a history are predicted in a random order, from both sides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rec.batch import SequenceBatch
from rec.contract import Interests, Losses
from rec.nn.items import ItemColumns, ItemConfig, ItemVectors
from rec.nn.losses.items import ItemLoss, ItemLossConfig
from rec.nn.permuted import PermutedBody, PermutedConfig
from rec.nn.users import encode_users


class XLNet(nn.Module):
    """Permutation language modelling (Yang et al. 2019) of histories, as Transformers4Rec
    (de Souza Pereira Moreira et al. 2021) has it for sessions: of each history some events are
    predicted, each from all that are not and from those that come before it in a random order.
    Items' vectors are inputs and outputs alike.

    Args:
        columns: what is known of the items.
        body: sizes of the transformer.
        items: what items' vectors are made of.
        loss: over which items.
    """

    def __init__(
        self, columns: ItemColumns, body: PermutedConfig, items: ItemConfig, loss: ItemLossConfig
    ) -> None:
        super().__init__()
        self.items = ItemVectors(columns, body.dim, items)
        self.body = PermutedBody(body)
        self.loss = ItemLoss(columns.num_events, loss)

    def forward(self, batch: SequenceBatch) -> Losses:
        """{"permuted_item": ...} over the events that batch.target_mask marks; outside training
        they are predicted in order of time."""
        needed = self.loss.needed(batch.item_index)
        vectors = self.items(needed.index)
        read = vectors.index_select(0, needed.place(batch.item_index))
        order = batch.positions()
        if self.training:
            order = torch.rand(order.shape, device=order.device).argsort().argsort()
        states = self.body(read, order.masked_fill(~batch.target_mask, -1), batch.lengths)
        targets = batch.item_index[batch.target_mask]
        return {"permuted_item": self.loss(states, targets, vectors, needed)}

    def encode_user(self, batch: SequenceBatch) -> Interests:
        """(B, 1, D) at an event after those that are not targets; weight 0 without any."""
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
