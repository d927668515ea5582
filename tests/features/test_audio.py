from __future__ import annotations

import cmath
import io
import math
import struct
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.features import audio
from rec.features.media import MediaError


def wav(samples: np.ndarray, rate: int, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        interleaved = samples if samples.ndim == 2 else samples[:, None].repeat(channels, 1)
        file.writeframes((interleaved * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def tone(hertz: float, seconds: float, rate: int = audio.SAMPLE_RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)


def plain_log_mel(window: np.ndarray) -> list[float]:
    """One window's 64 bands by the definition: loops, a plain DFT, triangles one by one."""
    weighted = [x * (0.5 - 0.5 * math.cos(2 * math.pi * n / 400)) for n, x in enumerate(window)]
    magnitude = []
    for k in range(257):
        total = sum(x * cmath.exp(-2j * math.pi * k * n / 512) for n, x in enumerate(weighted))
        magnitude.append(abs(total))
    edges = [mel(125.0) + i * (mel(7500.0) - mel(125.0)) / 65 for i in range(66)]
    bands = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        energy = 0.0
        for k in range(1, 257):
            place = mel(k * 8000 / 256)
            weight = min((place - low) / (centre - low), (high - place) / (high - centre))
            energy += max(0.0, weight) * magnitude[k]
        bands.append(math.log(energy + 0.01))
    return bands


def test_log_mel_agrees_with_the_definition() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 400 + 2 * 160 + 159).astype(np.float32)
    values = audio.log_mel(samples)
    assert values.shape == (3, 64)
    for i in (0, 2):
        expected = plain_log_mel(samples[160 * i : 160 * i + 400])
        np.testing.assert_allclose(values[i], expected, rtol=1e-4, atol=1e-4)


def test_a_tone_is_loudest_in_its_band_and_silence_is_the_offset() -> None:
    values = audio.log_mel(tone(1000.0, 1.0).astype(np.float32))
    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    assert abs(edges[1:-1] - mel(1000.0)).argmin() == values.mean(0).argmax()
    silent = audio.log_mel(np.zeros(4000, np.float32))
    np.testing.assert_allclose(silent, math.log(0.01), rtol=1e-6)


def test_patches_are_whole_and_short_clips_are_padded() -> None:
    rate = audio.SAMPLE_RATE
    assert audio.patches(tone(300, 5.0)).shape == (5, 96, 64)
    assert audio.patches(np.zeros(audio.PATCH_SAMPLES, np.float32)).shape == (1, 96, 64)
    short = audio.patches(tone(300, 0.5).astype(np.float32))
    assert short.shape == (1, 96, 64)
    np.testing.assert_allclose(short[0, 60:], math.log(0.01), rtol=1e-6)
    with pytest.raises(MediaError, match=r"0.050 s is too short"):
        audio.patches(np.zeros(rate // 20, np.float32))


def test_decoding_resamples_mixes_to_mono_and_stops_at_the_limit() -> None:
    data = wav(tone(500.0, 2.0, 44_100), 44_100, channels=2)
    samples = audio.decode(data)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 2 * audio.SAMPLE_RATE) <= 32
    np.testing.assert_allclose(samples[2000:30_000], tone(500.0, 2.0)[2000:30_000], atol=0.02)
    assert len(audio.decode(data, max_seconds=0.5)) == audio.SAMPLE_RATE // 2


@pytest.mark.parametrize("channels", [1, 2, 8, 9, 22, 64])
def test_the_mean_of_the_channels_is_taken(channels: int) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (4000, channels))
    mono = audio.decode(wav(values, audio.SAMPLE_RATE, channels))
    np.testing.assert_allclose(mono, values.mean(1), atol=1e-4)


@pytest.mark.parametrize("data", [b"", b"no sound at all", wav(np.zeros(0), 8000)])
def test_what_is_no_sound_is_a_media_error(data: bytes) -> None:
    with pytest.raises(MediaError):
        audio.decode(data)


def float_wav(samples: np.ndarray) -> bytes:
    """A WAV of 32-bit floats, mono, 16 kHz."""
    body = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, audio.SAMPLE_RATE, 4 * audio.SAMPLE_RATE, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body))
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(body)) + b"WAVE" + chunks + body


def test_loud_samples_are_cut_and_what_is_no_number_is_refused() -> None:
    samples = np.zeros(16_000, np.float32)
    samples[5000:5100], samples[6000:6100] = np.inf, -1e30
    found = audio.decode(float_wav(samples))
    assert (found.min(), found.max()) == (-1.0, 1.0)
    assert np.isfinite(audio.decode_patches(audio.encode_patches(audio.patches(found)))).all()
    samples[7000] = np.nan
    with pytest.raises(MediaError, match="no numbers"):
        audio.decode(float_wav(samples))


def test_a_picture_has_no_audio_stream() -> None:
    import cv2

    data = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    with pytest.raises(MediaError, match="cannot be decoded"):
        audio.decode(data)


def test_stored_patches_read_back_within_half_precision() -> None:
    values = audio.patches(tone(700, 2.0).astype(np.float32))
    stored = np.frombuffer(audio.encode_patches(values), np.float16).reshape(-1, 96, 64)
    np.testing.assert_allclose(stored, values, atol=2e-3)


@settings(deadline=None)
@given(st.integers(0, 4043), st.integers(0, 255))
def test_a_damaged_byte_never_raises_anything_but_a_media_error(at: int, value: int) -> None:
    data = bytearray(wav(np.zeros(2000), 16_000))
    data[at] = value
    try:
        samples = audio.decode(bytes(data))
    except MediaError:
        return
    assert samples.dtype == np.float32


def test_a_sound_at_a_rate_that_would_fill_memory_is_refused() -> None:
    data = wav(np.zeros(20_000), 1)
    with pytest.raises(MediaError, match="sound at 1 Hz"):
        audio.decode(data)
