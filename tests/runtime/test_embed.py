"""The embedding job: equal to the plain loop, resumed not repeated, nothing dropped in silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damage import damage
from killed import kill_driver
from pyarrow import fs as pafs

from jobs import embed as job
from rec import artifacts
from rec.data.ledger import Ledger
from rec.data.parquet import ParquetError
from rec.features.content import ContentCollator, ContentInputs
from rec.features.text import save_tokenizer, train_wordpiece
from rec.models.content.config import AudioConfig, ContentModelConfig, TextConfig, VisionConfig
from rec.models.content.encoder import ContentEncoder, load_encoder, save_encoder
from rec.models.content.pretrain import build_model
from rec.retrieval.build import build_index
from rec.retrieval.index import Index
from rec.runtime.embed import EmbedConfig, _Embedder, embed, list_partitions
from rec.runtime.partition import EmbedError, Partition, PartReport, embed_partition, read_report
from rec.runtime.same_tokenizer import refuse_other_tokenizer
from rec.schema import EMBEDDINGS

VOCAB = 60
REPOSITORY = Path(__file__).parents[2]


def publish_encoder(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    save_tokenizer(train_wordpiece(["red river", "quiet planet"] * 2, VOCAB), folder / "tok", 16)
    inputs = ContentInputs(max_tokens=16, height=32, width=32, max_frames=2)
    config = ContentModelConfig(
        vision=VisionConfig(hidden_size=16, num_layers=4, num_heads=2, patch_size=8),
        text=TextConfig(hidden_size=16, num_layers=4, num_heads=2),
        audio=AudioConfig(hidden_size=16, num_layers=4, num_heads=2),
        fusion_dim=16,
        fusion_heads=2,
        num_queries=2,
        embedding_dim=8,
    )
    model = build_model(config, inputs, vocab_size=VOCAB, num_labels=2)
    save_encoder(model, folder / "tok", inputs, ["a", "b"], folder / "encoder")
    return str(folder / "encoder")


def content_rows(first: int, num_rows: int) -> pa.Table:
    """Rows with any of the modalities, of different lengths; item 4 n + 3 has none at all."""
    columns: dict[str, list[object]] = {
        name: [] for name in ("item_id", "token_ids", "frames", "log_mel")
    }
    for number in range(first, first + num_rows):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (2, 20, 30, 3), np.uint8)
        frames = [cv2.imencode(".png", picture)[1].tobytes() for picture in pixels]
        sound = rng.standard_normal((1, 96, 64)).astype(np.float16).tobytes()
        columns["item_id"].append(f"item-{number}")
        has = number % 4
        columns["token_ids"].append(
            rng.integers(5, VOCAB, number % 13 + 2).tolist() if has != 3 else []
        )
        columns["frames"].append(frames[: number % 3] if has in (0, 2) else [])
        columns["log_mel"].append(sound if has == 0 else None)
    return pa.table(
        columns,
        schema=pa.schema(
            {
                "item_id": pa.string(),
                "token_ids": pa.list_(pa.int32()),
                "frames": pa.list_(pa.large_binary()),
                "log_mel": pa.large_binary(),
            }
        ),
    )


def publish_rows(uri: str, num_parts: int = 5, num_rows: int = 12) -> str:
    """A content-rows artifact: the last file is held out, and labels.parquet is no rows file."""
    files, path = artifacts.filesystem(artifacts.join(uri, "r"))
    for part in range(num_parts):
        split = "heldout" if part == num_parts - 1 else "train"
        files.create_dir(f"{path}/{split}", recursive=True)
        pq.write_table(
            content_rows(part * num_rows, num_rows),
            f"{path}/{split}/shard-{part:05d}.parquet",
            filesystem=files,
            row_group_size=7,
        )
    artifacts.write_atomic(artifacts.join(uri, "r", "labels.parquet"), b"not rows")
    artifacts.seal(uri, "r", "content-rows")
    return uri


@pytest.fixture(scope="module")
def encoder_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(encoder_uri: str) -> ContentEncoder:
    return load_encoder(encoder_uri)


def read_table(uri: str) -> pa.Table:
    _, folder = artifacts.open_artifact(uri, "embedding-table")
    return pa.concat_tables([pq.read_table(p) for p in sorted(folder.rglob("*.parquet"))])


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table["vector"].to_pylist(), np.float32)


def write_partition(folder: Path, table: pa.Table) -> Partition:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "rows.parquet", row_group_size=7)
    return Partition(index=0, folder=str(folder), name="rows.parquet")


# one partition, no Ray ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_partition_equals_row_by_row(
    encoder: ContentEncoder, tmp_path: Path, batch_size: int
) -> None:
    """Sorting and padding within batches change neither order nor, beyond rounding, vectors."""
    rows = content_rows(0, 24)
    report = embed_partition(
        encoder, write_partition(tmp_path / "rows", rows), str(tmp_path / "out"), batch_size
    )
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table.schema.equals(EMBEDDINGS)
    assert table["id"].to_pylist() == rows["item_id"].to_pylist()
    assert set(table["interest"].to_pylist()) == {0}
    assert set(table["weight"].to_pylist()) == {1.0}
    collator = ContentCollator(encoder.inputs)
    expected = [encoder.encode(collator(rows.slice(i, 1)))[0] for i in range(24)]
    np.testing.assert_allclose(vectors_of(table), expected, atol=1e-5)
    assert (report.counts.rows_in, report.counts.rows_out, report.counts.dropped) == (24, 24, {})
    assert read_report(str(tmp_path / "out" / "part-00000.parquet")) == report


def _replaced(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    return table.set_column(index, column, pa.array(values, table[column].type))


def test_rows_that_fail_are_counted_and_named(encoder: ContentEncoder, tmp_path: Path) -> None:
    rows = content_rows(0, 24)
    bad = _replaced(rows, "log_mel", 9, b"not a patch")
    bad = _replaced(bad, "item_id", 2, None)
    partition = write_partition(tmp_path / "rows", bad)
    report = embed_partition(encoder, partition, str(tmp_path / "out"), 4)
    assert report.counts.dropped == {"no item_id": 1, "cannot be collated": 1}
    assert (report.counts.rows_in, report.counts.rows_out) == (24, 22)
    assert [message.split(":")[0] for message in report.failed] == [
        "rows.parquet row 2, item None",
        "rows.parquet row 9, item 'item-9'",
    ]
    assert "log_mel of 11 bytes" in report.failed[1]
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    kept = [i for i in range(24) if i not in (2, 9)]
    assert table["id"].to_pylist() == [f"item-{i}" for i in kept]
    collator = ContentCollator(encoder.inputs)
    expected = [encoder.encode(collator(rows.slice(i, 1)))[0] for i in kept]
    np.testing.assert_allclose(vectors_of(table), expected, atol=1e-5)


@pytest.mark.parametrize("token", [-7, VOCAB])
def test_tokens_that_the_encoder_does_not_have_are_named(
    encoder: ContentEncoder, tmp_path: Path, token: int
) -> None:
    bad = _replaced(content_rows(0, 8), "token_ids", 5, [5, token, 6])
    partition = write_partition(tmp_path / "rows", bad)
    report = embed_partition(encoder, partition, str(tmp_path / "out"), 4)
    assert (report.counts.rows_out, report.counts.dropped) == (7, {"cannot be collated": 1})
    assert report.failed[0].startswith(f"rows.parquet row 5, item 'item-5': token id {token}: ")
    assert "ids 0 to 59" in report.failed[0]


def test_a_partition_of_failures_alone(encoder: ContentEncoder, tmp_path: Path) -> None:
    rows = content_rows(0, 2)
    bad = rows.set_column(0, "item_id", pa.array([None, ""], pa.string()))
    partition = write_partition(tmp_path / "rows", bad)
    report = embed_partition(encoder, partition, str(tmp_path / "out"), 4)
    assert (report.counts.rows_in, report.counts.rows_out) == (2, 0)
    assert pq.read_table(tmp_path / "out" / "part-00000.parquet").num_rows == 0


def test_vectors_that_are_not_finite_are_left_out(encoder_uri: str, tmp_path: Path) -> None:
    encoder = load_encoder(encoder_uri)
    embeddings = encoder.model.text.word_embeddings
    embeddings[7] = torch.nan
    rows = content_rows(0, 24)
    partition = write_partition(tmp_path / "rows", rows)
    report = embed_partition(encoder, partition, str(tmp_path / "out"), 1)
    with_seven = [i for i, tokens in enumerate(rows["token_ids"].to_pylist()) if 7 in tokens]
    assert with_seven
    assert report.counts.dropped == {"vector not finite": len(with_seven)}
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table["id"].to_pylist() == [f"item-{i}" for i in range(24) if i not in with_seven]


def test_frames_that_cannot_be_decoded_cost_no_row(encoder: ContentEncoder, tmp_path: Path) -> None:
    rows = content_rows(0, 9)
    whole = rows["frames"][8].as_py()
    bad = _replaced(rows, "frames", 8, [b"no picture", whole[0]])
    partition = write_partition(tmp_path / "rows", bad)
    report = embed_partition(encoder, partition, str(tmp_path / "out"), 4)
    assert report.counts.rows_out == 9
    assert report.num_problems == 1
    assert report.problems[0].startswith("rows.parquet: 1 x ")


@pytest.mark.parametrize("lacking", [["frames"], ["item_id", "log_mel"]])
def test_missing_columns_are_named(
    encoder: ContentEncoder, tmp_path: Path, lacking: list[str]
) -> None:
    partition = write_partition(tmp_path / "rows", content_rows(0, 3).drop(lacking))
    with pytest.raises(
        EmbedError, match=rf"rows\.parquet: columns {lacking!r}".replace("[", r"\[")
    ):
        embed_partition(encoder, partition, str(tmp_path / "out"), 4)
    assert not (tmp_path / "out").exists()


def test_wrong_types_are_named(encoder: ContentEncoder, tmp_path: Path) -> None:
    rows = content_rows(0, 3).set_column(1, "token_ids", pa.array(["a", "b", "c"]))
    with pytest.raises(EmbedError, match=r"rows\.parquet: content rows have the types"):
        embed_partition(encoder, write_partition(tmp_path / "rows", rows), str(tmp_path / "o"), 4)


def test_a_file_that_is_no_parquet_is_named(encoder: ContentEncoder, tmp_path: Path) -> None:
    partition = write_partition(tmp_path / "rows", content_rows(0, 3))
    (tmp_path / "rows" / "rows.parquet").write_bytes(b"cut short")
    with pytest.raises(EmbedError, match=r"rows\.parquet: not a Parquet file .*make it again"):
        embed_partition(encoder, partition, str(tmp_path / "out"), 4)


def test_a_damaged_page_is_named_by_row_group_and_column(
    encoder: ContentEncoder, encoder_uri: str, tmp_path: Path
) -> None:
    partition = write_partition(tmp_path / "rows", content_rows(0, 20))
    path = tmp_path / "rows" / "rows.parquet"
    damage(path, row_group=2, column="token_ids")
    expected = r"rows\.parquet, row group 2, column 'token_ids': cannot be read \(.*\); make the"
    with pytest.raises(ParquetError, match=expected):
        embed_partition(encoder, partition, str(tmp_path / "out"), 4)
    assert not (tmp_path / "out").exists()
    actor = _Embedder(encoder_uri, encoder.version, str(tmp_path / "out"), EmbedConfig())
    answer = actor(pa.table({"partition": [partition.to_json()]}))  # no trace, but its words
    assert "row group 2, column 'token_ids'" in answer["error"][0].as_py()


def test_an_altered_file_of_published_rows_is_refused(
    encoder: ContentEncoder, tmp_path: Path
) -> None:
    uri = publish_rows(str(tmp_path / "rows"), num_parts=2)
    _, partitions = list_partitions(uri)
    path = Path(partitions[1].folder) / partitions[1].name
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(artifacts.ArtifactError, match=r"shard-00000\.parquet: .* publish again"):
        embed_partition(encoder, partitions[1], str(tmp_path / "out"), 4)


def test_partitions_of_an_artifact_and_of_a_folder(tmp_path: Path) -> None:
    uri = publish_rows(str(tmp_path / "rows"), num_parts=3)
    version, partitions = list_partitions(uri)
    assert version == artifacts.read_manifest(uri, "content-rows").version
    names = [
        "heldout/shard-00002.parquet",
        "train/shard-00000.parquet",
        "train/shard-00001.parquet",
    ]
    assert [p.name for p in partitions] == names
    assert [p.part_name for p in partitions] == [f"part-{i:05d}.parquet" for i in range(3)]
    write_partition(tmp_path / "plain", content_rows(0, 3))
    before, plain = list_partitions(str(tmp_path / "plain"))
    assert [p.name for p in plain] == ["rows.parquet"]
    write_partition(tmp_path / "plain", content_rows(0, 4))
    assert list_partitions(str(tmp_path / "plain"))[0] != before


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(EmbedError, match="nowhere: no such folder"):
        list_partitions(str(tmp_path / "nowhere"))
    with pytest.raises(EmbedError, match="no Parquet file"):
        list_partitions(str(tmp_path))


def test_an_encoder_published_again_meanwhile_is_refused(encoder_uri: str, tmp_path: Path) -> None:
    partition = write_partition(tmp_path / "rows", content_rows(0, 3))
    actor = _Embedder(encoder_uri, "another", str(tmp_path / "out"), EmbedConfig())
    answer = actor(pa.table({"partition": [partition.to_json()]}))
    assert answer["report"].to_pylist() == [None]
    assert "published again while the run began" in answer["error"][0].as_py()


def test_rows_of_another_tokenizer_are_refused(encoder_uri: str, tmp_path: Path) -> None:
    """Their token ids would mean other words, and the vectors would look like any."""
    published = artifacts.read_manifest(encoder_uri, "content-encoder")
    own = Path(encoder_uri, published.root, "tokenizer", "tokenizer.json").read_text()
    rows = tmp_path / "rows"
    file = rows / "r" / "tokenizer" / "tokenizer.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(json.loads(own), indent=1))  # the same in other bytes
    publish_rows(str(rows))
    assert file.read_text() != own
    refuse_other_tokenizer(encoder_uri, published, str(rows))
    train_wordpiece(["a wide sea", "deep sky"] * 2, VOCAB).save(str(file))
    artifacts.seal(rows, "r", "content-rows")
    with pytest.raises(EmbedError, match=r"rows: .* by another tokenizer .*rows\.text\.tokenizer="):
        embed(encoder_uri, str(rows), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_sums_of_reports_do_not_depend_on_order() -> None:
    one = PartReport(failed=("b", "d"), num_problems=1, problems=("z",))
    two = PartReport(failed=("a", "c"), num_problems=2, problems=("y",))
    assert one + two == two + one == PartReport() + two + one


# the table ----------------------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an actor does is done here: starting one takes longer than these tables."""

    def run(
        uri: str, version: str, rest: list[Partition], out: str, config: EmbedConfig
    ) -> Iterator[PartReport]:
        actor = _Embedder(uri, version, out, config)
        for partition in rest:
            answer = actor(pa.table({"partition": [partition.to_json()]}))
            assert answer["error"].to_pylist() == [None]
            yield PartReport.from_json(answer["report"][0].as_py())

    monkeypatch.setattr("rec.runtime.embed._run", run)


