"""SASRec: a causal transformer over a history predicts every next item."""

from __future__ import annotations

from torch import Tensor, nn

from rec.batch import SequenceBatch
from rec.contract import Interests, Losses
from rec.nn.items import ItemColumns, ItemConfig, ItemVectors
from rec.nn.losses.items import ItemLoss, ItemLossConfig
from rec.nn.next_event import next_events
from rec.nn.users import CausalBody, CausalConfig, encode_users


class SASRec(nn.Module):
    """Self-attentive sequential recommendation (Kang & McAuley 2018), with the loss over all
    items or a corrected sample of them that later work found it to need (Klenitskiy & Vasilev
    2023, Petrov & Macdonald 2023).

    Items' vectors are inputs and outputs alike. It departs from the paper in that both parts of a
    block are normalised before them and attention weights are not dropped out.

    Args:
        columns: what is known of the items.
        body: sizes of the transformer.
        items: what items' vectors are made of.
        loss: over which items.
    """

    def __init__(
        self, columns: ItemColumns, body: CausalConfig, items: ItemConfig, loss: ItemLossConfig
    ) -> None:
        super().__init__()
        self.items = ItemVectors(columns, body.dim, items)
        self.body = CausalBody(body)
        self.loss = ItemLoss(columns.num_events, loss)

    def forward(self, batch: SequenceBatch) -> Losses:
        """{"next_item": ...} over the events that batch.target_mask marks."""
        events = next_events(batch)
        needed = self.loss.needed(batch.item_index)
        vectors = self.items(needed.index)
        read = vectors.index_select(0, needed.place(events.item_index))
        states = events.states(self.body(read, events.lengths))
        return {"next_item": self.loss(states, events.targets, vectors, needed)}

    def encode_user(self, batch: SequenceBatch) -> Interests:
        """(B, 1, D), from the events that are not targets; weight 0 where there are none."""
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
