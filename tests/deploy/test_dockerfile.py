"""The image installs what pyproject.toml names, at the versions of constraints.txt."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from rec.local_ray import KEEP_IDLE

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
    for pin in map(
        Requirement,
        (
            line
            for line in (ROOT / "constraints.txt").read_text().splitlines()
            if line and not line.startswith("#")
        ),
    )
}


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def installed(accelerator: str) -> list[Requirement]:
    """What the image of one ACCELERATOR asks pip for: words of `pip install`, extras resolved."""
    found: list[Requirement] = []
    for _, text in (one for one in instructions() if one[0] == "RUN"):
        for command in re.findall(r"pip install (.*?)(?:&&|$)", text):
            command = re.sub(r"\$\{TORCH_INDEX:\+[^}]*\}|-c \S+|--[a-z-]+", "", command)
            for word in command.replace("${ACCELERATOR}", accelerator).replace('"', "").split():
                if not word.startswith("."):
                    found.append(Requirement(word))
                    continue
                extras = re.findall(r"[a-z0-9]+", word)
                for line in PROJECT["dependencies"] if extras else []:
                    found.append(Requirement(line))
                for extra in extras:
                    found += map(Requirement, PROJECT["optional-dependencies"][extra])
    return found


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_every_package_has_a_pin_that_fits(accelerator: str) -> None:
    wanted = installed(accelerator)
    names = {canonicalize_name(one.name) for one in wanted}
    assert {"torch", "ray", "deepspeed", "s3fs", "boto3"} <= names
    assert f"faiss-{accelerator}" in names
    for one in wanted:
        name = canonicalize_name(one.name)
        if name in ("setuptools", "wheel"):  # tools of the build, which constraints leave open
            continue
        assert name in PINS, f"{one} has no pin in constraints.txt"
        assert PINS[name] in one.specifier, f"{one} refuses the pin {PINS[name]}"


def test_each_install_from_the_index_is_held_to_the_constraints() -> None:
    runs = " && ".join(text for name, text in instructions() if name == "RUN")
    installs = re.findall(r"pip install .*?(?=&&|$)", runs)
    assert len(installs) == 3
    for command in installs:
        assert "-c constraints.txt" in command or "--no-deps" in command


def test_the_base_has_a_python_that_the_project_takes() -> None:
    ((_, base),) = [one for one in instructions() if one[0] == "FROM"]
    (version,) = re.findall(r"^python:(\d+\.\d+)-", base)
    assert version in SpecifierSet(PROJECT["requires-python"])


def test_what_is_copied_is_there_and_is_all_that_is_sent() -> None:
    sources = {
        word for name, text in instructions() if name == "COPY" for word in text.split()[:-1]
    }
    sent = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert sources == sent
    assert all((ROOT / name).exists() for name in sources)
    # every folder of the wheel, so that `python -m jobs.X` runs without a working directory
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= sources


def test_the_shell_reads_every_command() -> None:
    runs = [text for name, text in instructions() if name == "RUN"]
    assert runs
    for text in runs:
        checked = subprocess.run(["sh", "-n", "-c", text], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_nothing_is_compiled_for_the_processor_of_whoever_builds_it() -> None:
    """DeepSpeed compiles with -march=native: elsewhere, an illegal instruction."""
    assert "prebuild" not in " ".join(text for _, text in instructions())


def test_nodes_keep_idle_workers_as_a_ray_of_one_process_does() -> None:
    environment = " ".join(text for name, text in instructions() if name == "ENV").split()
    assert {f"{name}={value}" for name, value in KEEP_IDLE.items()} <= set(environment)


def test_a_job_that_is_stopped_has_time_for_a_checkpoint() -> None:
    from ray.dashboard.modules.job import job_supervisor

    name = "RAY_JOB_STOP_WAIT_TIME_S"
    assert name in Path(job_supervisor.__file__).read_text()
    (found,) = re.findall(rf"\b{name}=(\d+)", " ".join(t for k, t in instructions() if k == "ENV"))
    assert int(found) > 10 * job_supervisor.JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S