def test_another_encoder_never_mixes(
    in_this_process: None, encoder_uri: str, tmp_path: Path
) -> None:
    rows_uri, out = publish_rows(str(tmp_path / "rows"), num_parts=2), str(tmp_path / "out")
    config = EmbedConfig()
    one = embed(encoder_uri, rows_uri, out, config)
    first = vectors_of(read_table(out))
    (tmp_path / "second").mkdir()
    (Path(out) / artifacts.MANIFEST).unlink()  # cut short before it was published
    (Path(out) / one.root / "part-00001.parquet").write_bytes(b"PAR1")
    again = embed(encoder_uri, rows_uri, out, config)
    assert (again.version, again.metrics["num_resumed"]) == (one.version, 1)
    two = embed(publish_encoder(tmp_path / "second", seed=1), rows_uri, out, config)
    assert one.root != two.root
    assert two.metrics["num_resumed"] == 0
    assert np.abs(vectors_of(read_table(out)) - first).min() > 0
    artifacts.verify(out, one)  # who reads the old table goes on reading it
    half = embed(encoder_uri, rows_uri, out, EmbedConfig(precision="bf16"))
    assert half.root not in (one.root, two.root)
    cosine = (vectors_of(read_table(out)) * first).sum(axis=1)
    assert cosine.min() > 0.99


