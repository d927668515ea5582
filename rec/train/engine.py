"""Engines: how a model is called, differentiated, reduced over ranks and stepped.

The loop knows only `Engine`. Here are the plain engine (one process) and torch DDP; DeepSpeed
has a file of its own, so that nothing else imports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from rec.train.recipe import Recipe, TrainConfig

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
_PLAIN_ATTENTION = partial(sdpa_kernel, SDPBackend.MATH)


class TrainError(RuntimeError):
    """Training cannot go on and would fail again. The message says why and what to change."""


class Engine(Protocol):
    """What the loop asks of an engine. `rank` and `world` are 0 and 1 without other processes."""

    device: torch.device
    rank: int
    world: int

    @property
    def module(self) -> nn.Module:
        """The model itself. Under ZeRO 3 its parameters are in pieces: use `call`."""
        ...

    def call(self, method: str, *arguments: Any) -> Any:
        """model.method(*arguments), in this engine's precision and under its hooks."""
        ...

    def micro(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a part of a step; gradients are reduced in the last."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self, lr_factor: float) -> Tensor:
        """Clip, update and clear; every group's rate is its own base times `lr_factor`.

        Returns the norm of the gradient over all ranks before clipping."""
        ...

    def save(self, folder: Path) -> None:
        """Every rank writes what it alone has; rank 0 also MODEL_FILE, whole and in fp32."""
        ...

    def load(self, folder: Path, world: int) -> None:
        """Take up what `world` ranks have saved; every rank calls it."""
        ...


class Dispatch(nn.Module):
    """A module whose forward calls a method of the model, so that DDP's and DeepSpeed's hooks,
    which sit on forward, see calls of `encode`, `couple` and `encode_item` too."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.model = model
        self._device_type, self._bf16 = device.type, precision == "bf16"
        # PyTorch's fused attention on a CPU is slow backward in bf16: with forward 1.7 times as
        # long as the plain one over 64 tokens, 5 times over 25 patches (torch 2.13)
        plain = self._bf16 and self._device_type == "cpu"
        self._attention = _PLAIN_ATTENTION if plain else nullcontext

    def forward(self, method: str, *arguments: Any) -> Any:
        with self._attention(), torch.autocast(self._device_type, torch.bfloat16, self._bf16):
            if method == "forward":
                return self.model(*arguments)
            return getattr(self.model, method)(*arguments)


def adamw(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.AdamW:
    """The optimiser of every engine, so that engines agree to rounding."""
    return torch.optim.AdamW(
        groups, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
    )


class PlainEngine:
    """One process, one device."""

    rank, world = 0, 1

    def __init__(self, recipe: Recipe[Any], model: nn.Module, device: torch.device) -> None:
        self.device = device
        self._model = model.to(device)
        # groups are made on the device: the optimiser must hold the parameters that are trained
        self._optimizer = adamw(recipe.parameter_groups(cast(Any, self._model)), recipe.train)
        self._base = [group["lr"] for group in self._optimizer.param_groups]
        self._max_norm = recipe.train.max_grad_norm
        self._dispatch: nn.Module = Dispatch(self._model, device, recipe.train.precision)

    @property
    def module(self) -> nn.Module:
        return self._model

    def call(self, method: str, *arguments: Any) -> Any:
        return self._dispatch(method, *arguments)

    def micro(self, last: bool) -> AbstractContextManager[Any]:  # noqa: ARG002
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr_factor: float) -> Tensor:
        set_rates(self._optimizer, self._base, lr_factor)
        norm = clip_gradients(self._model, self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path) -> None:
        if self.rank:
            return
        save_tensors(weights(self._model), folder / MODEL_FILE)
        state = self._optimizer.state_dict()["state"]
        flat = {f"{i}.{key}": v for i, slot in state.items() for key, v in slot.items()}
        save_tensors(flat, folder / OPTIMIZER_FILE)

    def load(self, folder: Path, world: int) -> None:  # noqa: ARG002  (nothing here is cut by ranks)
        load_weights(self._model, folder / MODEL_FILE)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(folder / OPTIMIZER_FILE).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})


class DDPEngine(PlainEngine):
    """torch DDP over the default process group.

    Gradients travel in a group of their own: a model's own collectives (gathered negatives)
    run inside backward, and ranks that lack different modalities may reach them and DDP's
    buckets in different orders.
    """

    def __init__(self, recipe: Recipe[Any], model: nn.Module, device: torch.device) -> None:
        super().__init__(recipe, model, device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # ranks build equal buffers and keep them equal (rec.nn.batchnorm): sending rank 0's in
        # every step, by default, would carry a catalogue's columns each time
        self._ddp = DistributedDataParallel(
            self._dispatch,
            process_group=dist.new_group(),
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # saves a copy of all gradients, and its memory
        )
        self._dispatch = self._ddp

    def micro(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self._ddp.no_sync()

    def backward(self, loss: Tensor) -> None:
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        if self._ddp.require_backward_grad_sync and any(p.grad is not None for p in parameters):
            # the last of several parts must touch every parameter, or DDP waits for those that
            # only coupled losses use; a gradient of zero adds nothing to what they have
            loss = loss + 0.0 * torch.stack([p.sum() for p in parameters]).sum()
        loss.backward()


def set_rates(optimizer: torch.optim.Optimizer, base: list[float], factor: float) -> None:
    """Set every group's learning rate to its base times `factor`."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Clip to `max_norm` (0: do not) and return the norm before it, a scalar."""
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm or float("inf"))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, a tied one once, and persistent buffers, by name; they share the model's
    memory."""
    kept = model.state_dict().keys()
    named: dict[str, Tensor] = dict(model.named_parameters())
    named |= {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {name: tensor.detach() for name, tensor in named.items()}


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write `file`; OSError, with its errno, where the machine refuses, as a full disk does."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        refused = re.search(r"\(os error (\d+)\)", f"{error}")
        if not refused:
            raise OSError(f"{file}: {error}") from error
        number = int(refused[1])
        raise OSError(number, os.strerror(number), str(file)) from error


def load_weights(model: nn.Module, file: Path) -> None:
    """Copy the tensors of `file` into the model.

    Raises:
        TrainError: names or shapes differ; the first is named.
    """
    own, stored = weights(model), load_file(file)
    if strange := own.keys() ^ stored.keys():
        raise TrainError(f"{file}: holds another model; first difference: {min(strange)!r}")
    for name, tensor in own.items():
        if stored[name].shape != tensor.shape:
            raise TrainError(
                f"{file}: {name!r} is {tuple(stored[name].shape)}, the model's is "
                f"{tuple(tensor.shape)}"
            )
        tensor.copy_(stored[name])


def pick_device() -> torch.device:
    """The GPU of this process's local rank, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def build_engine(recipe: Recipe[Any], rows: str) -> Engine:
    """The engine that recipe.train names, around a freshly built model.

    The model is built after seeding with train.seed, so every rank starts from equal weights.

    Raises:
        TrainError: the engine is for ranks, and there is no process group.
    """
    train = recipe.train
    if train.engine != "plain" and not dist.is_initialized():
        raise TrainError(
            f"engine '{train.engine}' needs a process group: run with --workers 1 or more, or set "
            "train.engine to 'plain'"
        )
    torch.manual_seed(train.seed)
    device = pick_device()
    model = cast(nn.Module, recipe.build(rows))
    if train.engine == "deepspeed":
        from rec.train.deepspeed import DeepSpeedEngine  # imported only where it is used

        return DeepSpeedEngine(recipe, model, device)
    if train.engine == "ddp":
        return DDPEngine(recipe, model, device)
    return PlainEngine(recipe, model, device)
