"""Training that begins with the weights of a published encoder instead of random ones.

Everything but the label head is taken over as it is; of that, the rows of labels that both know.
The vocabulary of labels is fitted on the rows anew, so it changes from one training to the next,
and a label's row would else go to whichever label has its number now.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from rec.artifacts import ArtifactError, open_artifact
from rec.models.content.encoder import KIND, LABELS, WEIGHTS
from rec.models.content.pretrain import ContentPretrainer

_OF_LABELS = ("labels.weight", "labels.bias")


def start_from(model: ContentPretrainer, labels: Sequence[str], uri: str | os.PathLike[str]) -> int:
    """Give `model` the weights of the encoder published at `uri`.

    Args:
        labels: what the model's label head predicts, in its order.

    Returns:
        How many of the labels that encoder knew.

    Raises:
        ArtifactError: there is no such encoder, or it is of other sizes.
    """
    manifest, folder = open_artifact(uri, KIND)
    found = load_file(folder / WEIGHTS)
    known = pq.read_table(folder / LABELS).sort_by("label_id").column("label").to_pylist()
    place = {label: row for row, label in enumerate(known)}
    both = [(row, place[label]) for row, label in enumerate(labels) if label in place]
    own = model.state_dict()
    for name in _OF_LABELS:
        theirs, head = found[name], own[name].clone()
        if theirs.shape[1:] != head.shape[1:]:
            continue  # told below, with what else is of other sizes
        for row, old in both:
            head[row] = theirs[old]
        found[name] = head
    try:
        with torch.no_grad():
            model.load_state_dict(found)
    except RuntimeError as error:
        said = " ".join(f"{error}".split())
        raise ArtifactError(
            f"{uri}: version {manifest.version} is of other sizes than the recipe, so training "
            f"cannot start from it: {said}"
        ) from error
    return len(both)