def test_too_many_failures_publish_nothing(
    in_this_process: None, encoder_uri: str, tmp_path: Path
) -> None:
    rows = _replaced(content_rows(0, 10), "log_mel", 9, b"not a patch")
    write_partition(tmp_path / "plain", rows)
    plain, out = str(tmp_path / "plain"), str(tmp_path / "out")
    with pytest.raises(EmbedError, match=r"1 of 10 rows failed .*item-9.*max_failed_share"):
        embed(encoder_uri, plain, out, EmbedConfig())
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = embed(encoder_uri, plain, out, EmbedConfig(max_failed_share=0.1))
    assert (manifest.metrics["num_rows"], manifest.metrics["num_failed"]) == (9, 1)
    assert manifest.metrics["num_resumed"] == 1  # the part stood; only the judgement changed
    failed = json.loads((Path(out) / manifest.root / "failed.json").read_text())
    assert len(failed) == 1
    assert "item-9" in failed[0]


# the job ------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_job_embeds_every_row_and_does_it_once(
    ray_local: None, encoder_uri: str, encoder: ContentEncoder, tmp_path: Path
) -> None:
    rows_uri, out = publish_rows(str(tmp_path / "rows")), str(tmp_path / "out")
    config = EmbedConfig(num_actors=1, batch_size=5)
    manifest = embed(encoder_uri, rows_uri, out, config)
    assert manifest.lineage == {
        "encoder": encoder.version,
        "rows": artifacts.read_manifest(rows_uri, "content-rows").version,
    }
    table = read_table(out)
    assert sorted(table["id"].to_pylist()) == sorted(f"item-{i}" for i in range(60))
    collator = ContentCollator(encoder.inputs)
    by_id = dict(zip(table["id"].to_pylist(), vectors_of(table), strict=True))
    expected = encoder.encode(collator(content_rows(0, 60)))
    np.testing.assert_allclose([by_id[f"item-{i}"] for i in range(60)], expected, atol=1e-5)
    folder = Path(out) / manifest.root
    ledger = Ledger.from_json((folder / "ledger.json").read_text())
    assert ledger.stages["embed"].rows_in == ledger.stages["embed"].rows_out == 60

    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert embed(encoder_uri, rows_uri, out, config) == manifest
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == times

    # altered or removed parts are computed again, the others are not
    (folder / "part-00001.parquet").write_bytes(b"PAR1")
    (folder / "part-00003.parquet").unlink()
    again = embed(encoder_uri, rows_uri, out, config)
    assert again.version == manifest.version
    assert again.metrics["num_resumed"] == 3
    kept = ("part-00000.parquet", "part-00002.parquet", "part-00004.parquet")
    assert all((folder / name).stat().st_mtime_ns == times[name] for name in kept)

    # and the index takes what the job publishes
    index_manifest = build_index(out, str(tmp_path / "index"))
    assert index_manifest.lineage["encoder"] == encoder.version
    index = Index.open(str(tmp_path / "index"))
    np.testing.assert_array_equal(index.vector("item-5"), by_id["item-5"])


