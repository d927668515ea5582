"""Encoders of one modality each, on transformers' models: hidden states at four depths, pooled.

They see rows that have the modality and nothing else; who calls them leaves the others out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rec.config import ConfigError
from rec.features.content import NUM_MEL_BANDS, PATCH_FRAMES, ContentInputs
from rec.models.content.config import ContentModelConfig
from rec.nn.fusion import NUM_SCALES

if TYPE_CHECKING:  # functions import it when they build a model: it takes seconds, and most
    # processes that know a recipe or an encoder (drivers, controllers, gateways) never do
    from transformers import PreTrainedConfig, PreTrainedModel

_AUDIO_PATCH = 16  # mel bands by 10 ms frames


class States(NamedTuple):
    scales: tuple[Tensor, ...]  # NUM_SCALES of (N, S, D), at depths L/4, L/2, 3L/4, L
    pooled: Tensor  # (N, D)


class Backbones(NamedTuple):
    vision: PreTrainedModel
    text: PreTrainedModel
    audio: PreTrainedModel | None


class CheckpointError(ConfigError):
    """A checkpoint folder is absent or does not fit the data. Says which and why."""


def _depths(num_layers: int) -> list[int]:
    """Layers, counted from 1, at a quarter, half, three quarters and all of the depth."""
    return [-(-num_layers * quarter // NUM_SCALES) for quarter in range(1, NUM_SCALES + 1)]


def _pick(output: Any, num_layers: int) -> tuple[Tensor, ...]:
    *lower, _ = _depths(num_layers)
    # the last one after the final norm, where the architecture has one
    return (*(output.hidden_states[depth] for depth in lower), output.last_hidden_state)


def _no_states(backbone: PreTrainedModel, length: int) -> States:
    """Of no rows, which transformers' models do not take."""
    weight = next(backbone.parameters())
    dim = backbone.config.hidden_size
    return States((weight.new_zeros(0, length, dim),) * NUM_SCALES, weight.new_zeros(0, dim))


