"""Texts and pictures to vectors, batched over all callers. Knows nothing of Ray or HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from rec.artifacts import Manifest
from rec.features.media import MediaError
from rec.models.content.encoder import load_encoder
from serve_apps.batcher import Batcher
from serve_apps.errors import ApiError, invalid
from serve_apps.gateway import Content
from serve_apps.versions import same

# of one request: 64 that take half a second each would keep all others waiting for as long
_PICTURES_AT_ONCE = 2


class _Prepared(NamedTuple):
    token_ids: list[int]
    frames: list[np.ndarray]


class Embedder:
    """One encoder, its preparing threads and its batcher.

    Args:
        uri: of a "content-encoder" artifact.
        version: the version that was deployed; another one, published since, is refused.
        max_batch, max_wait_s: as for `Batcher`.
        device: where the model runs.
        manifest: of that version, with which it is found though another was published since.
        bf16: multiply matrices in bfloat16; vectors stay float32.

    Raises:
        ArtifactError: it cannot be read.
    """

    def __init__(
        self,
        uri: str,
        version: str,
        *,
        max_batch: int,
        max_wait_s: float,
        device: str = "cpu",
        manifest: Manifest | None = None,
        bf16: bool = False,
    ) -> None:
        self._bf16 = bf16
        self._encoder = load_encoder(uri, device, manifest)
        same(uri, self._encoder.version, version)
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._batcher: Batcher[_Prepared, np.ndarray] | None = None
        # decoding and tokenising release the GIL; a text does not wait for pictures
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self._pictures = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pictures")

    async def encode(self, inputs: Sequence[Content]) -> np.ndarray:
        """(B, D) float32 of unit norm.

        Raises:
            ApiError: a picture cannot be decoded, or an input has nothing the model can read.
        """
        turns = asyncio.Semaphore(_PICTURES_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:  # one that fails ends the others
                tasks = [group.create_task(self._prepared(one, turns)) for one in inputs]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return await self._vectors([task.result() for task in tasks])

    async def _vectors(self, prepared: Sequence[_Prepared]) -> np.ndarray:
        if self._batcher is None:  # here, because it belongs to the running loop
            self._batcher = Batcher(self._run, self._max_batch, self._max_wait_s)
        return np.stack(await asyncio.gather(*(self._batcher.submit(part) for part in prepared)))

    async def _prepared(self, content: Content, turns: asyncio.Semaphore) -> _Prepared:
        loop = asyncio.get_running_loop()
        if content.picture is None:
            return await loop.run_in_executor(self._texts, self._prepare, content)
        async with turns:
            return await loop.run_in_executor(self._pictures, self._prepare, content)

    async def canary(self) -> None:
        """Raises ApiError unless a small text becomes a vector of unit norm."""
        _check_canary(await self._vectors([self._small()]))

    def probe(self) -> None:
        """As `canary`, before there are callers: within the thread that asks."""
        _check_canary(self._run([self._small()]))

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        for threads in (self._texts, self._pictures):
            threads.shutdown(wait=False)

    def _prepare(self, content: Content) -> _Prepared:
        tokens = self._encoder.tokenizer.encode([content.text])
        frames = []
        if content.picture is not None:
            try:
                frames.append(self._encoder.collator.decode(content.picture))
            except MediaError as error:
                raise invalid(f"{content.place}.image: {error}") from error
        if not frames and not self._encoder.tokenizer.knows(tokens, 0):
            raise invalid(f"{content.place}.text: nothing in it that the model can read")
        return _Prepared(tokens.token_ids[0], frames)

    def _small(self) -> _Prepared:
        """Of any vocabulary, so perhaps of unknown tokens, which `encode` refuses."""
        return _Prepared(self._encoder.tokenizer.encode(["canary"]).token_ids[0], [])

    def _run(self, parts: Sequence[_Prepared]) -> list[np.ndarray]:
        batch = self._encoder.collator.from_parts(
            [p.token_ids for p in parts], [p.frames for p in parts]
        )
        # of this thread alone
        with torch.autocast(self._encoder.device.type, torch.bfloat16, enabled=self._bf16):
            return list(self._encoder.encode(batch))


def _check_canary(vectors: Sequence[np.ndarray] | np.ndarray) -> None:
    norm = float(np.linalg.norm(vectors[0]))
    if not abs(norm - 1) < 1e-3:
        raise ApiError(503, "unhealthy", f"the encoder's canary has norm {norm}, expected 1")