@pytest.mark.ray
def test_errors_of_an_actor_reach_the_caller(
    ray_local: None, encoder_uri: str, tmp_path: Path
) -> None:
    write_partition(tmp_path / "plain", content_rows(0, 3).drop(["frames"]))
    with pytest.raises(EmbedError, match=r"columns \['frames'\] are missing"):
        embed(encoder_uri, str(tmp_path / "plain"), str(tmp_path / "out"), EmbedConfig())


@pytest.mark.ray
def test_more_gpus_than_there_are(ray_local: None, encoder_uri: str, tmp_path: Path) -> None:
    rows_uri = publish_rows(str(tmp_path / "rows"), num_parts=1)
    with pytest.raises(EmbedError, match=r"the cluster has 0 GPUs; set it to 0"):
        embed(encoder_uri, rows_uri, str(tmp_path / "out"), EmbedConfig(gpus_per_actor=1))


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(
    ray_local: None, encoder_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, artifacts.Manifest]:
    """Rows in twelve partitions, and what a run that nothing happens to makes of them."""
    folder = tmp_path_factory.mktemp("unbroken")
    rows_uri = publish_rows(str(folder / "rows"), num_parts=12, num_rows=60)
    return rows_uri, embed(encoder_uri, rows_uri, str(folder / "t"), EmbedConfig(num_actors=1))


