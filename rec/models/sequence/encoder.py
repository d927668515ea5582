"""The published sequence encoder: users' histories to vectors, items' vectors, scores.

An artifact of kind "sequence-encoder": config.json (the body, see rec.nn.users), items.parquet
(item_id in order of item_index) and model.safetensors: the body's weights, "input_vectors", which
histories are read with, and "item_vectors", which users' vectors are compared with. What items'
vectors were made of is not needed to load it; an item that comes later needs another export.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rec.artifacts import ArtifactError, Manifest, open_artifact, publish
from rec.batch import SequenceBatch
from rec.config import Config
from rec.contract import Interests
from rec.nn.users import Body, BodyConfig, build_body, encode_users

KIND = "sequence-encoder"
_CONFIG, _WEIGHTS, _ITEMS = "config.json", "model.safetensors", "items.parquet"
_INPUTS, _OUTPUTS, _BODY = "input_vectors", "item_vectors", "body."


class SequenceEncoderConfig(Config):
    """config.json of the artifact."""

    body: BodyConfig
    num_items: int
    dim: int  # of users' and items' vectors


class Trained(Protocol):
    """What can be exported: a module with a body and the vectors of all items, as read and as
    predicted."""

    @property
    def body(self) -> Body: ...
    @property
    def training(self) -> bool: ...
    def train(self, mode: bool = True) -> object: ...
    def input_vectors(self) -> Tensor: ...
    def item_vectors(self) -> Tensor: ...


def save_encoder(
    model: Trained,
    item_ids: pa.Array | pa.ChunkedArray,
    uri: str | os.PathLike[str],
    *,
    lineage: Mapping[str, str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Publish a trained model at `uri`; returns its version.

    Args:
        item_ids: in order of item_index.
        lineage: artifact it was made from -> that one's version.
        metrics: what was measured of it.

    Raises:
        ArtifactError: there are not as many ids as the model has items.
    """
    training = model.training
    model.train(False)  # in training items' ids are hidden by chance
    with torch.no_grad():
        inputs, outputs = (v.float().cpu() for v in (model.input_vectors(), model.item_vectors()))
    model.train(training)
    if len(item_ids) != len(outputs):
        raise ArtifactError(f"{uri}: {len(item_ids)} item ids given, the model has {len(outputs)}")
    config = SequenceEncoderConfig(
        body=model.body.config, num_items=len(outputs), dim=outputs.shape[1]
    )
    weights = {f"{_BODY}{k}": v.detach().float() for k, v in model.body.state_dict().items()}
    weights |= {_INPUTS: inputs, _OUTPUTS: outputs}
    with tempfile.TemporaryDirectory(prefix="raycall-encoder-") as folder:
        staged = Path(folder)
        (staged / _CONFIG).write_text(config.to_json())
        copies = {k: v.cpu().contiguous().clone() for k, v in weights.items()}
        save_file(copies, staged / _WEIGHTS)
        pq.write_table(pa.table({"item_id": item_ids}), staged / _ITEMS)
        about = {"dim": config.dim, "body": config.body.model_dump()}
        manifest = publish(
            staged, uri, KIND, lineage=lineage, config=about, metrics=dict(metrics or {})
        )
    return manifest.version


class SequenceEncoder:
    """A loaded encoder. Safe to call from several threads; no call keeps a gradient.

    item_ids are those of the items in order of item_index, `places` the item_index of each.
    """

    def __init__(
        self, body: Body, inputs: Tensor, outputs: Tensor, item_ids: list[str], version: str
    ) -> None:
        self.body = body.eval().requires_grad_(False)
        self.item_ids, self.version = item_ids, version
        self._inputs, self._outputs = inputs, outputs
        self.places = {item: i for i, item in enumerate(item_ids)}

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._outputs.shape[1]

    @property
    def device(self) -> torch.device:
        return self._outputs.device

    def item_vectors(self) -> Tensor:
        """(N, dim) float32 in order of item_index."""
        return self._outputs

    def known_items(self) -> frozenset[str]:
        """Ids of the items that tell it something in a history. One without events on the training
        side, and without whatever else the model goes by, is read as zeros."""
        known = self._inputs.any(dim=1).tolist()
        return frozenset(itertools.compress(self.item_ids, known))

    def encode_user(self, histories: Sequence[Sequence[str]]) -> Interests:
        """(B, 1, dim) and (B, 1) of histories of item ids, oldest first.

        Of a history the latest events count, as many as the model was made for. Items that the
        encoder does not know are passed over; a history without any other has weight 0.
        """
        known = [[self.places[i] for i in items if i in self.places] for items in histories]
        lengths = torch.tensor([len(items) for items in known], dtype=torch.int64)
        flat = torch.tensor([i for items in known for i in items], dtype=torch.int64)
        nothing = torch.zeros_like(flat)
        return self._encode(
            SequenceBatch(lengths, flat, nothing.float(), nothing, nothing.bool()).to(self.device)
        )

    def score(self, batch: SequenceBatch) -> Tensor:
        """(B, N) of every item as the next, from the events that are not targets."""
        return self._encode(batch.to(self.device)).vectors[:, 0] @ self._outputs.T

    @torch.inference_mode()
    def _encode(self, batch: SequenceBatch) -> Interests:
        return encode_users(self.body, lambda items: self._inputs[items], batch)


def load_encoder(
    uri: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    manifest: Manifest | None = None,
) -> SequenceEncoder:
    """The encoder published at `uri`, verified against its manifest.

    Args:
        manifest: of the version to load; None = the one in use.

    Raises:
        ArtifactError: there is none, a file is absent or altered, or weights and config disagree.
    """
    manifest, folder = open_artifact(uri, KIND, manifest=manifest)
    config = SequenceEncoderConfig.from_json((folder / _CONFIG).read_text())
    item_ids = pq.read_table(folder / _ITEMS).column("item_id").to_pylist()
    body, found = build_body(config.body), load_file(folder / _WEIGHTS)
    own = {k.removeprefix(_BODY): v for k, v in found.items() if k.startswith(_BODY)}
    try:
        body.load_state_dict(own)
        inputs, outputs = found[_INPUTS], found[_OUTPUTS]
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(f"{folder / _WEIGHTS}: does not fit {_CONFIG}: {error}") from error
    sizes = {len(item_ids), len(inputs), len(outputs)}
    if sizes != {config.num_items} or outputs.shape[1] != config.dim:
        raise ArtifactError(
            f"{folder}: {len(item_ids)} item ids, vectors {tuple(inputs.shape)} and "
            f"{tuple(outputs.shape)}; {_CONFIG} says {config.num_items} of {config.dim}"
        )
    return SequenceEncoder(
        body.to(device), inputs.to(device), outputs.to(device), item_ids, manifest.version
    )
