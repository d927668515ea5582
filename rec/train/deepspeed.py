"""The DeepSpeed engine: ZeRO 0 to 3, fp32 or bf16, on GPUs (NCCL) or CPUs (gloo).

Accumulation is ours (gradient_accumulation_steps is 1 and the loop marks the last part), so
that gradients mean the same in every engine. The optimiser is torch's AdamW as elsewhere.
ZeRO 2 and 3 reduce inside backward, in which a model may gather negatives: ranks must reach both
in one order, which holds as long as absent modalities are masks and never missing tensors.
With bf16, parameters are bf16 with fp32 masters, and the forward runs under autocast, so that
fp32 inputs and norms keep working.

`python -m rec.train.deepspeed --prebuild` compiles what DeepSpeed would compile in its first
run, which takes a minute and looks hung inside a worker.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rec.contract import GradCacheable
from rec.train.engine import (
    MODEL_FILE,
    Dispatch,
    TrainError,
    adamw,
    clip_gradients,
    save_tensors,
    set_rates,
    weights,
)
from rec.train.recipe import Recipe, TrainConfig

_FOLDER, _TAG = "deepspeed", "state"


class DeepSpeedEngine:
    """deepspeed.initialize around the model; every rank holds a part of the optimiser's state."""

    def __init__(self, recipe: Recipe[Any], model: nn.Module, device: torch.device) -> None:
        _refuse(recipe.train, model)
        self.device = device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._train = recipe.train
        self._deepspeed = _import(device.type)
        model.to(device)
        self._dispatch = Dispatch(model, device, self._train.precision)
        optimizer = adamw(recipe.parameter_groups(cast(Any, model)), self._train)
        # DeepSpeed drops empty groups, so must the list of rates
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"]]
        self._base = [group["lr"] for group in optimizer.param_groups]
        self._engine: Any = self._deepspeed.initialize(
            model=self._dispatch,
            optimizer=optimizer,
            config=_config(self._train, self.world),
            dist_init_required=False,
        )[0]
        own = model.parameters(recurse=False) if self._train.zero_stage == 3 else ()
        for parameter in own:
            # methods other than forward pass by the hooks that would gather these under ZeRO 3
            self._deepspeed.zero.register_external_parameter(self._dispatch, parameter)

    @property
    def module(self) -> nn.Module:
        return self._dispatch.model

    def call(self, method: str, *arguments: Any) -> Any:
        return self._engine(method, *arguments)

    def micro(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, lr_factor: float) -> Tensor:
        set_rates(self._engine.optimizer, self._base, lr_factor)
        if self._train.zero_stage == 0:  # here DeepSpeed would clip and not tell the norm
            norm = clip_gradients(self.module, self._train.max_grad_norm)
            self._engine.step()
            return norm
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        whole = self._whole_weights()
        if self.rank == 0:
            save_tensors(whole, folder / MODEL_FILE)
        try:
            self._engine.save_checkpoint(str(folder / _FOLDER), tag=_TAG, save_latest=False)
        except RuntimeError as error:
            if "inline_container" in f"{error}" or "PytorchStreamWriter" in f"{error}":
                # torch.save keeps from us what the machine said
                told = "a file could not be written whole; is there space left?"
                raise OSError(errno.EIO, told, str(folder / _FOLDER)) from error
            raise

    def load(self, folder: Path, world: int) -> None:
        if world == self.world or not self._train.zero_stage:  # stage 0 cuts nothing
            self._load(folder / _FOLDER, _TAG)
            return
        options = [{**group, "params": None} for group in self._engine.optimizer.param_groups]
        with _whole_again(folder / _FOLDER / _TAG) as whole:
            self._engine._config.load_universal_checkpoint = True
            try:
                self._load(whole.parent, whole.name)
            finally:
                self._engine._config.load_universal_checkpoint = False
        # stage 3 has given all groups the decay and the rate of the first one, and all parameters
        # one tensor to count steps in, which each of them would add to
        for group, before in zip(self._engine.optimizer.param_groups, options, strict=True):
            group.update({name: value for name, value in before.items() if name != "params"})
        for state in self._engine.basic_optimizer.state.values():
            if isinstance(step := state.get("step"), Tensor):
                state["step"] = step.clone()

    def _load(self, folder: Path, tag: str) -> None:
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        if loaded is None:
            raise TrainError(f"{folder}: DeepSpeed found no state of tag '{tag}' there")

    def _whole_weights(self) -> dict[str, Tensor]:
        """All weights from the fp32 masters; a collective call."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole: dict[str, Tensor] = {}
        parameters = dict(self.module.named_parameters())
        for name, tensor in weights(self.module).items():
            full = None
            if self._train.zero_stage and name in parameters:
                full = safe_get_full_fp32_param(parameters[name])
            value = tensor if full is None else full
            if value.dtype == torch.bfloat16:
                value = value.float()
            if self.rank == 0:
                whole[name] = value.detach().cpu()
        return whole


@contextmanager
def _whole_again(cut: Path) -> Iterator[Path]:
    """A folder, on this node, with the state in `cut` as DeepSpeed's universal checkpoint, which
    any number of ranks may load. All ranks call this; one of each node converts.

    Raises:
        TrainError: it cannot be converted; on every rank.
    """
    names = [f"raycall-universal-{uuid.uuid4().hex}"]
    dist.broadcast_object_list(names)
    whole = Path(tempfile.gettempdir()) / names[0] / _TAG
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, _convert(cut, whole) if first else None)
        for error in errors:
            if error is not None:
                raise TrainError(
                    f"{cut}: cannot be made whole for another number of ranks: {error}"
                )
        yield whole
        dist.barrier()
    finally:
        if first:
            shutil.rmtree(whole.parent, ignore_errors=True)


def _convert(cut: Path, whole: Path) -> str | None:
    """Write the universal checkpoint; what went wrong."""
    from deepspeed.checkpoint import ds_to_universal

    whole.mkdir(parents=True)
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            ds_to_universal.main(
                argparse.Namespace(
                    input_folder=str(cut),
                    output_folder=str(whole),
                    num_extract_workers=1,  # more are processes forked beside threads
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    strict=True,
                    inject_missing_state=True,
                )
            )
    except Exception as error:  # other ranks wait for what becomes of this
        return f"{type(error).__name__}: {error}"
    return None


def _refuse(train: TrainConfig, model: nn.Module) -> None:
    """What DeepSpeed 0.19.8 cannot do, or does wrongly, each seen in tests/train."""
    if train.zero_stage == 3 and train.micro_batches > 1 and isinstance(model, GradCacheable):
        raise TrainError(
            "ZeRO 3 with train.micro_batches > 1 and losses that couple rows gives wrong "
            "gradients: DeepSpeed adds a parameter's gradient to the last step's unless it comes "
            "in the first backward of a step. Use train.zero_stage 1 or 2, or micro_batches 1"
        )
    if train.zero_stage == 0 and train.precision == "bf16":
        raise TrainError(
            "ZeRO 0 with bf16 keeps no fp32 copy of the weights and drifts from fp32; use "
            "train.zero_stage 1, 2 or 3, or train.engine 'ddp'"
        )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:  # its broadcast views bytes, which needs a dimension
            raise TrainError(f"DeepSpeed takes no 0-dimensional parameter: give {name} shape (1,)")


def _config(train: TrainConfig, world: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.batch_size // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm if train.zero_stage else 0.0,
        "steps_per_print": 1 << 40,
        "zero_optimization": {"stage": train.zero_stage},
    }
    if train.precision == "bf16":
        config["bf16"] = {"enabled": True}
    return config


def _import(device_type: str) -> ModuleType:
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    return deepspeed


def prebuild() -> None:
    """Compile the operators that a CPU run loads; a no-op where there is a GPU (none is needed)."""
    if torch.cuda.is_available():
        print("deepspeed: nothing to compile for GPUs (the optimiser is torch's)")
        return
    _import("cpu")
    from deepspeed.accelerator import get_accelerator

    builder = cast(Any, get_accelerator()).create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible():
        print("deepspeed: no shared-memory collectives on this machine; gloo will be used")
        return
    print("deepspeed: compiling shared-memory collectives (once, up to a minute) ...", flush=True)
    start = time.perf_counter()
    builder.load()
    print(f"deepspeed: ready after {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare DeepSpeed on this machine.")
    parser.add_argument("--prebuild", action="store_true", help="compile its operators now")
    if not parser.parse_args().prebuild:
        parser.error("nothing to do; give --prebuild")
    prebuild()


if __name__ == "__main__":
    main()