@pytest.mark.ray
@pytest.mark.slow
def test_driver_killed_midway_resumes_to_the_same_table(
    unbroken: tuple[str, artifacts.Manifest],
    encoder_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows_uri, whole = unbroken
    out = tmp_path / "out"
    places = ["--encoder", encoder_uri, "--rows", rows_uri, "--out", str(out)]
    command = [*places, "--set", "num_actors=1"]

    def parts() -> dict[str, tuple[int, int]]:
        found = {p.name: p.stat() for p in out.glob("*/part-*.parquet")}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}

    killed = subprocess.Popen(  # with a Ray of its own
        [sys.executable, "-m", "jobs.embed", *command],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(parts()) >= 2, "second partition")
    finally:
        kill_driver(killed)
    before = parts()
    assert 2 <= len(before) < 12
    assert not (out / "manifest.json").exists()

    assert job.main(command) == 0
    printed = capsys.readouterr().out
    assert f"12 partitions, {len(before)} of them standing already" in printed
    manifest = artifacts.read_manifest(out, "embedding-table")
    assert manifest.metrics["num_resumed"] == len(before)
    after = parts()
    assert {name: after[name] for name in before} == before  # not written a second time
    assert manifest.version == whole.version  # the unbroken run's table, byte for byte
    assert manifest.files == whole.files


