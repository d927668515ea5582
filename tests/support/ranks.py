"""Gloo ranks on this machine, forked from a server that has the heavy imports behind it."""

from __future__ import annotations

import functools
import gc
import os
import socket
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

_IMPORTED = [
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # brings all of torch.compile, unused
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "networkx",
    "torch.utils.cpp_extension",
    "rec.train.deepspeed",
    "rec.train.gradient",
    "rec.recipes.content",
    "transformers.models.bert.modeling_bert",
    "transformers.models.vit.modeling_vit",
]
_ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def on_ranks(world: int, work: Callable[..., None], *args: Any) -> None:
    """Run work(*args) in `world` ranks of one thread and wait; a rank's error is raised here."""
    _start_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        told = (world, port, f"{folder}/store", work, args)
        start_processes(_rank, told, nprocs=world, start_method="forkserver")


@functools.cache
def _start_server() -> None:
    # importing torch and DeepSpeed takes a rank longer than most of what it is started for
    get_context("forkserver").set_forkserver_preload(_IMPORTED)
    before = dict(os.environ)
    os.environ |= _ON_CPU
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ |= before


def _rank(
    rank: int, world: int, port: int, store: str, work: Callable[..., None], args: Any
) -> None:
    gc.freeze()  # DeepSpeed collects garbage for each engine, seconds of all that was imported
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),  # a name for DeepSpeed's shared memory
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
    }
    # not on that port: another process may have taken it meanwhile
    meeting = dist.FileStore(store, world)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world)
    work(*args)
    dist.barrier()
    dist.destroy_process_group()