class PictureEncoder(nn.Module):
    """A ViT over pictures or log-mel patches. Pooled: the mean over patches (Beyer et al. 2022,
    "Better plain ViT baselines"), of whatever checkpoint.

    Args:
        backbone: a ViT-like model of transformers.
        height, width: of the pictures; position embeddings of another size are interpolated.
    """

    def __init__(self, backbone: PreTrainedModel, height: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim: int = backbone.config.hidden_size
        self.patch: int = backbone.config.patch_size
        size = backbone.config.image_size
        native = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        self.arguments = {} if native == (height, width) else {"interpolate_pos_encoding": True}
        self.num_patches = (height // self.patch) * (width // self.patch)

    def forward(self, pictures: Tensor) -> States:
        """(N, C, H, W) normalised -> states of S = 1 + patches each; of S = 1 where N is 0."""
        if not len(pictures):
            return _no_states(self.backbone, 1)
        pictures = pictures.to(next(self.backbone.parameters()).dtype)
        output = self.backbone(pictures, output_hidden_states=True, **self.arguments)
        pooled = output.last_hidden_state[:, -self.num_patches :].mean(dim=1)
        return States(_pick(output, self.backbone.config.num_hidden_layers), pooled)


class TextEncoder(nn.Module):
    """A BERT-family encoder. Pooled: the mean over tokens, as sentence encoders have it."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim: int = backbone.config.hidden_size

    @property
    def word_embeddings(self) -> Tensor:
        """(V, E), to which token predictions are tied."""
        return self.backbone.get_input_embeddings().weight  # type: ignore[return-value]

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> States:
        """(N, T) and (N, T), each row with a token -> states of S = T each."""
        if not len(token_ids):
            return _no_states(self.backbone, token_ids.shape[1])
        output = self.backbone(
            input_ids=token_ids, attention_mask=token_mask.long(), output_hidden_states=True
        )
        weight = token_mask.to(output.last_hidden_state.dtype)[..., None]
        pooled = (output.last_hidden_state * weight).sum(dim=1) / weight.sum(dim=1)
        return States(_pick(output, self.backbone.config.num_hidden_layers), pooled)


def new_backbones(config: ContentModelConfig, inputs: ContentInputs, vocab_size: int) -> Backbones:
    """Backbones from checkpoints where the configuration names them, else freshly initialised.

    Raises:
        CheckpointError: a folder is not there, or has fewer word embeddings than the tokenizer
            has words, or fewer positions than the texts have tokens.
        ConfigError: pictures are smaller than a patch.
    """
    from transformers import ViTConfig, ViTModel

    vision = config.vision
    if vision.checkpoint is None:
        if min(inputs.height, inputs.width) < vision.patch_size:
            raise ConfigError(
                f"pictures of {inputs.height} x {inputs.width} hold no patch of {vision.patch_size}"
                "; make inputs.height and inputs.width larger or model.vision.patch_size smaller"
            )
        picture_size = (inputs.height, inputs.width)
        sizes = _vit(vision.hidden_size, vision.num_layers, vision.num_heads, config.dropout)
        size = ViTConfig(image_size=picture_size, patch_size=vision.patch_size, **sizes)  # type: ignore[arg-type]
        vision_model: PreTrainedModel = ViTModel(size, add_pooling_layer=False)
    else:
        vision_model = _load(vision.checkpoint, config.dropout)
    audio_model = None
    if config.audio is not None:
        audio = config.audio
        sizes = _vit(audio.hidden_size, audio.num_layers, audio.num_heads, config.dropout)
        patch_size = (PATCH_FRAMES, NUM_MEL_BANDS)
        size = ViTConfig(image_size=patch_size, patch_size=_AUDIO_PATCH, num_channels=1, **sizes)  # type: ignore[arg-type]
        audio_model = ViTModel(size, add_pooling_layer=False)
    return Backbones(vision_model, _new_text(config, inputs, vocab_size), audio_model)


def _vit(hidden_size: int, num_layers: int, num_heads: int, dropout: float) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": 4 * hidden_size,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def _new_text(
    config: ContentModelConfig, inputs: ContentInputs, vocab_size: int
) -> PreTrainedModel:
    from transformers import BertConfig, BertModel

    text = config.text
    if text.checkpoint is None:
        return BertModel(
            BertConfig(
                vocab_size=vocab_size,
                max_position_embeddings=inputs.max_tokens,
                **_vit(text.hidden_size, text.num_layers, text.num_heads, config.dropout),
            ),
            add_pooling_layer=False,
        )
    model = _load(text.checkpoint, config.dropout)
    for what, there, needed in (
        ("word embeddings", model.config.vocab_size, vocab_size),
        ("positions", model.config.max_position_embeddings, inputs.max_tokens),
    ):
        if there < needed:
            raise CheckpointError(
                f"{text.checkpoint}: {there} {what}, the rows need {needed}; make the rows with "
                "this checkpoint's own tokenizer and length"
            )
    return model


def _load(folder: str, dropout: float) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModel

    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: no config.json; expected a local Hugging Face checkpoint folder"
        )
    changes = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    size = AutoConfig.from_pretrained(folder, local_files_only=True, **changes)
    model = AutoModel.from_pretrained(
        folder, config=size, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    return _without_pooler(model)


def _without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """Nothing reads the pooler, and a parameter that nothing reads gets no gradient."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)
    return model


def architectures(backbones: Backbones) -> dict[str, Any]:
    """What `backbones_of` needs to build the same models again, without their checkpoints."""
    return {
        name: None if model is None else model.config.to_diff_dict()
        for name, model in backbones._asdict().items()
    }


def backbones_of(described: dict[str, Any]) -> Backbones:
    """Backbones as described, their weights still to be loaded."""
    from transformers import AutoConfig, AutoModel

    models: dict[str, PreTrainedModel | None] = {}
    for name, fields in described.items():
        if fields is None:
            models[name] = None
            continue
        size: PreTrainedConfig = AutoConfig.for_model(**fields)
        models[name] = _without_pooler(AutoModel.from_config(size))
    return Backbones(**models)  # type: ignore[arg-type]


def freeze(backbones: Backbones, config: ContentModelConfig) -> None:
    """Take what the configuration freezes out of training."""
    if config.vision.freeze_patch_embedding:
        for name, parameter in backbones.vision.named_parameters():
            if "patch_embeddings" in name:
                parameter.requires_grad_(False)
    if config.text.frozen_layers == 0:
        return
    text = backbones.text
    layers = _layers(text)
    for parameter in text.get_submodule("embeddings").parameters():
        parameter.requires_grad_(False)
    for layer in list(layers)[: config.text.frozen_layers]:
        layer.requires_grad_(False)


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise CheckpointError(f"{type(model).__name__}: cannot find its layers to freeze them")