@pytest.mark.ray
@pytest.mark.slow
def test_actor_killed_midway_is_made_good(
    unbroken: tuple[str, artifacts.Manifest], encoder_uri: str, tmp_path: Path
) -> None:
    rows_uri, whole = unbroken
    out = tmp_path / "out"
    killed: list[int] = []
    standing: dict[str, int] = {}

    def kill() -> None:
        """SIGKILL one actor of this test's own Ray once two partitions stand."""
        wait_for(lambda: len(list(out.glob("*/part-*.parquet"))) >= 2, "second partition")
        for process in psutil.Process().children(recursive=True):
            if "_Embedder" in " ".join(process.cmdline()):
                standing.update({p.name: p.stat().st_ino for p in out.glob("*/part-*.parquet")})
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    manifest = embed(encoder_uri, rows_uri, str(out), EmbedConfig(num_actors=2))
    killer.join()
    assert len(killed) == 1
    assert manifest.version == whole.version
    now = {p.name: p.stat().st_ino for p in out.glob("*/part-*.parquet")}
    # the killed actor's last one may have been written and not yet told: it is made again, the same
    assert sum(now[name] != inode for name, inode in standing.items()) <= 1


@pytest.mark.ray
@pytest.mark.slow
def test_job_and_index_on_s3(
    s3: str,
    ray_local: None,
    encoder_uri: str,
    encoder: ContentEncoder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Encoder, rows, vectors and index all on S3."""
    files, bucket = artifacts.filesystem(s3)
    pafs.copy_files(encoder_uri, f"{bucket}/encoder", destination_filesystem=files)
    rows_uri = publish_rows(f"{s3}/rows", num_parts=3)
    places = ["--encoder", f"{s3}/encoder", "--rows", rows_uri, "--out", f"{s3}/out"]
    assert job.main([*places, "--set", "num_actors=1"]) == 0
    assert f"36 vectors at {s3}/out" in capsys.readouterr().out
    manifest = artifacts.read_manifest(f"{s3}/out", "embedding-table")
    assert manifest.metrics["num_rows"] == 36
    build_index(f"{s3}/out", f"{s3}/index")
    index = Index.open(f"{s3}/index")
    assert (len(index), index.encoder_version) == (36, encoder.version)
    collator = ContentCollator(encoder.inputs)
    expected = encoder.encode(collator(content_rows(0, 36)))
    found = index.vectors([f"item-{i}" for i in range(36)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_command_line_says_what_is_wrong(
    encoder_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--encoder", encoder_uri, "--rows", str(tmp_path), "--out", str(tmp_path / "out")]
    assert job.main([*places, "--set", "batch_sise=3"]) == 1
    assert "no field 'batch_sise'; there are: batch_size" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        job.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} = " in text for name in EmbedConfig.model_fields)
