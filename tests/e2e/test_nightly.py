"""Nights in a row: what changed is embedded, what is fresh is found, and nobody is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs import nightly
from jobs.nightly_plan import Record
from rec.artifacts import read_manifest
from rec.client import Client, RequestError
from rec.retrieval import versions
from rec.retrieval.filters import Equal
from rec.retrieval.index import Index
from serve_apps.keys import new_key

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos" / "support"))
KEY, LINE = new_key("keeper", "admin", 1e6)
ADJECTIVES = ("red", "deep", "quiet", "wild", "old", "bright")
NOUNS = ("river", "planet", "garden", "machine", "castle", "forest")
TITLES = [f"{one} {two}" for one in ADJECTIVES for two in NOUNS]


def deliver(folder: Path, day: str, items: dict[str, str]) -> None:
    """items.csv of a day: every item has a title, a tag, and every other one a picture."""
    place = folder / day
    place.mkdir(parents=True)
    lines = ["item_id,title,tags,files"]
    for item_id, title in items.items():
        number = int(item_id[1:])
        file = ""
        if number % 2:
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            cv2.imwrite(str(place / (file := f"{item_id}.png")), pixels)
        lines.append(f"{item_id},{title},{title.split()[1]},{file}")
    (place / "items.csv").write_text("\n".join(lines))


def titled(*numbers: int) -> dict[str, str]:
    return {f"i{n}": f"{TITLES[n % 36]} number {n}" for n in numbers}


class Nights:
    def __init__(self, folder: Path) -> None:
        self.raw, self.out = folder / "deliveries", folder / "nightly"
        self.key_file = folder / "key"
        self.key_file.write_text(KEY)
        self.more: list[str] = []
        self.train_every = 3

    def flags(self, day: str) -> list[str]:
        return [
            "--source", "folder", "--path", f"{self.raw}/{{day}}", "--out", str(self.out),
            "--day", day, "--recipe", "rec.recipes.content:debug", "--workers", "0", *self.more,
            "--set", "recipe.rows.text.vocab_size=150", "recipe.train.steps=4", "warm_steps=2",
            f"train_every={self.train_every}", "source.num_shards=2", "embed.num_actors=1",
            "recipe.train.checkpoint_every=4", "recipe.train.validate_every=4",
        ]  # fmt: skip

    def run(self, day: str, *more: str) -> Record:
        assert nightly.main([*more, *self.flags(day)]) == 0
        return Record.from_json((self.out / day / "night.json").read_text())


@pytest.fixture(scope="module")
def nights(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """The first night, which trains."""
    nights = Nights(tmp_path_factory.mktemp("nights"))
    deliver(nights.raw, "2026-01-01", titled(*range(36)))
    first = nights.run("2026-01-01")
    assert first.trained
    assert (first.counts["embedded"], first.counts["num_rows"]) == (36, 36)
    return nights


@pytest.fixture(scope="module")
def url(nights: Nights) -> Iterator[str]:
    """The service of what the first night published."""
    import ray

    keys = nights.out.parent / "keys.txt"
    keys.write_text(LINE)
    command = [sys.executable, "-m", "serve_apps", "--port", "0", "--keys", str(keys)]
    command += ["--address", ray.get_runtime_context().gcs_address]
    command += ["--encoder", str(nights.out / "2026-01-01" / "encoder")]
    command += ["--index", str(nights.out / "index")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            assert process.stdout is not None
            line = next(text for text in process.stdout if text.startswith("serving at "))
            yield line.split()[2]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)


@pytest.mark.ray
@pytest.mark.slow
def test_three_nights_under_a_service_that_is_asked_all_the_while(
    nights: Nights, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from under_load import asking

    nights.more = ["--service", url, "--key-file", str(nights.key_file)]
    seen: set[str] = set()

    def ask(client: Client) -> None:
        found = client.knn_items(["i3", "i4"], k=3, exclude_self=False)
        assert [one.ids[0] for one in found.results] == ["i3", "i4"]
        seen.add(found.index_version)

    # the second day brings 30 to 41: all but six as they were, two of them altered
    deliver(
        nights.raw, "2026-01-02",
        {**titled(*range(30, 42)), "i30": "another title", "i31": "and another"},
    )  # fmt: skip
    # the third all but two, one more, and one back as it was at first
    deliver(
        nights.raw, "2026-01-03",
        {**titled(*range(7), *range(9, 43)), "i30": "another title"},
    )  # fmt: skip
    with asking([ask], url, KEY) as callers:
        callers.pause_s = 0.05
        callers.go_on(3)
        second = nights.run("2026-01-02")
        assert not second.trained
        assert second.swapped
        assert {name: second.counts[name] for name in ("delivered", "new", "altered")} == {
            "delivered": 12, "new": 6, "altered": 2,
        }  # fmt: skip
        assert {name: second.counts[name] for name in ("embedded", "replaced", "carried")} == {
            "embedded": 8, "replaced": 2, "carried": 34,
        }  # fmt: skip
        assert second.counts["num_rows"] == 42
        callers.go_on(3)
        with Client(url, key=KEY) as client:
            for one in range(36, 42):
                found = client.knn_items([f"i{one}"], k=3, exclude_self=False)
                assert f"i{one}" in found.results[0].ids
                assert found.index_version == second.index_version
        third = nights.run("2026-01-03", "--whole")
        counted = ("new", "altered", "embedded", "left", "num_rows")
        assert {name: third.counts[name] for name in counted} == {
            "new": 1, "altered": 1, "embedded": 2, "left": 2, "num_rows": 41,
        }  # fmt: skip
        assert third.model_version == second.model_version
        callers.go_on(3)
        with Client(url, key=KEY) as client, pytest.raises(RequestError) as told:
            client.knn_items(["i7"], k=3)
        assert told.value.status == 404
    index = Index.open(str(nights.out / "index"))  # and it can be filtered, as all that is served
    hits = index.search(index.vectors(["i5"]), 9, where=Equal(column="tags", value="river"))
    assert {TITLES[int(one[1:]) % 36].split()[1] for one in hits.ids[0] if one} == {"river"}
    assert {second.index_version, third.index_version} <= seen
    assert len(seen) == 3
    assert read_manifest(nights.out / "index").version == third.index_version
    printed = capsys.readouterr().out
    assert "changed: 12 delivered, 6 new, 2 altered, 4 unchanged\n" in printed
    assert "changed: 41 delivered, 1 new, 1 altered, 39 unchanged, 2 leave" in printed

    # a day without anything new leaves all as it is
    deliver(nights.raw, "2026-01-04", titled(*range(5)))
    nights.train_every = 9
    fourth = nights.run("2026-01-04")
    nights.train_every = 3
    assert (fourth.index_version, fourth.counts["unchanged"]) == (None, 5)
    assert read_manifest(nights.out / "index").version == third.index_version


@pytest.mark.ray
@pytest.mark.slow
def test_a_version_that_the_canary_refuses_is_rolled_back_then_a_trained_one_is_served(
    nights: Nights, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Follows the test before."""
    nights.more = ["--service", url, "--key-file", str(nights.key_file)]
    deliver(nights.raw, "2026-01-05", titled(43))
    before = read_manifest(nights.out / "index").version
    flags = nights.flags("2026-01-05")
    assert nightly.main([*flags, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "the encoder is trained from" in printed
    # from the whole one on
    assert "on 3 deliveries: it changes, so all items are embedded" in printed
    assert nightly.main([*flags, "--set", "canary.max_recall_drop=0", "index.factory=PQ1x1"]) == 1
    said = capsys.readouterr().err
    assert f"is back at version {before}" in said
    assert read_manifest(nights.out / "index").version == before
    with Client(url, key=KEY) as client:
        assert client.call("/v1/version")["index_version"] == before
    fifth = nights.run("2026-01-05")
    assert fifth.trained
    assert fifth.counts["num_rows"] == fifth.counts["embedded"] == 42
    printed = capsys.readouterr().out
    for step in ("catalogue", "rows", "facts", "encoder", "vectors", "embeddings"):
        assert f"{step}: done already" in printed
    with Client(url, key=KEY) as client:
        told = client.call("/v1/version")
        assert told["model_version"] == fifth.model_version
        assert told["index_version"] == fifth.index_version
        assert client.knn_items(["i43"], k=1, exclude_self=False).results[0].ids == ["i43"]
    encoder = read_manifest(nights.out / "2026-01-05" / "encoder")
    assert encoder.metrics["step"] == 2
    assert [one.version for one in versions.history(str(nights.out / "index"))][-1] == (
        fifth.index_version
    )


def test_nights_go_forward_and_are_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = Nights(tmp_path).flags("2026-01-02")
    deliver(tmp_path / "deliveries", "2026-01-02", titled(0, 1))
    (tmp_path / "nightly" / "2026-01-01").mkdir(parents=True)
    assert nightly.main([*flags, "--dry-run"]) == 1
    assert "was begun and not finished; run it first (--day 2026-01-01)" in capsys.readouterr().err
    later = tmp_path / "nightly" / "2026-01-03" / "embeddings"
    later.mkdir(parents=True)
    (later / "manifest.json").write_text("{}")
    assert nightly.main([*flags, "--dry-run"]) == 1
    assert "holds the night of 2026-01-03" in capsys.readouterr().err


def test_wrong_flags_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)]
    assert nightly.main([*out, "--key-file", "k"]) == 1
    assert "--key-file: for which service" in capsys.readouterr().err
    assert nightly.main([*out, "--recipe", "rec.recipes.sequence:debug"]) == 1
    assert "expected a content recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        nightly.main([*out, "--day", "yesterday"])
    assert "expected a day, as 2026-01-31" in capsys.readouterr().err
