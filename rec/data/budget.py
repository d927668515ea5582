"""What one task of a stage takes of a node: cores and memory, told to Ray, which starts no more
tasks on a node than have room there.

Ray's memory is a count that tasks are admitted by: no task is held to it. Each stage declares its
own budget beside its code; `limit_memory` puts one number in place of all of them for this driver.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ray

GB = 1 << 30
_limit: list[float] = []  # of this driver, in GB: one number or none


class BudgetError(ValueError):
    """No node has room for a task of a stage. Says which, what there is and what to do."""


class Budget(NamedTuple):
    """Of one task."""

    memory_gb: float = 0.5
    cpus: float = 1.0

    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {"CPU": self.cpus, "memory": self.memory_gb * GB}


def limit_memory(memory_gb: float | None) -> None:
    """Give every task of this driver's stages so much memory, whatever they declare; None: not."""
    _limit[:] = [] if memory_gb is None else [memory_gb]


def granted(budget: Budget) -> Budget:
    """The budget with the memory that the driver was told to give, if it was."""
    return budget._replace(memory_gb=_limit[0]) if _limit else budget


def check_room(stage: str, budget: Budget) -> None:
    """Refuse what Ray would wait for without end.

    A cluster whose head takes no tasks and that has no other node yet is not judged; nodes that an
    autoscaler may start count as if they were there.

    Raises:
        BudgetError: every node that takes tasks is too small.
    """
    if not ray.is_initialized():
        return
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in alive if node.get("CPU")]
    if not nodes:
        return
    needed = budget.resources()
    if any(_fits(needed, node) for node in [*nodes, *_to_come()]):
        return
    cpus = max(node["CPU"] for node in nodes)
    memory_gb = max(node.get("memory", 0.0) for node in nodes) / GB
    raise BudgetError(
        f"a task of stage '{stage}' takes {budget.cpus:g} CPUs and {budget.memory_gb:g} GB, and "
        f"no node has more than {cpus:g} CPUs and {memory_gb:.2g} GB for tasks; pass --task-memory "
        "GB with less where a task's data are small, use larger nodes, or start Ray with more "
        "(ray start --num-cpus, --memory BYTES; by default 70 % of what is free then)"
    )


def _fits(needed: dict[str, float], node: dict[str, Any]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in needed.items())


def _to_come() -> list[dict[str, Any]]:
    """What nodes have that an autoscaler may start; memory it does not tell is as much as asked."""
    from ray._private.state import state  # Ray Data asks there, too: nothing public says

    config = state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [{"memory": float("inf"), **group.resources} for group in groups if group.max_count != 0]
