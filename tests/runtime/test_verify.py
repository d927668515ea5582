"""Published files are held to their sha256, all of them, by threads and by Ray's tasks alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from rec import artifacts
from rec.runtime import verify as verifying
from rec.runtime.verify import verify


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verifying, "_TASK_BYTES", 8)  # two files a part
    for number in range(7):
        place = tmp_path / "rows" / "v-1" / "train" / f"shard-{number}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"rows%d" % number)
    artifacts.seal(tmp_path / "rows", "v-1", "content-rows")
    return tmp_path / "rows"


def check(place: Path, *, on_ray: bool) -> None:
    verify(str(place), artifacts.read_manifest(place), on_ray=on_ray)


def alter_each_and_check(place: Path, *, on_ray: bool) -> None:
    check(place, on_ray=on_ray)
    for file in sorted((place / "v-1" / "train").iterdir()):
        before = file.read_bytes()
        file.write_bytes(before[:-1] + b"x")
        with pytest.raises(artifacts.ArtifactError, match=rf"{file}: 5 bytes .* publish again"):
            check(place, on_ray=on_ray)
        file.unlink()
        with pytest.raises(artifacts.ArtifactError, match=f"{file}: missing"):
            check(place, on_ray=on_ray)
        file.write_bytes(before)
    check(place, on_ray=on_ray)


def test_every_file_is_checked_by_threads(published: Path) -> None:
    alter_each_and_check(published, on_ray=False)


@pytest.mark.ray
def test_every_file_is_checked_by_tasks(ray_local: None, published: Path) -> None:
    alter_each_and_check(published, on_ray=True)


def test_of_several_the_first_is_named(published: Path) -> None:
    for number in (5, 2):
        (published / "v-1" / "train" / f"shard-{number}.parquet").write_bytes(b"")
    with pytest.raises(artifacts.ArtifactError, match="shard-2"):
        check(published, on_ray=False)
