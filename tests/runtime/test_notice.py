"""A worker learns once that a node of its group is about to go."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2.api.preemption import PreemptionInfo

from rec.runtime.stop import watch_notice


def test_a_notice_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = PreemptionContext()
    monkeypatch.setattr(
        context, "get_train_context", lambda: SimpleNamespace(preemption_context=told)
    )
    noticed = watch_notice()
    assert not noticed()
    told.preemption_info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [0]})
    assert [noticed(), noticed()] == [True, False]
