"""Tasks take what their stage declares, and what no node has is refused instead of waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig

from jobs import behaviour, ingest
from rec.data import behaviour_phases, sequence_phases
from rec.data.budget import GB, Budget, BudgetError, check_room, limit_memory
from rec.data.tasks import map_shards


@pytest.fixture(autouse=True)
def no_limit() -> Iterator[None]:
    yield
    limit_memory(None)


def node(cpus: float, memory_gb: float) -> dict[str, object]:
    return {"Alive": True, "Resources": {"CPU": cpus, "memory": memory_gb * GB}}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The nodes of a cluster that is not there, and has no autoscaler."""
    found: list[dict[str, object]] = []
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: found)
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: None)
    return found


def test_one_node_has_to_have_room_for_all_of_a_task(nodes: list[dict[str, object]]) -> None:
    nodes += [node(8, 2.0), node(1, 16.0)]
    check_room("edges", Budget(memory_gb=2.0, cpus=8))
    check_room("edges", Budget(memory_gb=16.0))
    with pytest.raises(
        BudgetError, match=r"stage 'edges' takes 2 CPUs and 3 GB, and no node has .* --task-memory"
    ):
        check_room("edges", Budget(memory_gb=3.0, cpus=2))
    nodes.append({**node(8, 64.0), "Alive": False})
    with pytest.raises(BudgetError):
        check_room("edges", Budget(memory_gb=3.0, cpus=2))


def test_nodes_that_are_to_come_count(
    nodes: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.append({"Alive": True, "Resources": {"memory": 4.0 * GB}})  # a head that takes no tasks
    check_room("edges", Budget(memory_gb=99.0))
    nodes.append(node(2, 4.0))
    config = ClusterConfig()
    config.node_group_configs.add(name="large", max_count=0).resources.update({"CPU": 64})
    config.node_group_configs.add(name="data", max_count=9).resources.update({"CPU": 16})
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
    check_room("edges", Budget(memory_gb=99.0))
    with pytest.raises(BudgetError, match="32 CPUs"):
        check_room("edges", Budget(cpus=32))


@pytest.mark.ray
def test_ray_gives_a_task_its_budget(ray_local: None) -> None:
    def work(_: int) -> dict[str, float]:
        return ray.get_runtime_context().get_assigned_resources()

    (found,) = map_shards(work, [0], Budget(memory_gb=0.25, cpus=2))
    assert found == {"CPU": 2, "memory": GB / 4}
    limit_memory(0.125)
    (found,) = map_shards(work, [0], Budget(memory_gb=1e6))
    assert found == {"CPU": 1, "memory": GB / 8}


@pytest.mark.ray
def test_a_job_whose_tasks_fit_no_node_ends_with_the_fix(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    flags = ["--out", out, "--tables-only", "--set", "source.num_items=2"]
    assert ingest.main([*flags, "--task-memory", "99999"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ingest: a task of stage 'tables' takes 1 CPUs and 99999 GB")
    assert "pass --task-memory" in said
    assert ingest.main([*flags, "--task-memory", "0.1"]) == 0


def test_memory_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "-1", "nan", "2G"):
        with pytest.raises(SystemExit):
            behaviour.arguments().parse_args(["--task-memory", wrong])
        assert f"{wrong!r}: expected gigabytes" in capsys.readouterr().err


def test_budgets_leave_a_core_its_share_of_a_common_node() -> None:
    budgets = {**behaviour_phases.BUDGETS, **sequence_phases.BUDGETS}
    of_all_items = {"number", "content"}  # one task each
    share = 0.6 * 4  # GB for tasks of 4 GB a core
    assert {name for name, one in budgets.items() if one.memory_gb > share} <= of_all_items
