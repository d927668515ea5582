"""Sound to log-mel patches, as VGGish reads it (Hershey et al., ICASSP 2017).

16 kHz mono; periodic Hann windows of 25 ms every 10 ms; magnitude of a 512-point FFT; 64 HTK mel
bands from 125 to 7500 Hz; log(mel + 0.01); patches of 96 windows (0.96 s) that do not overlap.
"""

from __future__ import annotations

import functools

import av
import numpy as np
from av.audio.frame import AudioFrame

from rec.features.media import Deadline, MediaError, open_media

SAMPLE_RATE = 16_000
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FFT_LENGTH = 512
NUM_MEL_BANDS = 64
PATCH_FRAMES = 96
PATCH_SAMPLES = WINDOW + HOP * (PATCH_FRAMES - 1)  # 15600: what one patch needs
MIN_SAMPLES = SAMPLE_RATE // 10
_LOW_HERTZ, _HIGH_HERTZ = 125.0, 7500.0
_LOG_OFFSET = 0.01
_RATES = (2_000, 768_000)
_MAX_CHANNELS = 64
_MAX_DECODE_SECONDS = 60.0


def decode(data: bytes, max_seconds: float = 60.0) -> np.ndarray:
    """The first `max_seconds` of a compressed sound (or of a video's) as (n,) float32 at 16 kHz.

    Formats of floats may be louder than full scale; such samples are cut to -1 and 1.

    Raises:
        MediaError: the bytes are no sound FFmpeg can decode, or hold no audio stream; its rate or
            channels are none of a sound; a sample is no number; decoding takes over a minute.
    """
    limit = int(max_seconds * SAMPLE_RATE)
    deadline = Deadline(_MAX_DECODE_SECONDS)
    pieces: list[np.ndarray] = []
    length = 0
    with open_media(data, "sound") as container:
        if not container.streams.audio:
            raise MediaError(f"no audio stream in a file of {len(data)} bytes")
        if container.streams.audio[0].codec_context is None:
            raise MediaError("sound of a format that FFmpeg does not know")
        # FFmpeg's own mix to mono is louder than the channels' mean, which VGGish takes; of planar
        # frames PyAV reads past the eighth channel into memory that is not theirs
        resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
        for packet in container.demux(audio=0):
            deadline.check()
            for frame in packet.decode():
                _check(frame)
                for piece in resampler.resample(frame):
                    pieces.append(_mono(piece))
                    length += len(pieces[-1])
            if length >= limit:
                break
        for piece in resampler.resample(None):
            pieces.append(_mono(piece))
    if not length:
        raise MediaError(f"no samples in a sound of {len(data)} bytes")
    samples = np.concatenate(pieces)[:limit].astype(np.float32, copy=False)
    samples = np.clip(samples, -1.0, 1.0)  # of infinity too; what is no number stays none
    if not np.isfinite(samples).all():
        raise MediaError(f"sound of {len(data)} bytes has samples that are no numbers")
    return samples


def _mono(frame: AudioFrame) -> np.ndarray:
    """(n,) mean of the channels of a frame whose samples are interleaved."""
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(1)


def _check(frame: AudioFrame) -> None:
    """A second of sound at 1 Hz would become 16,000 samples for each of its own."""
    low, high = _RATES
    if not low <= frame.sample_rate <= high:
        raise MediaError(f"sound at {frame.sample_rate} Hz, expected {low} to {high}")
    channels = frame.layout.nb_channels
    if channels > _MAX_CHANNELS:
        raise MediaError(f"sound of {channels} channels, expected at most {_MAX_CHANNELS}")


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    """HTK's mel scale."""
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


@functools.cache
def mel_matrix() -> np.ndarray:
    """(257, 64): FFT bin to mel band; triangles that are linear in mel, peak 1, no DC."""
    bins = _mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT_LENGTH // 2 + 1))[:, None]
    edges = np.linspace(_mel(_LOW_HERTZ), _mel(_HIGH_HERTZ), NUM_MEL_BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return weights.astype(np.float32)


@functools.cache
def _window() -> np.ndarray:
    """(400,) periodic Hann: its period is 400, not 399."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """(n,) samples in -1 to 1 at 16 kHz to (windows, 64) float32, with only whole windows."""
    if len(samples) < WINDOW:
        return np.zeros((0, NUM_MEL_BANDS), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    spectrum = np.abs(np.fft.rfft(windows * _window(), FFT_LENGTH)).astype(np.float32)
    return np.log(spectrum @ mel_matrix() + np.float32(_LOG_OFFSET))


def patches(samples: np.ndarray) -> np.ndarray:
    """(n,) samples to (P, 96, 64) float32; what is left after the last whole patch is dropped.

    A clip shorter than one patch (0.975 s) is padded with silence to one.

    Raises:
        MediaError: the clip is shorter than 0.1 s.
    """
    if len(samples) < MIN_SAMPLES:
        raise MediaError(
            f"sound of {len(samples) / SAMPLE_RATE:.3f} s is too short, expected at least 0.1 s"
        )
    if len(samples) < PATCH_SAMPLES:
        samples = np.pad(samples, (0, PATCH_SAMPLES - len(samples)))
    windows = log_mel(samples)
    count = len(windows) // PATCH_FRAMES
    return windows[: count * PATCH_FRAMES].reshape(count, PATCH_FRAMES, NUM_MEL_BANDS)


def encode_patches(values: np.ndarray) -> bytes:
    """(P, 96, 64) patches as rows keep them: float16, C order."""
    return np.ascontiguousarray(values, np.float16).tobytes()


def decode_patches(data: bytes) -> np.ndarray:
    """(P, 96, 64) float16 patches that `encode_patches` wrote."""
    return np.frombuffer(data, np.float16).reshape(-1, PATCH_FRAMES, NUM_MEL_BANDS)
