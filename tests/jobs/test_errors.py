"""What the machine refuses is told in a line, by every job alike."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import ray.data
from ray.exceptions import RayError

from jobs import embed, index, ingest, train
from jobs.cli import Main, alone_in, tell_errors
from rec.config import ConfigError
from rec.data.parquet import ParquetError

RECIPE = ["--recipe", "rec.recipes.sequence:debug"]


@pytest.mark.parametrize(
    ("main", "name", "given"),
    [
        (train.main, "train", [*RECIPE, "--workers", "0", "--rows"]),
        (index.main, "index", ["--workers", "0", "--embeddings"]),
        (embed.main, "embed", ["--encoder"]),
    ],
)
def test_places_that_are_files_are_told_in_a_line(
    main, name: str, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main([*given, f"{file}/below", "--out", f"{file}/out"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"{name}: ")
    assert str(file) in message
    assert message.count("\n") == 1


def test_a_folder_that_cannot_be_made_and_ctrl_c_have_a_status() -> None:
    @tell_errors("some", ValueError)
    def main(argv: list[str] | None = None) -> int:
        for kind in argv or []:
            if kind == "full":
                raise OSError(28, "No space left on device", "/out/part")
            if kind == "ctrl-c":
                raise KeyboardInterrupt
            if kind == "user":
                raise ValueError("wrong")
            raise ZeroDivisionError
        return 0

    assert [main([kind]) for kind in ("full", "user", "ctrl-c")] == [1, 1, 130]
    assert main([]) == 0
    with pytest.raises(ZeroDivisionError):  # an error of ours keeps its trace
        main(["bug"])


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="file: a file; give --out a folder"),
        alone_in(str(tmp_path / "file")),
    ):
        pass


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_ends_a_job_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.ingest", "--source", "synthetic", "--out"]
    more = ["--set", "source.num_items=200000"]
    with subprocess.Popen(
        [*command, str(tmp_path / "run"), *more], stderr=subprocess.PIPE, text=True
    ) as job:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/tables/items/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        job.terminate()
        said = job.communicate(timeout=60)[1]
    assert job.returncode == 143
    assert "stopped by SIGTERM; run the same command again" in said
    assert "Traceback" not in said
    assert "PC: @" not in said


@pytest.mark.ray
def test_a_full_disk_in_a_task_of_ray_data_is_told_in_a_line(
    ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(row: dict[str, int], error: Exception) -> dict[str, int]:
        raise error

    def main_that(error: Exception) -> Main:
        @tell_errors("some")
        def main(argv: list[str] | None = None) -> int:
            ray.data.range(2).map(fail, fn_args=[error]).materialize()
            return 0

        return main

    full = OSError(errno.ENOSPC, "No space left on device", "/out/part")
    assert main_that(full)() == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == "some: [Errno 28] No space left on device: '/out/part'"
    damaged = ParquetError("/in/part, row group 0, column 'a': cannot be read")
    assert main_that(damaged)() == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == "some: /in/part, row group 0, column 'a': cannot be read"
    with pytest.raises(RayError, match="a bug"):
        main_that(ZeroDivisionError("a bug"))()


def test_two_jobs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    with alone_in(out):
        with pytest.raises(ConfigError, match=f"{out}: another job writes there"), alone_in(out):
            pass
        with alone_in(str(tmp_path / "other")):
            pass
        assert not (tmp_path / "other").exists()
        (tmp_path / "run" / "part").touch()
    with alone_in(out), alone_in("s3://bucket/run"), alone_in("s3://bucket/run"):
        pass


def test_a_killed_job_holds_its_folder_no_longer(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    code = "from jobs.cli import alone_in; import sys, time\nwith alone_in(sys.argv[1]):\n"
    code += "    print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another job"), alone_in(out):
            pass
        other.kill()
        other.wait()
    with alone_in(out):
        pass


@pytest.mark.ray
def test_an_error_of_the_machine_in_a_task_is_told_without_rays_trace(
    ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    given = ["--source", "synthetic", "--out", str(tmp_path / "file" / "run")]
    assert ingest.main([*given, "--set", "source.num_items=500"]) == 1
    said = capfd.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("ingest: ")
    assert str(tmp_path / "file") in last
    assert "Traceback" not in said
