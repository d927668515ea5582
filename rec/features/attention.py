"""How much the pooled token of a pretrained text encoder attends to each token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rec.features.text import TokenizerError


class AttentionScorer:
    """Attention of the first token, mean over heads and the last layers, for key-term scores."""

    def __init__(self, folder: str, *, layers: int, vocab_size: int, batch_size: int = 64) -> None:
        """Open the encoder of a local Hugging Face folder.

        Args:
            folder: a checkpoint whose tokenizer made the token ids.
            layers: how many of the last layers are averaged.
            vocab_size: of the tokenizer, to refuse an encoder of another one.
            batch_size: texts a forward pass.

        Raises:
            TokenizerError: there is no such folder, or the encoder has fewer embeddings than the
                tokenizer has tokens.
        """
        from transformers import AutoModel

        if not (Path(folder) / "config.json").is_file():
            raise TokenizerError(
                f"attention encoder {folder}: no config.json; expected a local Hugging Face folder"
            )
        self.model = AutoModel.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager"
        ).eval()
        known = self.model.get_input_embeddings().num_embeddings
        if known < vocab_size:
            raise TokenizerError(
                f"attention encoder {folder}: {known} token embeddings, but the tokenizer has "
                f"{vocab_size} tokens; give the tokenizer of the same folder"
            )
        self.max_tokens = self.model.config.max_position_embeddings
        self.layers, self.batch_size = layers, batch_size

    @torch.inference_mode()
    def __call__(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """(N,) float32 over the tokens of all texts one after the other.

        Tokens past the encoder's own limit get 0.
        """
        pieces: list[np.ndarray] = [np.zeros(0, np.float32)] * len(token_ids)
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        order = [row for row in order if token_ids[row]]
        for at in range(0, len(order), self.batch_size):
            rows = order[at : at + self.batch_size]
            lengths = [min(len(token_ids[row]), self.max_tokens) for row in rows]
            ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                ids[i, :length] = torch.as_tensor(token_ids[row][:length])
                mask[i, :length] = 1
            out = self.model(input_ids=ids, attention_mask=mask, output_attentions=True)
            given = torch.stack([a[:, :, 0].mean(1) for a in out.attentions[-self.layers :]]).mean(
                0
            )
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                piece = np.zeros(len(token_ids[row]), np.float32)
                piece[:length] = given[i, :length].float().numpy()
                pieces[row] = piece
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
