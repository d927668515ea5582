"""Sounds of items: a topic's pitch, overtones and rhythm, each item a little off, in noise.

One second of 16 kHz mono 16-bit WAV.
"""

from __future__ import annotations

import io
import wave
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rec.sources.synthetic.catalogue import Catalogue, Ints
from rec.sources.synthetic.hashing import Purpose, uniform

SAMPLE_RATE = 16_000
_NUM_PITCHES = 16  # quarter octaves up from the lowest
_LOWEST_HZ = 160.0
_RHYTHMS = (2, 4, 5, 8, 10)  # pulses a second
_NUM_DRAWS = 4


@lru_cache(maxsize=4)
def _noise(seed: int) -> NDArray[np.float32]:
    keys = np.arange(2 * SAMPLE_RATE)
    return (uniform(seed, Purpose.NOISE, keys, 7) * 2.0 - 1.0).astype(np.float32)


def has_sound(catalogue: Catalogue, index: Ints) -> NDArray[np.bool_]:
    """Which items have sound; products never do."""
    config = catalogue.config
    drawn = uniform(config.seed, Purpose.HAS, index, 2) < config.sound_share
    return drawn & ~catalogue.is_product(index)


def render(catalogue: Catalogue, index: Ints) -> list[bytes | None]:
    """A WAV file an item, or None."""
    draws = uniform(catalogue.config.seed, Purpose.SOUND, index[:, None], np.arange(_NUM_DRAWS))
    has = has_sound(catalogue, index).tolist()
    topics = catalogue.topic(index).tolist()
    noise = _noise(catalogue.config.seed)
    return [
        _wav(_samples(topic, row, noise)) if heard else None
        for topic, row, heard in zip(topics, draws.tolist(), has, strict=True)
    ]


def _samples(topic: int, draw: list[float], noise: NDArray[np.float32]) -> NDArray[np.int16]:
    pitch = _LOWEST_HZ * 2.0 ** ((topic * 7 % _NUM_PITCHES + 0.5 * (draw[0] - 0.5)) / 4.0)
    pulses = _RHYTHMS[topic % len(_RHYTHMS)]
    length = SAMPLE_RATE // pulses
    time = np.arange(length, dtype=np.float32) / SAMPLE_RATE
    phase = np.float32(2.0 * np.pi * pitch) * time
    # overtones by the recurrence sin(n p) = 2 cos(p) sin((n-1) p) - sin((n-2) p)
    before, now, twice = np.zeros_like(phase), np.sin(phase), 2.0 * np.cos(phase)
    tone = now.copy()
    for overtone in range(2, 5):
        before, now = now, twice * now - before
        if pitch * overtone < SAMPLE_RATE / 2:
            tone += now * (0.15 + 0.6 * (topic * 3 + overtone * 5) % 7 / 7.0)
    pulse = tone * np.exp(-time * np.float32(pulses * (2.0 + topic % 3)))
    start = int(draw[1] * SAMPLE_RATE)
    wave_form = np.tile(pulse, pulses) * 0.3 * (0.6 + 0.4 * draw[2])
    wave_form += noise[start : start + SAMPLE_RATE] * (0.01 + 0.04 * draw[3])
    return (wave_form.clip(-1.0, 1.0) * 32_767).astype("<i2")


def _wav(samples: NDArray[np.int16]) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return target.getvalue()
