"""The content pretraining model: encoders, fusion, and three objectives on one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rec.batch import ContentBatch
from rec.contract import Losses
from rec.features.augment import normalise
from rec.features.content import ContentCollator, ContentInputs
from rec.features.text import TextTokenizer
from rec.models.content.config import ContentModelConfig
from rec.models.content.encoders import (
    Backbones,
    PictureEncoder,
    States,
    TextEncoder,
    freeze,
    new_backbones,
)
from rec.models.content.heads import LabelHead, TermHead
from rec.nn.collectives import world_size
from rec.nn.fusion import Modality, PooledFusion, ScaleFusion
from rec.nn.losses.infonce import infonce
from rec.nn.losses.masked_tokens import masked_tokens
from rec.nn.losses.multilabel import multilabel
from rec.nn.projection import ProjectionHead


class ContentPretrainer(nn.Module):
    """Pictures, text and sound of an item to one embedding, pretrained by

    - "infonce": SimCLR v2 between two views through the vision encoder,
    - "key_terms": prediction of masked key terms, with the other modalities' help,
    - "labels": multi-label classification of the item's embedding, weighted by TF-IDF.

    In training the two views are the frames that the fusion sees, so the vision encoder runs
    once over 2 B pictures; at inference the fusion reads the frames as they are. Encoders see
    only rows that have their modality. Where none has, they see one dummy row in training, whose
    gradient is zero: every parameter always gets one, and every rank calls every encoder, as ZeRO 3
    needs also where no gradients are taken.

    The projection head belongs to the coupled losses, because its batch norm couples rows. For
    the same reason the fusion reads the encoder's states and not the head's first layer, as
    SimCLR v2's fine-tuning does.

    Args:
        config: sizes.
        inputs: picture size and number of frames, as the batches have them.
        num_labels: size of the label vocabulary.
        backbones: from `new_backbones` or `backbones_of`.
    """

    def __init__(
        self,
        config: ContentModelConfig,
        inputs: ContentInputs,
        num_labels: int,
        backbones: Backbones,
    ) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        freeze(backbones, config)
        self.vision = PictureEncoder(backbones.vision, inputs.height, inputs.width)
        self.text = TextEncoder(backbones.text)
        self.audio = None
        widths, times = [self.vision.dim, self.text.dim], [inputs.max_frames, 0]
        if backbones.audio is not None:
            self.audio = PictureEncoder(backbones.audio, *backbones.audio.config.image_size)
            widths, times = [*widths, self.audio.dim], [*times, inputs.max_audio_patches]
        self.fusion = _fusion(config, widths, times)
        last = nn.Linear(config.fusion_dim, config.embedding_dim)
        nn.init.orthogonal_(last.weight)  # as the fusion's projections
        self.to_embedding = nn.Sequential(nn.LayerNorm(config.fusion_dim), last)
        self.projection = ProjectionHead(self.vision.dim)
        heads = backbones.text.config.num_attention_heads
        vocab_size, word_dim = self.text.word_embeddings.shape
        self.terms = TermHead(self.text.dim, config.fusion_dim, heads, word_dim, vocab_size)
        self.labels = LabelHead(config.embedding_dim, num_labels)

    def forward(self, batch: ContentBatch) -> Losses:
        """The three losses of a batch that `training_inputs` has prepared."""
        representations, losses = self.encode(batch)
        return {**losses, **self.couple(representations)}

    def encode(self, batch: ContentBatch) -> tuple[dict[str, Tensor], Losses]:
        """{"views": (B, 2, D) pooled views, "view_mask": (B,) 1 where there are any}, and the
        local losses "key_terms" and "labels"."""
        views, view_mask = batch.views, batch.view_mask
        if views is None or view_mask is None or batch.token_targets is None:
            raise ValueError(
                "ContentPretrainer: the batch has no views, view_mask or token_targets; losses "
                "need rec.models.content.transform.training_inputs(batch, ...) first"
            )
        if batch.label_ids is None or batch.label_weights is None:
            raise ValueError("ContentPretrainer: the batch has no label_ids or label_weights")
        pictures = _rows(view_mask)
        seen = self.vision(views[pictures].flatten(0, 1))
        texts, text_states = self._read_text(batch)
        modalities = [
            _view_modality(seen, pictures, batch.frame_mask),
            _text_modality(text_states, texts, batch.token_mask),
            *self._sound(batch),
        ]
        fused = self.fusion(modalities)
        losses: Losses = {
            "key_terms": masked_tokens(
                self.terms.states(text_states.scales[-1], fused[texts]),
                batch.token_targets[texts],
                lambda states: self.terms.logits(states, self.text.word_embeddings),
            ),
            "labels": multilabel(
                self.labels(self._embed(fused)),
                batch.label_ids,
                batch.label_weights,
                negatives=self.config.label_negatives,
                focusing=self.config.label_focusing,
            ),
        }
        views = _scatter(seen.pooled.unflatten(0, (-1, 2)), pictures, len(view_mask))
        return {"views": views, "view_mask": view_mask.to(views.dtype)}, losses

    def couple(self, representations: dict[str, Tensor]) -> Losses:
        """InfoNCE over all rows' views, of all ranks."""
        views = representations["views"][representations["view_mask"] > 0]
        projected = self.projection(views.flatten(0, 1))
        return {"infonce": infonce(projected[::2], projected[1::2], self.config.temperature)}

    def encode_item(self, batch: ContentBatch) -> Tensor:
        """(B, embedding_dim) of unit norm, in float32, from whatever the items have."""
        texts, text_states = self._read_text(batch)
        modalities = [
            _frame_modality(
                self.vision, normalise(batch.frames), batch.frame_mask, self.inputs.max_frames
            ),
            _text_modality(text_states, texts, batch.token_mask),
            *self._sound(batch),
        ]
        return self._embed(self.fusion(modalities))

    def _embed(self, fused: Tensor) -> Tensor:
        return F.normalize(self.to_embedding(fused.mean(dim=1)).float(), dim=-1)

    def _read_text(self, batch: ContentBatch) -> tuple[Tensor, States]:
        rows = _rows(batch.token_mask.any(dim=1))
        mask = batch.token_mask[rows]
        first = F.one_hot(torch.zeros_like(rows), mask.shape[1]).bool()
        mask = mask | (first & ~mask.any(dim=1, keepdim=True))  # the dummy row sees its padding
        return rows, self.text(batch.token_ids[rows], mask)

    def _sound(self, batch: ContentBatch) -> list[Modality]:
        if self.audio is None:
            return []
        pictures, limit = batch.log_mel[:, :, None], self.inputs.max_audio_patches
        return [_frame_modality(self.audio, pictures, batch.audio_mask, limit)]


