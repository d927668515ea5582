"""Videos, pictures and sounds through Ray Data beside a bare loop that uses the same cores.

Of four items two have a video with sound (H.264, 640 x 360, 8 s), one a picture (JPEG, 1280 x 960)
and one a sound (WAV, 10 s). Both sides decode, pick key frames, scale, compress and make log-mel
patches by the same functions on the same shards, and write them to Parquet. The bare loop is one
process a core that takes every so-manieth shard; it makes no hashes and no index, lists no
problems and cannot resume.
"""

from __future__ import annotations

import argparse
import io
import logging
import statistics
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.harness import Report, main
from bench.workload import cores, elsewhere
from jobs.cli import start_ray
from rec.data.ingest import write_tables
from rec.data.media import MediaConfig, media_of_files
from rec.data.tables import shard_file
from rec.sources import FolderSource

_RATE, _SECONDS = 25, 8


def scene(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 in soft colours."""
    coarse = random.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _samples(random: np.random.Generator, seconds: float) -> np.ndarray:
    """(1, n) int16 of a tone in noise, 16 kHz."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * random.uniform(200, 2000) * time) * 8000
    return (tone + random.normal(0, 800, len(time))).astype(np.int16)[None]


def video(random: np.random.Generator) -> bytes:
    """An MP4 file of four scenes that pan, with sound."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        pictures = out.add_stream("libx264", rate=_RATE, options={"preset": "veryfast"})
        pictures.width, pictures.height, pictures.pix_fmt = 640, 360, "yuv420p"
        heard = out.add_stream("aac", rate=16_000, layout="mono")
        for _ in range(4):
            wide = scene(random, 700, 360)
            for at in range(_RATE * _SECONDS // 4):
                picture = np.ascontiguousarray(wide[:, at : at + 640])
                out.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        out.mux(pictures.encode())
        samples = _samples(random, _SECONDS)
        for start in range(0, samples.shape[1], 1024):
            piece = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), start
            out.mux(heard.encode(frame))
        out.mux(heard.encode())
    return target.getvalue()


def sound(random: np.random.Generator) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="wav") as out:
        stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(_samples(random, 10), format="s16", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target.getvalue()


def make_folder(folder: Path, items: int, distinct: int) -> None:
    """items.csv and a file of its own for each item, of so many contents of each kind."""
    random = np.random.default_rng(0)
    pictures = [
        cv2.imencode(".jpg", scene(random, 1280, 960))[1].tobytes() for _ in range(distinct)
    ]
    videos = [video(random) for _ in range(distinct)]
    sounds = [sound(random) for _ in range(distinct)]
    kinds = [(videos, "mp4"), (pictures, "jpg"), (videos, "mp4"), (sounds, "wav")]
    lines = ["item_id,title,files"]
    for n in range(items):
        files, suffix = kinds[n % 4]
        name = f"{n:06d}.{suffix}"
        (folder / name).write_bytes(files[n // 4 % distinct])
        lines.append(f"i{n:06d},item {n},{name}")
    (folder / "items.csv").write_text("\n".join(lines))


def _ours(rank: int, source: FolderSource, out: str) -> None:  # noqa: ARG001
    import ray
    import ray.data

    start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    write_tables(source, out)
    ray.shutdown()


def _bare(rank: int, source: FolderSource, out: str, world: int) -> None:
    cv2.setNumThreads(1)
    for shard in source.shards()[rank::world]:
        tables = [
            part.rows
            for name, piece in source.read(shard)
            if name == "files"
            for part in media_of_files(piece, MediaConfig())
        ]
        place = Path(shard_file(out, "media", shard.index))
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), place, use_dictionary=False)


def _rate(out: Path, items: int, num_shards: int) -> float:
    """Items a second after the first quarter of the shards was written."""
    times = sorted(path.stat().st_mtime for path in (out / "media").iterdir())
    warm = max(num_shards // 4, 1)
    return items * (num_shards - warm) / num_shards / (times[-1] - times[warm - 1])


def measure(options: argparse.Namespace, report: Report) -> None:
    items, num_shards, rounds = (16, 4, 1) if options.quick else (options.items, 64, 3)
    warm: dict[str, list[float]] = {"job": [], "bare": []}
    whole: dict[str, list[float]] = {"job": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="raycall-media-") as folder:
        files = Path(folder, "files")
        files.mkdir()
        make_folder(files, items, 1 if options.quick else 6)
        source = FolderSource(path=str(files), num_shards=num_shards)
        sizes: dict[str, list[int]] = {}
        for number in range(rounds):
            for name in warm:
                out = Path(folder, f"{name}-{number}")
                if name == "job":
                    seconds = elsewhere(_ours, source, str(out))
                else:
                    seconds = elsewhere(_bare, source, str(out), cores(), processes=cores())
                warm[name].append(_rate(out, items, num_shards))
                whole[name].append(items / seconds)
                report.note(f"round {number + 1}, {name}: {warm[name][-1]:.1f} items/s after "
                            f"warm-up, {seconds:.1f} s in all")  # fmt: skip
                sizes[name] = [path.stat().st_size for path in sorted((out / "media").iterdir())]
    for values, when, bar in ((warm, "after warm-up", 0.85), (whole, "with start-up", None)):
        for name in values:
            report.add(f"items/s, {name}, {when}", statistics.median(values[name]))
        ratio = statistics.median(values["job"]) / statistics.median(values["bare"])
        report.add(f"job / bare loop, {when}", ratio, bar=bar)
    report.add(
        "largest shard / mean shard, stored bytes",
        max(sizes["job"]) / statistics.mean(sizes["job"]),
    )
    report.note(
        f"{items} items in {num_shards} shards; {cores()} tasks and processes of one thread; "
        f"medians of {rounds} rounds; warm-up is the first quarter of the shards"
    )


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--items", type=int, default=1600, help="default 1600; quick: 16")


if __name__ == "__main__":
    main("media", __doc__, measure, flags)