def _fusion(
    config: ContentModelConfig, widths: list[int], times: list[int]
) -> ScaleFusion | PooledFusion:
    kind = config.fusion
    pretrained = [config.vision.checkpoint is not None, config.text.checkpoint is not None]
    pretrained += [False] * (len(widths) - len(pretrained))  # audio is always from scratch
    if kind in ("early", "late", "hybrid"):
        return PooledFusion(
            widths, dim=config.fusion_dim, dropout=config.dropout, kind=kind, pretrained=pretrained
        )
    return ScaleFusion(
        widths,
        times,
        dim=config.fusion_dim,
        num_heads=config.fusion_heads,
        num_queries=config.num_queries,
        dropout=config.dropout,
        top_only=kind == "top_layer",
        pretrained=pretrained,
    )


def _rows(mask: Tensor) -> Tensor:
    """Positions of True. Where there is none in training, position 0: the dummy row."""
    rows = mask.nonzero().squeeze(1)
    alone = not torch.is_grad_enabled() and world_size() == 1
    return rows if len(rows) or alone else rows.new_zeros(1)


def _scatter(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """(n, ...) to (num_rows, ...), zero where `rows` does not point."""
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy(0, rows, values)


def _text_modality(states: States, rows: Tensor, mask: Tensor) -> Modality:
    scales = tuple(_scatter(scale, rows, len(mask)) for scale in states.scales)
    return Modality(scales, mask, _scatter(states.pooled, rows, len(mask)))


def _frame_modality(
    encoder: PictureEncoder, pictures: Tensor, mask: Tensor, limit: int
) -> Modality:
    """(B, F, C, H, W) and (B, F) -> F frames' states side by side."""
    if mask.shape[1] > limit:
        raise ValueError(
            f"ContentPretrainer: {mask.shape[1]} frames or audio patches an item, made for at most "
            f"{limit}; collate with the model's own inputs"
        )
    rows = _rows(mask.flatten())
    states = encoder(pictures.flatten(0, 1)[rows])
    shaped = [
        _scatter(value, rows, mask.numel()).unflatten(0, mask.shape)
        for value in (*states.scales, states.pooled)
    ]
    index = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    return _side_by_side(shaped[:-1], shaped[-1], mask, index)


def _view_modality(states: States, rows: Tensor, frame_mask: Tensor) -> Modality:
    """Two views a row of `rows`; `frame_mask` marks the frames that they were cut from, none
    where the pictures are withheld from the fusion."""
    num_rows, num_frames = frame_mask.shape
    shaped = [
        _scatter(value.unflatten(0, (-1, 2)), rows, num_rows)
        for value in (*states.scales, states.pooled)
    ]
    marked = frame_mask.long()
    last = num_frames - 1 - marked.flip(1).argmax(dim=1)
    index = torch.stack([marked.argmax(dim=1), last], dim=1)
    mask = frame_mask.any(dim=1, keepdim=True).expand(-1, 2)
    return _side_by_side(shaped[:-1], shaped[-1], mask, index)


def _side_by_side(scales: list[Tensor], pooled: Tensor, mask: Tensor, index: Tensor) -> Modality:
    """scales (B, F, S, D), pooled (B, F, D), mask and index (B, F) -> one row of F S states."""
    each = scales[0].shape[2]
    weight = mask.to(pooled.dtype)[..., None]
    mean = (pooled * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    return Modality(
        tuple(scale.flatten(1, 2) for scale in scales),
        mask.repeat_interleave(each, dim=1),
        mean,
        index.repeat_interleave(each, dim=1),
    )


def build_model(
    config: ContentModelConfig, inputs: ContentInputs, *, vocab_size: int, num_labels: int
) -> ContentPretrainer:
    """A model to train, its backbones new or from the checkpoints that `config` names.

    Raises:
        CheckpointError: as `new_backbones`.
    """
    backbones = new_backbones(config, inputs, vocab_size)
    return ContentPretrainer(config, inputs, num_labels, backbones)


@torch.no_grad()
def name_labels(
    model: ContentPretrainer, tokenizer: TextTokenizer, labels: Sequence[str], batch_size: int = 256
) -> None:
    """Begin each label's weight at the model's own embedding of the label's name.

    Of use where the text encoder comes from a checkpoint: the label loss then refines what the
    names already say (as CLIP classifies by names, Radford et al. 2021), instead of first bending
    the embedding towards random directions.
    """
    collate, training = ContentCollator(model.inputs), model.training
    model.eval()
    for start in range(0, len(labels), batch_size):
        names = labels[start : start + batch_size]
        batch = collate.from_parts(tokenizer.encode(names).token_ids)
        model.labels.weight[start : start + len(names)] = model.encode_item(batch)
    model.train(training)
